"""A configuration file to a :class:`Config`, or one error that says everything wrong with it."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from yaml.nodes import Node

from corral.errors import ConfigError
from corral.gateway.config.check import check
from corral.gateway.config.lines import lines_of
from corral.gateway.config.policy import complaints
from corral.gateway.config.problems import Problem, Problems, invalid
from corral.gateway.config.read import MISSING, Reader
from corral.gateway.config.schema import Config
from corral.gateway.config.tree import compose

MAX_FILE_BYTES = 1 << 20
PIPE_S = 5.0
"""The longest wait for the end of a pipe."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file that was read, and where in it each key stands."""

    config: Config
    source: str
    root: Node

    def lines(self) -> dict[str, int]:
        """The line of each key that the file gives."""
        return lines_of(self.root)


def load(path: Path) -> Loaded:
    """Read and check ``path``, its policy too. Raises :class:`ConfigError`."""
    return _checked(_read(path), str(path), check_policy=True)


def load_config(path: Path) -> Config:
    """As :func:`load`, without the places."""
    return load(path).config


def parse_config(text: str, source: str) -> Config:
    """Check ``text``, without running or seeking its policy. ``source`` is its file's path: errors begin with it, and
    paths in the text start from its folder.

    Raises :class:`ConfigError`.
    """
    return _checked(text, source, check_policy=False).config


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """What this machine has against a configuration is said with the name of its file, as what is wrong in itself."""
    try:
        yield
    except ConfigError as error:
        if path is None:
            raise
        raise ConfigError(f"{path}: {error}") from error


def _checked(text: str, source: str, *, check_policy: bool) -> Loaded:
    root = compose(text, source)
    problems = Problems(source)
    reader = Reader(problems, Path(source).parent, complaints if check_policy else None)
    config = reader.struct(root, Config, "")
    if config is not MISSING:
        check(config, root, problems)
    if problems.found:
        error = problems.error()
        error.policy_path = reader.policy_path
        raise error
    assert isinstance(config, Config)
    return Loaded(config, source, root)


def _read(path: Path) -> str:
    try:
        data = _content(path)
    except FileNotFoundError:
        raise _unusable(path, "no such file; `corral check-config --help` shows the least it needs") from None
    except IsADirectoryError:
        raise _unusable(path, f"is a directory; name the file in it, for instance {path / 'corral.yaml'}") from None
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise _unusable(path, f"is larger than {MAX_FILE_BYTES} bytes; this cannot be a configuration")
    return _decoded(data, path)


def _content(path: Path) -> bytes:
    """All of the file, or more than it may have. A pipe (``--config <(…)``) is waited for, but not for ever: once it
    was read, nobody writes into it again."""
    content, ends_s = b"", time.monotonic() + PIPE_S
    with open(path, "rb", buffering=0, opener=_opened) as file:
        ready = select.poll()
        ready.register(file, select.POLLIN)
        while len(content) <= MAX_FILE_BYTES:
            if not ready.poll(max(0.0, ends_s - time.monotonic()) * 1000):
                raise OSError(f"a pipe that did not end within {PIPE_S:g} s; write it to a file to read it again")
            piece = file.read(MAX_FILE_BYTES + 1)
            if piece == b"":
                break
            content += piece or b""
    return content


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _decoded(data: bytes, path: Path) -> str:
    if b"\0" in data:
        raise _unusable(path, "is a binary file, not YAML text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        said = f"is not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8"
        raise invalid(str(path), Problem(line, 0, "", said)) from None


def _unusable(path: Path, text: str) -> ConfigError:
    return invalid(str(path), Problem(0, 0, "", text))
