"""What happened lately: the last requests and the last lines of the log, numbered, for pages that show them."""

from __future__ import annotations

import logging
from collections import deque
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct, to_builtins

from corral.gateway.ended import Ended

KEPT: Final = 500

T = TypeVar("T")


class Line(Struct, frozen=True):
    """One line of the log: what an operator is told happened."""

    at: float
    """In seconds since 1970."""
    level: str
    source: str
    text: str


class Ring(Generic[T]):
    """The last ``KEPT`` of what was added, each with its number."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept: deque[T] = deque(maxlen=kept)
        self.last = 0
        """The number of the last one; 0: there is none."""

    def add(self, item: T) -> None:
        self.last += 1
        self._kept.append(item)

    def since(self, number: int) -> list[tuple[int, T]]:
        """Those that were added after the one with this number, the oldest first, as far as they are still kept."""
        later = list(islice(reversed(self._kept), max(0, self.last - number)))
        return list(enumerate(reversed(later), self.last - len(later) + 1))

    def newest(self, at_most: int) -> list[tuple[int, T]]:
        return self.since(self.last - at_most)


class Requests(Ring[Ended]):
    """The last requests. Pages are none: who asks for one every second would push the requests out."""

    def take(self, ended: Ended) -> None:
        if not ended.is_page:
            self.add(ended)


class Journal(logging.Handler):
    """A handler that keeps the last lines of Corral's log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: Ring[Line] = Ring()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # values that do not fit: who wanted to log has not to suffer for it
            self.handleError(record)
            return
        self.lines.add(Line(record.created, record.levelname.lower(), record.name, text))


def request_json(number: int, ended: Ended) -> dict[str, Any]:
    """One request as ``/requests`` and ``/live`` show it."""
    plain: dict[str, Any] = to_builtins(ended)
    del plain["is_page"], plain["trace"]
    return {"number": number, **plain, "trace_id": None if ended.trace is None else ended.trace.trace_id}


def line_json(number: int, line: Line) -> dict[str, Any]:
    """One line of the log as ``/log`` and ``/live`` show it."""
    plain: dict[str, Any] = to_builtins(line)
    return {"number": number, **plain}
