"""A part of the screen that shows a sheet: as many of its rows as there is room for, and moves through them."""

from __future__ import annotations

from rich.console import RenderableType
from textual import events
from textual.message import Message
from textual.widget import Widget

from corral.gateway.cli.top.marks import Look
from corral.gateway.cli.top.sheet import Sheet


class Panel(Widget, can_focus=False):
    """``ends``: it shows the end of its sheet, as a log, until it is moved."""

    class Chosen(Message):
        """A row was clicked."""

        def __init__(self, panel: Panel, key: str) -> None:
            super().__init__()
            self.panel = panel
            self.key = key

    class Sorted(Message):
        """The title of a column that can be sorted by was clicked."""

        def __init__(self, sort: str) -> None:
            super().__init__()
            self.sort = sort

    def __init__(self, look: Look, *, id: str, ends: bool = False) -> None:
        super().__init__(id=id)
        self._look = look
        self._sheet = Sheet((), ())
        self._ends = ends
        self._away = 0
        """Rows from where it would be by itself."""
        self._chosen: str | None = None

    @property
    def room(self) -> int:
        """How many rows fit below the titles."""
        return max(0, self.size.height - 1)

    @property
    def _top(self) -> int:
        spare = max(0, len(self._sheet.rows) - self.room)
        self._away = min(self._away, spare)
        return spare - self._away if self._ends else self._away

    def show(self, sheet: Sheet, chosen: str | None = None) -> None:
        """``chosen``: the key of the row that is marked."""
        if chosen != self._chosen or chosen is not None:
            self._chosen = chosen
            self._bring_in(sheet)
        self._sheet = sheet
        self.refresh()

    def _bring_in(self, sheet: Sheet) -> None:
        """Move as far as it needs to show the chosen row."""
        keys = [row.key for row in sheet.rows]
        if self._chosen not in keys or not self.room:
            return
        place = keys.index(self._chosen)
        self._away = max(place - self.room + 1, min(self._away, place))

    def move(self, rows: int) -> None:
        """Down, or up where it is less than 0."""
        self._away = max(0, self._away + (-rows if self._ends else rows))
        self.refresh()

    def render(self) -> RenderableType:
        palette, top = self._look.palette, self._top
        rows = self._sheet.rows[top : top + self.room]
        styles = [palette.chosen if self._chosen is not None and row.key == self._chosen else "" for row in rows]
        return self._sheet.table(self.size.width, rows, self._look, styles)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self.move(3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self.move(-3)

    def on_click(self, event: events.Click) -> None:
        if event.y == 0:
            column = self._sheet.column_at(event.x, self.size.width)
            if column is not None and column.sort:
                self.post_message(self.Sorted(column.sort))
            return
        number = self._top + event.y - 1
        if 0 <= number < len(self._sheet.rows) and self._sheet.rows[number].key:
            self.post_message(self.Chosen(self, self._sheet.rows[number].key))
