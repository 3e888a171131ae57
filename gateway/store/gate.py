"""Where those wait whose turn to change a store has not come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from corral.gateway.store.said import StoreError
from corral.gateway.store.turns import Claim, Turns
from corral.gateway.wire.dialect import SERVER_BUSY

MOST_WAITING: Final = 512
"""Many that want the same are one."""


class Gate:
    """Keeps the :class:`Turns`."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._waiting: dict[Claim, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def turn(self, claim: Claim) -> AsyncIterator[None]:
        """Wait for the claim's turn and have it. Raises :class:`StoreError` where too many wait already."""
        try:
            if not self._turns.enter(claim):
                if len(self._waiting) >= MOST_WAITING:
                    raise StoreError(503, SERVER_BUSY, retry_after_s=1)
                self._waiting[claim] = asyncio.get_running_loop().create_future()
                await self._waiting[claim]
            yield
        finally:
            self._waiting.pop(claim, None)
            for begun in self._turns.leave(claim):
                waiting = self._waiting.pop(begun, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)
