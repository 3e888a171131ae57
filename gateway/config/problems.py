"""Where something is wrong in a configuration file, and how that is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

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


@dataclass(slots=True)
class Problems:
    """Everything found wrong with one file so far."""

    source: str
    found: list[Problem] = field(default_factory=list)

    def add(self, node: Node | None, path: str, text: str) -> None:
        mark = node.start_mark if node is not None else None
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        self.found.append(Problem(line, column, path, text))

    def error(self) -> ConfigError:
        """All problems as one error: a line each, the first line complete in itself when there is only one."""
        lines = [f"{self.source}:{p}" if p.line else f"{self.source}: {p}" for p in sorted(set(self.found))]
        if len(lines) == 1:
            return ConfigError(lines[0])
        return ConfigError("\n  ".join([f"{self.source}: {len(lines)} problems", *lines]))


def unknown_key(name: str, known: Iterable[str]) -> str:
    names = list(known)
    nearest = [MEANT[name.lower()]] if MEANT.get(name.lower()) in names else get_close_matches(name.lower(), names, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
    return f"unknown key{hint} known keys here: {', '.join(names)}"
