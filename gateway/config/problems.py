"""Where something is wrong in a configuration file, and how that is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from yaml.nodes import Node

from corral.errors import ConfigError

MEANT = {
    "backends": "replicas",
    "servers": "replicas",
    "upstreams": "replicas",
    "nodes": "replicas",
    "endpoints": "replicas",
    "bind": "listen",
    "address": "url",
    "host": "url",
    "name": "id",
    "parallel": "slots",
    "num_parallel": "slots",
    "max_wait": "max_wait_s",
    "allowed_hosts": "hosts",
    "cors": "origins",
}
"""Words other programs use for what Corral calls otherwise; edit distance would not find them."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing to mend. Lines and columns count from 1; 0 where the file has no such place."""

    line: int
    column: int
    path: str
    text: str

    def __str__(self) -> str:
        where = f"{self.line}:{self.column}: " if self.line else ""
        return f"{where}{self.path}: {self.text}" if self.path else f"{where}{self.text}"


class InvalidConfig(ConfigError):
    """What is wrong with one file, place by place."""

    def __init__(self, text: str, source: str, problems: Iterable[Problem]) -> None:
        super().__init__(text)
        self.source = source
        self.problems = tuple(problems)
        self.policy_path: Path | None = None
        """The file of the policy that it names, where that much could be read."""


def invalid(source: str, problem: Problem) -> InvalidConfig:
    """The one thing wrong with ``source``; it may have a line and no column, or no place at all."""
    where = ":".join(str(each) for each in (problem.line, problem.column) if each)
    return InvalidConfig(f"{source}:{where and f'{where}:'} {problem.text}", source, [problem])


@dataclass(slots=True)
class Problems:
    """Everything found wrong with one file so far."""

    source: str
    found: list[Problem] = field(default_factory=list)

    def add(self, node: Node | None, path: str, text: str) -> None:
        mark = node.start_mark if node is not None else None
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        self.found.append(Problem(line, column, path, text))

    def error(self) -> InvalidConfig:
        """All problems as one error: a line each, the first line complete in itself when there is only one."""
        found = sorted(set(self.found))
        lines = [f"{self.source}:{p}" if p.line else f"{self.source}: {p}" for p in found]
        head = [f"{self.source}: {len(lines)} problems"] if len(lines) > 1 else []
        return InvalidConfig("\n  ".join([*head, *lines]), self.source, found)


def nearest_of(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where one of these is spelled much like it, else just ``;``."""
    nearest = get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ";"


def unknown_key(name: str, known: Iterable[str]) -> str:
    names = list(known)
    nearest = [MEANT[name.lower()]] if MEANT.get(name.lower()) in names else get_close_matches(name.lower(), names, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
    return f"unknown key{hint} known keys here: {', '.join(names)}"
