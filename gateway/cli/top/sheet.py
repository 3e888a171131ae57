"""A table whose columns stay where they are while its rows change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, overload

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from corral.gateway.cli.top.marks import Look

GAP: Final = 1
"""Blanks between two columns."""
FLEXIBLE_LEAST: Final = 8


class Column(NamedTuple):
    """``width`` None: it takes what the others leave."""

    title: str
    width: int | None
    right: bool = False
    sort: str = ""
    """What a click on its title sorts by; empty: nothing."""


class Row(NamedTuple):
    """``key``: what it stands for, where it can be chosen."""

    cells: tuple[Text, ...]
    key: str = ""


class Rows(Sequence[Row]):
    """Rows that are made of their records when they are looked at: of many only a few are."""

    def __init__(self, records: Sequence[dict[str, Any]], make: Callable[[dict[str, Any]], Row]) -> None:
        self._records = records
        self._make = make

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | Sequence[Row]:
        if isinstance(place, slice):
            return Rows(self._records[place], self._make)
        return self._make(self._records[place])


@dataclass(frozen=True, slots=True)
class Sheet:
    """What one part of the picture shows."""

    columns: tuple[Column, ...]
    rows: Sequence[Row]
    empty: str = ""
    """Said where there are no rows."""

    def widths(self, width: int) -> list[int]:
        """Of the columns, on a line of ``width``."""
        fixed = sum(column.width or 0 for column in self.columns) + GAP * (len(self.columns) - 1)
        flexible = [number for number, column in enumerate(self.columns) if column.width is None]
        left = max(FLEXIBLE_LEAST * len(flexible), width - fixed)
        widths = [column.width or 0 for column in self.columns]
        for place, number in enumerate(flexible):
            widths[number] = left // len(flexible) + (place < left % len(flexible))
        return widths

    def column_at(self, x: int, width: int) -> Column | None:
        """The one that a mouse points at."""
        right = 0
        for column, its_width in zip(self.columns, self.widths(width), strict=True):
            right += its_width + GAP
            if x < right:
                return column
        return None

    def table(self, width: int, rows: Sequence[Row], look: Look, styles: Sequence[str] = ()) -> Table:
        """These of its rows under its titles; ``styles``: of each row."""
        head, overflow = look.palette.head, look.marks.overflow
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, width=width, header_style=head)
        for column, its_width in zip(self.columns, self.widths(width), strict=True):
            title = Text(column.title, head, overflow=overflow, no_wrap=True)
            justify: JustifyMethod = "right" if column.right else "left"
            table.add_column(title, width=its_width, justify=justify, no_wrap=True, overflow=overflow)
        for number, row in enumerate(rows):
            table.add_row(*row.cells, style=styles[number] if number < len(styles) else None)
        if not self.rows and self.empty:
            flexible = next((n for n, column in enumerate(self.columns) if column.width is None), 0)
            cells = [Text() for _ in self.columns]
            cells[flexible] = look.text(self.empty, look.palette.dim)
            table.add_row(*cells)
        return table
