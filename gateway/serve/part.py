"""One page of one replica, and how long anybody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

PAGE_WAIT_S = 0.25
"""How long a page waits for a fresh reading of memory that has just changed."""
QUICK_S = 0.05
"""A reading that takes no longer is what a replica owes that is not slow."""


class Part:
    """One page of one replica: one reading at a time; who asks meanwhile shares the next."""

    def __init__(self, read: Callable[[], Awaitable[None]]) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()
        self._next: asyncio.Future[None] = self._loop.create_future()
        self._began_s = 0.0
        self._took_s = 0.0
        self.reading: asyncio.Future[None] | None = None
        """The one under way; done when it has ended."""
        self.is_behind = True
        """There was reason to read it anew since the last reading began."""
        self.is_catching_up = False
        """So there was before; the reading under way will tell, or the last one failed to."""

    @property
    def is_slow(self) -> bool:
        """Whether the one under way is late where the last one was, too, or later than anybody waits for."""
        allowed_s = QUICK_S if self._took_s > QUICK_S else PAGE_WAIT_S
        late = self.reading is not None and self._loop.time() - self._began_s > allowed_s
        return late or self._took_s > PAGE_WAIT_S

    def ask(self) -> asyncio.Future[None]:
        """Done when a reading that begins after this call has ended (or none will, because the watch stopped)."""
        self._asked.set()
        return self._next

    def fresh(self, *, unsettled: bool = False) -> asyncio.Future[None] | None:
        """Done when a reading has ended that is behind nothing that is known; None: the last one is not (and nothing is
        ``unsettled``), or the replica is known to be slow, for which nobody waits."""
        if self.is_behind or unsettled:
            reading = self.ask()
        elif self.is_catching_up:
            reading = self.reading or self.ask()
        else:
            return None
        return None if self.is_slow else reading

    async def run(self) -> None:
        reading = self._next
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                reading, self._next = self._next, self._loop.create_future()
                self.reading, self._began_s = reading, self._loop.time()
                self.is_catching_up, self.is_behind = self.is_catching_up or self.is_behind, False
                await self._read()
                self.reading, self._took_s = None, self._loop.time() - self._began_s
                reading.set_result(None)
        finally:
            for waited in {reading, self._next}:
                if not waited.done():
                    waited.set_result(None)
