"""What a configuration is made of: a file, the environment, the command line; and where each value comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final

import msgspec
from yaml.nodes import Node, ScalarNode

from corral.gateway.config.check import check
from corral.gateway.config.environment import Variable, settings
from corral.gateway.config.known_variables import unknown_variables
from corral.gateway.config.load import load
from corral.gateway.config.problems import Problems
from corral.gateway.config.schema import Config

Stamp = tuple[tuple[int, ...] | None, ...]
"""What tells of files whether they were changed; None for one that is not there."""
_NOWHERE: Final[Node] = ScalarNode("", "")
_MAY_COLLIDE: Final = ("listen", "admin_listen", "ollama.max_loaded")
"""Keys that are also set from outside the file, and must fit to others in it."""


class From(Enum):
    """The kinds of places that a value may come from."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"
    COMMAND = "command"
    """The command chose it: ``corral demo`` where it listens, for instance."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one value comes from."""

    kind: From = From.DEFAULT
    name: str = ""
    """``corral.yaml:3``, a variable, a flag, a command."""

    def __str__(self) -> str:
        return self.name or self.kind.value


DEFAULT: Final = Origin()


@dataclass(frozen=True, slots=True)
class Settled:
    """A configuration as it applies, and where it comes from."""

    config: Config
    origins: Mapping[str, Origin]
    """By path; what is not here is a default."""
    path: Path | None = None
    warnings: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    """What it was read from: the file, and that of its policy."""
    stamp: Stamp = ()
    """Of these, taken before they were read."""

    def origin(self, path: str) -> Origin:
        """Where the value at ``path`` comes from; a part of what was set as a whole comes from where that did."""
        found = self.origins.get(path)
        if found is None and path.startswith("gpus["):  # a group may be written as just its GPUs
            found = self.origins.get(path.removesuffix(".gpus"))
        if found is not None:
            return found
        wholes = (self.origins[above] for above in _above(path) if above in self.origins)
        # what a file leaves out of a key that it has is a default
        return next((whole for whole in wholes if whole.kind is not From.FILE), DEFAULT)


@dataclass(frozen=True, slots=True)
class Sources:
    """What :meth:`settle` makes a configuration of, now and at every reload.

    A flag goes before Corral's own variables, these before the file, the file before Ollama's variables.
    """

    path: Path | None
    environ: Mapping[str, str]
    flags: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    """By key: the flag as it is written, and the value."""
    base: Config = field(default_factory=Config)
    """Without a file: what the command makes up."""
    command: str = ""
    """Without a file: which command that is. The addresses are its affair, too."""

    def settle(self) -> Settled:
        """Read everything anew. Raises :class:`ConfigError`."""
        config, origins = self.base, self._of_base()
        root, source = _NOWHERE, self.command
        files = () if self.path is None else (self.path,)
        stamp = stamp_of(files)
        if self.path is not None:
            loaded = load(self.path)
            config, root, source = loaded.config, loaded.root, loaded.source
            origins = {key: Origin(From.FILE, f"{self.path}:{line}") for key, line in loaded.lines().items()}
            if config.policy.path is not None:
                files, stamp = (*files, config.policy.path), stamp + stamp_of([config.policy.path])
        found = self._overrides(origins)
        for key, (origin, value) in found.items():
            config, origins[key] = _with(config, key.split("."), value), origin
        others = {key: origin for key, (origin, _) in found.items() if key in _MAY_COLLIDE}
        if others:
            _check_again(config, root, source, others)
        return Settled(config, origins, self.path, tuple(unknown_variables(self.environ)), files, stamp)

    def _of_base(self) -> dict[str, Origin]:
        if not self.command:
            return {}
        usual = Config()
        names = [name for name in usual.__struct_fields__ if getattr(usual, name) != getattr(self.base, name)]
        return {name: Origin(From.COMMAND, self.command) for name in (*names, "listen", "admin_listen")}

    def _overrides(self, origins: Mapping[str, Origin]) -> dict[str, tuple[Origin, Any]]:
        found = {key: (Origin(From.FLAG, flag), value) for key, (flag, value) in self.flags.items()}

        def is_moot(variable: Variable) -> bool:
            if variable.key in found or (self.command and variable.wins):
                return True
            whole = origins.get(variable.key.partition(".")[0], DEFAULT)
            return not variable.wins and (variable.key in origins or whole.kind is From.COMMAND)

        for said in settings(self.environ, is_moot):
            found[said.key] = Origin(From.ENVIRONMENT, said.name), said.value
        return found


def _above(path: str) -> Iterator[str]:
    """``replicas[0].url``: ``replicas[0]``, then ``replicas``."""
    while path:
        path = re.sub(r"(^|\.)[^.\[]*\Z|\[[0-9]+\]\Z", "", path)
        yield path


def stamp_of(paths: Iterable[Path]) -> Stamp:
    """Of these files, through links: another file, or another content, has another one."""
    return tuple(map(_stamp, paths))


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _with(struct: Any, path: list[str], value: Any) -> Any:
    """The struct with another value at ``path``."""
    name, *rest = path
    return msgspec.structs.replace(struct, **{name: _with(getattr(struct, name), rest, value) if rest else value})


def _check_again(config: Config, root: Node, source: str, others: Mapping[str, Origin]) -> None:
    """An address from outside the file may collide with one in it, and a limit with what it pins."""
    problems = Problems(source or "corral")
    check(config, root, problems)
    if problems.found:
        said = ", ".join(f"{key} is what {origin} says" for key, origin in others.items())
        problems.found = [replace(each, text=f"{each.text} ({said})") for each in problems.found]
        raise problems.error()
