"""`python bench/live/gateway.py SPEED serve --config FILE`: Corral, with a clock as fast as that of the emulators.

What it says in seconds (how long a model stays after a load, how soon it notices that demand has changed, how often it
probes) is meant for machines at their own speed. By its own clock these emulators are.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextvars import Context

import uvloop

from corral.gateway.cli.entry import main as corral


class FastLoop(uvloop.Loop):
    """Every timer and every reading of the clock goes through these."""

    speed = 1.0

    def time(self) -> float:
        return time.monotonic() * self.speed

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle: asyncio.TimerHandle = super().call_later(delay / self.speed, callback, *args, context=context)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_later(max(0.0, when - self.time()), callback, *args, context=context)


def main(argv: Sequence[str]) -> None:
    FastLoop.speed = float(argv[0])
    uvloop.new_event_loop = FastLoop
    sys.argv = ["corral", *argv[1:]]
    corral()


if __name__ == "__main__":
    main(sys.argv[1:])
