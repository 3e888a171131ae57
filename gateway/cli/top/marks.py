"""What is drawn with: bars, histories, colours. Everything that comes from outside becomes a Text without markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import OverflowMethod
from rich.text import Text

from corral.gateway.cli.messages import visible


@dataclass(frozen=True, slots=True)
class Marks:
    """The letters that are drawn with."""

    full: str
    half: str
    """Behind the full ones, where a half is left; empty: there is none."""
    track: str
    levels: str
    """From nothing to all."""
    chosen: str
    down: str
    is_ascii: bool = False

    @property
    def overflow(self) -> OverflowMethod:
        """What becomes of a text that is too long."""
        return "crop" if self.is_ascii else "ellipsis"

    def plain(self, text: str) -> str:
        """``text`` in letters that this terminal has, none of which steers it."""
        shown = visible(text)
        return shown.encode("ascii", "replace").decode() if self.is_ascii else shown


UNICODE: Final = Marks("━", "╸", "─", " ▁▂▃▄▅▆▇█", "▸", "▼")
ASCII: Final = Marks("=", "", "-", " .:-=+*#%@", ">", "v", is_ascii=True)


@dataclass(frozen=True, slots=True)
class Palette:
    """Styles by what they mean."""

    good: str
    warn: str
    bad: str
    accent: str
    dim: str
    head: str
    chosen: str
    name: str = ""


TERMINAL: Final = Palette("green", "yellow", "red", "cyan", "bright_black", "bold", "reverse", "bold")
"""The terminal's own colours."""
DARK: Final = Palette(
    "#8ec07c", "#e5b567", "#ef6b73", "#6cb6e8", "#78818f", "bold #9aa4b2", "bold on #28323f", "bold #e6e9ee"
)
LIGHT: Final = Palette(
    "#2b7a39", "#8a5a00", "#c02626", "#0b62b0", "#69707d", "bold #4a5260", "bold on #dbe7f5", "bold #14181f"
)


@dataclass(frozen=True, slots=True)
class Look:
    """How everything is drawn."""

    marks: Marks = UNICODE
    palette: Palette = TERMINAL

    def text(self, text: object, style: str = "") -> Text:
        return Text(self.marks.plain(str(text)), style, no_wrap=True, overflow=self.marks.overflow)

    def bar(self, ratio: float | None, width: int, style: str) -> Text:
        """``━━━━╸─────``; dots of nothing where it is not known."""
        if ratio is None:
            return Text(" " * width)
        marks = self.marks
        halves = round(min(1.0, max(0.0, ratio)) * width * 2)
        if not marks.half:
            halves += halves % 2
        drawn = marks.full * (halves // 2) + marks.half * (halves % 2)
        return Text.assemble((drawn, style), (marks.track * (width - len(drawn)), self.palette.dim))

    def spark(self, values: Iterable[float | None], width: int, style: str) -> Text:
        """The last values that there is room for, each from 0 to 1, the latest at the right; a gap where none is
        known."""
        last: Sequence[float | None] = list(values)[-width:] if width > 0 else ()
        return Text("".join(map(self._level, last)).rjust(width), style)

    def _level(self, value: float | None) -> str:
        levels = self.marks.levels
        if value is None:
            return " "
        return levels[max(1, round(min(1.0, max(0.0, value)) * (len(levels) - 1)))]

    def by(self, ratio: float | None, warn: float, bad: float) -> str:
        """The style of a share that is fine below ``warn``."""
        if ratio is None or ratio < warn:
            return self.palette.good
        return self.palette.bad if ratio >= bad else self.palette.warn
