"""Everything one turn of the loop has to write, written together when the turn is over.

A write to a peer that sleeps wakes it, and waking is what a write costs most. Peers that sleep because this process is
still reading are woken by the first of several writes that follow each other closely, and find the rest when they look.
"""

from __future__ import annotations

import asyncio
from typing import Final

_LARGE_BYTES: Final = 16 * 1024


class Outbox:
    """Keeps the order of writes per connection as long as all of them go through it, or ``flush`` comes first."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[asyncio.Transport, bytes | bytearray]] = []

    def put(self, transport: asyncio.Transport, data: bytes | bytearray) -> None:
        """Write ``data`` before the loop waits again; dropped where the connection has ended by then."""
        if len(data) > _LARGE_BYTES:  # at once, so that a full buffer stops the reading that goes on in this very turn
            self.flush()
            if not transport.is_closing():
                transport.write(data)
            return
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append((transport, data))

    def flush(self) -> None:
        """Write now: before a connection is closed, or written to directly."""
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():
                transport.write(data)
