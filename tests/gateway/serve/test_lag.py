"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from corral.gateway.serve.lag import PERIOD_S, SPAN_S, LoopLag
from corral.gateway.serve.metrics import Metrics


class Script:
    """A clock whose sleeps take too long by what is written down."""

    def __init__(self, late: Sequence[float]) -> None:
        self.now_s = 100.0
        self._late = list(late)

    async def sleep(self, seconds: float) -> None:
        if not self._late:
            raise asyncio.CancelledError
        self.now_s += seconds + self._late.pop(0)


async def played(late: Sequence[float]) -> Metrics:
    metrics, script = Metrics(), Script(late)
    with pytest.raises(asyncio.CancelledError):
        await LoopLag(metrics, lambda: script.now_s, script.sleep).run()
    return metrics


async def test_each_sleep_that_was_too_long_is_noted() -> None:
    metrics = await played([0.0, 0.5, 0.25])
    assert sum(metrics.loop_lag.counts) == 3
    assert metrics.loop_lag.sum == pytest.approx(0.75)
    assert metrics.loop_lag_max_s == pytest.approx(0.5)


async def test_a_timer_that_is_early_is_not_late() -> None:
    metrics = await played([-0.001])
    assert (metrics.loop_lag.sum, metrics.loop_lag_max_s) == (0.0, 0.0)


async def test_the_greatest_lag_is_forgotten_after_two_spans_and_not_before_one() -> None:
    span = [0.0] * int(SPAN_S / PERIOD_S + 1)
    assert (await played([2.0, *span[:300]])).loop_lag_max_s == pytest.approx(2.0)
    assert (await played([2.0, *span])).loop_lag_max_s == pytest.approx(2.0)
    assert (await played([2.0, *span, *span, 0.125])).loop_lag_max_s == pytest.approx(0.125)


async def test_a_loop_that_is_held_up_shows() -> None:
    metrics = Metrics()
    task = asyncio.create_task(LoopLag(metrics).run())
    try:
        await asyncio.sleep(0)
        time.sleep(PERIOD_S + 0.2)  # what must never happen in the gateway
        async with asyncio.timeout(10.0):
            while metrics.loop_lag_max_s is None:
                await asyncio.sleep(0)
        assert metrics.loop_lag_max_s >= 0.19
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
