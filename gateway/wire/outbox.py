"""What one turn of the loop has to write: the first piece at once, the others together when the turn is over.

A write to a peer that sleeps wakes it, and waking is most of what a write costs. The first write of a turn goes out at
once, so that nobody waits for us; peers woken by it, or by the first of the rest, find the others when they look.
"""

from __future__ import annotations

import asyncio
from typing import Final

_LARGE_BYTES: Final = 16 * 1024


class Outbox:
    """Keeps the order of writes per connection as long as all of them go through it, or ``flush`` comes first."""

    __slots__ = ("_loop", "_turn", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._turn = False
        """Something was written in this turn of the loop."""
        self._waiting: list[tuple[asyncio.Transport, bytes | bytearray]] = []

    def put(self, transport: asyncio.Transport, data: bytes | bytearray) -> None:
        """Write ``data`` before the loop waits again; dropped where the connection has ended by then."""
        if self._turn and len(data) <= _LARGE_BYTES:
            self._waiting.append((transport, data))
            return
        # Large pieces go at once, so that a full buffer stops the reading that goes on in this very turn.
        self.flush()
        if not self._turn:
            self._turn = True
            self._loop.call_soon(self._end_turn)
        if not transport.is_closing():
            transport.write(data)

    def flush(self) -> None:
        """Write now: before a connection is closed, or written to directly."""
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            try:
                if not transport.is_closing():
                    transport.write(data)
            except RuntimeError:  # it was half-closed meanwhile; what others wait for must not be lost by it
                transport.abort()

    def _end_turn(self) -> None:
        self._turn = False
        self.flush()
