"""How the parts of the picture are shown, and figures in few letters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from corral.gateway.cli.top.marks import Look

SORTS: Final = ("newest", "queue", "first byte", "total", "tokens/s")
_WIDE: Final = 140

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """How the parts are shown: on how wide a line, and which of the rows, in which order."""

    look: Look
    width: int = 80
    wanted: str = ""
    """Only what has this text in it."""
    sort: str = SORTS[0]

    @property
    def is_wide(self) -> bool:
        return self.width >= _WIDE

    def empty(self, said: str) -> str:
        """What stands where there are no rows."""
        return f"nothing has {self.look.marks.plain(self.wanted)!r} in it" if self.wanted else said

    def keeps(self, *parts: object) -> bool:
        """Whether something with these parts is among what is wanted."""
        return not self.wanted or any(self.wanted.lower() in str(part).lower() for part in parts if part is not None)


def clock_time(at: float) -> str:
    """``12:51:07`` where this machine is."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def seconds(value: float | None) -> str:
    """Short, and as exact as is of interest: ``0.004``, ``1.25``, ``73.2``, ``612``."""
    if value is None:
        return "-"
    if value < 0.0005:
        return "0"
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def number(value: float | None, factor: float = 1.0, form: str = ".0f", empty: str = "?") -> str:
    return empty if value is None else format(value * factor, form)


def id_width(page: Record) -> int:
    """What the replicas' names need."""
    return min(20, max([8, *(len(replica["id"]) + 1 for replica in page["replicas"])]))
