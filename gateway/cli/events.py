"""Server-sent events, as the admin port's ``/live`` sends them: bytes in, events out."""

from __future__ import annotations

import json
from typing import Any, Final

LONGEST: Final = 32 << 20
"""No event is longer; what is, comes from something else."""


class Events:
    """Puts pieces together. Lines that are no part of an event are passed over, and so is data that is no object."""

    def __init__(self) -> None:
        self._rest = b""
        self._kind = "message"
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[tuple[str, dict[str, Any]]]:
        """The events that this piece completes. Raises ValueError where one grows without an end."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        found = [self._line(line.removesuffix(b"\r")) for line in lines]
        if len(self._rest) + sum(map(len, self._data)) > LONGEST:
            raise ValueError("an event without an end")
        return [event for event in found if event is not None]

    def _line(self, line: bytes) -> tuple[str, dict[str, Any]] | None:
        if not line:
            return self._event()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._kind = value.decode("utf-8", "replace")
        elif name == b"data":
            self._data.append(value)
        return None

    def _event(self) -> tuple[str, dict[str, Any]] | None:
        kind, data = self._kind, b"\n".join(self._data)
        self._kind, self._data = "message", []
        try:
            found = json.loads(data) if data else None
        except (ValueError, RecursionError):
            return None
        return (kind, found) if isinstance(found, dict) else None
