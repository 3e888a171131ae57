"""How late the event loop is: what everything that it carries has to wait for while something else holds it up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from corral.gateway.serve.metrics import Metrics

PERIOD_S: Final = 0.05
SPAN_S: Final = 30.0
"""The greatest lag is that of the span under way and of the one before it."""


class LoopLag:
    """Sleeps for a moment, again and again, and notes by how much each sleep was too long.

    Not by the loop's own clock: uvloop's stands still while one turn of the loop runs, and counts in milliseconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._sleep = sleep
        self._before_s = 0.0
        self._greatest_s = 0.0
        self._span_ends_s = 0.0

    async def run(self) -> None:
        """Never ends by itself; who calls it owns the task."""
        self._span_ends_s = self._clock() + SPAN_S
        while True:
            due_s = self._clock() + PERIOD_S
            await self._sleep(PERIOD_S)
            now_s = self._clock()
            self._note(max(0.0, now_s - due_s), now_s)

    def _note(self, lag_s: float, now_s: float) -> None:
        self._metrics.loop_lag.observe(lag_s)
        self._greatest_s = max(self._greatest_s, lag_s)
        self._metrics.loop_lag_max_s = max(self._before_s, self._greatest_s)
        if now_s >= self._span_ends_s:
            self._before_s, self._greatest_s = self._greatest_s, 0.0
            self._span_ends_s = now_s + SPAN_S
