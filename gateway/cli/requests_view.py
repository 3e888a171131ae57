"""The last requests as a table, whole or as it grows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import click
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from corral.gateway.cli.top.marks import TERMINAL, UNICODE, Look
from corral.gateway.cli.top.picture import tokens_per_s
from corral.gateway.cli.top.sheets import outcome
from corral.gateway.cli.top.view import clock_time, seconds

_PIPE_WIDTH: Final = 400
"""In a pipe nothing is cut off."""
_COLUMNS: Final = (
    ("ID", 13, False),
    ("ENDED", 8, False),
    ("MODEL", 14, False),
    ("REPLICA", 8, False),
    ("REASON", 13, False),
    ("QUEUE", 6, True),
    ("1ST BYTE", 8, True),
    ("TOTAL", 6, True),
    ("TOK/S", 5, True),
    ("OUTCOME", 12, False),
    ("FAILED BEFORE", 13, False),
)
"""Title, least width, and whether it holds numbers."""


class Printer:
    """Prints to standard output; later rows stand under the titles of the first ones."""

    def __init__(self) -> None:
        self._look = Look(UNICODE, TERMINAL)
        self._console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, markup=False)
        self._widths = [width for _, width, _ in _COLUMNS]

    def show(self, requests: Sequence[dict[str, Any]], *, is_first: bool = True) -> None:
        if not requests:
            click.echo("no request is over yet")
            return
        rows = [_row(request, self._look) for request in requests]
        if is_first:
            cells = zip(*rows, strict=True)
            self._widths = [max(width, *map(len, column)) for width, column in zip(self._widths, cells, strict=True)]
            if self._console.is_terminal:  # the table has to fit
                self._widths = [width for _, width, _ in _COLUMNS]
        with self._console.capture() as printed:
            self._console.print(self._table(rows, has_titles=is_first))
        text = "\n".join(line.rstrip() for line in printed.get().splitlines())
        click.echo(text, color=self._console.is_terminal or None)

    def _table(self, rows: Sequence[tuple[Text, ...]], *, has_titles: bool) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=has_titles, header_style="bold")
        for (title, _, is_number), width in zip(_COLUMNS, self._widths, strict=True):
            justify: JustifyMethod = "right" if is_number else "left"
            table.add_column(title, justify=justify, no_wrap=True, overflow="ellipsis", min_width=width)
        for row in rows:
            table.add_row(*row)
        return table


def _row(request: dict[str, Any], look: Look) -> tuple[Text, ...]:
    speed = tokens_per_s(request)
    failed = ", ".join(f"{attempt['replica']}: {attempt['fault']}" for attempt in request["failed"])
    return (
        look.text(request["id"]),
        Text(clock_time(request["at"] + request["total_s"])),
        look.text(request["model"] or f"({request['kind']})"),
        look.text(request["replica"] or "-"),
        look.text(request["reason"] or "-"),
        Text(seconds(request["queue_s"])),
        Text(seconds(request["first_byte_s"])),
        Text(seconds(request["total_s"])),
        Text("-" if speed is None else f"{speed:.0f}"),
        outcome(request | {"failed": []}, look),
        look.text(failed or "-"),
    )
