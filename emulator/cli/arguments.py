"""The command line of ``ollama`` as its parser reads it: flags anywhere, and errors in its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

MANY: Final = 1 << 30


class CommandError(Exception):
    """Ends the command: one line ``Error: …``, exit code 1."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command takes."""

    least: int = 0
    most: int = 0
    values: frozenset[str] = frozenset()
    """Flags that need a value."""
    switches: frozenset[str] = frozenset()
    """Flags that need none, but may have one behind an equals sign."""
    short: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Given:
    """What was on the line."""

    arguments: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)

    def is_on(self, flag: str) -> bool:
        return self.flags.get(flag, "false") not in ("false", "0", "f")


def read(usage: Usage, words: Sequence[str]) -> Given:
    given, rest = Given(), list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            given.arguments += rest
            break
        if len(word) > 1 and word.startswith("-"):
            _flag(usage, word, rest, given)
        else:
            given.arguments.append(word)
    _check_count(usage, len(given.arguments))
    return given


def _flag(usage: Usage, word: str, rest: list[str], given: Given) -> None:
    name, equals, value = word.lstrip("-").partition("=")
    if not word.startswith("--"):
        if name not in usage.short:
            raise CommandError(f"unknown shorthand flag: '{name[0]}' in {word}")
        name = usage.short[name]
    if name in usage.switches:
        given.flags[name] = value if equals else "true"
    elif name not in usage.values:
        raise CommandError(f"unknown flag: --{name}")
    elif equals or rest:
        given.flags[name] = value if equals else rest.pop(0)
    else:
        raise CommandError(f"flag needs an argument: {word}")


def _check_count(usage: Usage, count: int) -> None:
    if usage.least == usage.most != count:
        raise CommandError(f"accepts {usage.most} arg(s), received {count}")
    if count < usage.least:
        raise CommandError(f"requires at least {usage.least} arg(s), only received {count}")
    if count > usage.most:
        raise CommandError(f"accepts at most {usage.most} arg(s), received {count}")
