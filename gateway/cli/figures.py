"""Sizes and times for a person, as Ollama's own commands write them, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence

import click

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3))
_TIMES = (("d", 86_400), ("h", 3_600), ("min", 60))


def size(count_bytes: float | None) -> str:
    """``1.3 GB``, ``397 MB``: in thousands, so that they are those of ``ollama list``; ``?`` where it is not known."""
    if count_bytes is None:
        return "?"
    for unit, factor in _UNITS:
        if count_bytes >= factor:
            value = count_bytes / factor
            return f"{int(value)} {unit}" if value >= 10 else f"{value:.1f} {unit}".replace(".0 ", " ")
    return f"{int(count_bytes)} B"


def span(seconds: float | None) -> str:
    """``3 s``, ``12 min``, ``5 h``, ``9 d``."""
    if seconds is None:
        return "?"
    for unit, factor in _TIMES:
        if seconds >= factor:
            return f"{int(seconds / factor)} {unit}"
    return f"{int(seconds)} s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns under a bold head."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return [click.style(lines[0].rstrip(), bold=True), *(line.rstrip() for line in lines[1:])]


def counted(count: int, what: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
