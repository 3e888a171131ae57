"""The doctor's page: text for people, JSON for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, Final

import click

from corral.gateway.doctor.checks import Report
from corral.gateway.doctor.verdict import Check, Level

SCHEMA: Final = 1
_COLORS: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}
_LEVEL_WIDTH: Final = max(len(level.value) for level in Level)
_LEAST_WIDTH: Final = 40


def as_text(report: Report, width: int) -> str:
    """``width`` columns at most, where words allow; colour codes included (whoever prints takes them off)."""
    names = max((len(check.name) for check in report.checks), default=0)
    lines = []
    for title, checks in report.areas:
        if checks:
            lines.append(click.style(title, bold=True))
            lines += [line for check in checks for line in _lines(check, names, width)]
    return "\n".join([*lines, "", _summary(report)])


def _lines(check: Check, names: int, width: int) -> Iterator[str]:
    indent = 2 + _LEVEL_WIDTH + 2 + names + 2
    first, *more = _wrapped(check.found, width - indent)
    level = click.style(f"{check.level.value:<{_LEVEL_WIDTH}}", fg=_COLORS[check.level])
    yield f"  {level}  {check.name:<{names}}  {first}"
    yield from (" " * indent + line for line in more)
    if check.advice:
        mark, *rest = _wrapped(check.advice, width - indent - 3)
        yield " " * indent + "-> " + mark
        yield from (" " * (indent + 3) + line for line in rest)


def _wrapped(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(_printable(text), max(width, _LEAST_WIDTH), break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def _printable(text: str) -> str:
    """What other programs call themselves may not move the cursor."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def _summary(report: Report) -> str:
    counts = {level: sum(check.level is level for check in report.checks) for level in Level}
    parts = [
        f"{counts[Level.OK]} ok",
        f"{counts[Level.WARNING]} warning{'' if counts[Level.WARNING] == 1 else 's'}",
        f"{counts[Level.PROBLEM]} problem{'' if counts[Level.PROBLEM] == 1 else 's'}",
    ]
    return click.style(", ".join(parts), fg=_COLORS[report.worst], bold=True)


def as_json(report: Report) -> dict[str, Any]:
    """``schema`` grows when a key goes or changes its meaning."""
    return {
        "schema": SCHEMA,
        "checks": [
            {"name": check.name, "level": check.level.value, "found": check.found, "advice": check.advice}
            for check in report.checks
        ],
        "worst": report.worst.value,
    }
