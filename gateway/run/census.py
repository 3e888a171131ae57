"""Looks at all processes of the machine, without waiting for one that cannot be looked at."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Collection
from typing import Final

from corral.gateway.run.processes import MarkedProcess, ProcessId, identify, look_at, reap, send
from corral.gateway.run.threads import on_own_thread

log = logging.getLogger(__name__)

LOOK_S: Final = 3.0
"""A look takes milliseconds. The environment of a process that hangs in a driver may not be readable, ever."""
_TRIES: Final = 4

Order = Callable[[MarkedProcess], signal.Signals | None]


class Census:
    """Finds processes by their mark, and signals them."""

    def __init__(self) -> None:
        self._unreadable: set[ProcessId] = set()

    async def take(self, prefix: str, order: Order = lambda _: None) -> list[MarkedProcess]:
        """All processes whose token begins so, each sent the signal that ``order`` names for it (on another thread).

        What cannot be read is passed over, now and later.
        """
        look = _Look(prefix, order, self._unreadable)
        for _ in range(_TRIES):
            look = _Look(prefix, order, self._unreadable)
            try:
                async with asyncio.timeout(LOOK_S):
                    return await on_own_thread(look.run, "census")
            except TimeoutError:
                id = identify(look.pid)
                if id is not None:
                    self._unreadable.add(id)
                    log.warning('process_unreadable pid=%d why="it hangs in a driver"', look.pid)
        return look.found

    async def clear(self, prefix: str, limit_s: float) -> list[int]:
        """End by force all whose token begins so; returns the numbers of those still there at the limit."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_s
        pause_s = 0.01
        seen: set[MarkedProcess] = set()
        while True:
            found = await self.take(prefix, lambda _: signal.SIGKILL)
            _reap_all(seen)
            if not found or loop.time() >= deadline:
                return [process.id.pid for process in found]
            seen.update(found)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.5)

    async def end(self, prefix: str, spared: Collection[str], stop_s: float, limit_s: float) -> list[int]:
        """End all whose token begins so, but those of the ``spared`` tokens: asked first, by force after ``stop_s``.

        Returns the numbers of those that are still there ``limit_s`` later.
        """
        loop = asyncio.get_running_loop()
        force_at = loop.time() + stop_s
        asked: set[ProcessId] = set()
        seen: set[MarkedProcess] = set()

        def order(process: MarkedProcess) -> signal.Signals | None:
            if process.token in spared:
                return None
            if loop.time() >= force_at:
                return signal.SIGKILL
            if process.id in asked:
                return None
            asked.add(process.id)
            return signal.SIGTERM

        while True:
            found = [process for process in await self.take(prefix, order) if process.token not in spared]
            _reap_all(seen)
            if not found or loop.time() >= force_at + limit_s:
                return [process.id.pid for process in found]
            seen.update(found)
            await asyncio.sleep(0.05)


class _Look:
    """One look; it knows where it is, should it not come back."""

    def __init__(self, prefix: str, order: Order, unreadable: Collection[ProcessId]) -> None:
        self.found: list[MarkedProcess] = []
        self.pid = 0
        self._prefix = prefix
        self._order = order
        self._unreadable = frozenset(unreadable)
        self._pids = {id.pid for id in unreadable}

    def run(self) -> list[MarkedProcess]:
        for name in os.listdir("/proc"):
            if name.isdigit():
                self._look(int(name))
        return self.found

    def _look(self, pid: int) -> None:
        self.pid = pid
        if pid in self._pids and identify(pid) in self._unreadable:
            return
        process = look_at(pid, self._prefix)
        if process is None:
            return
        self.found.append(process)
        number = self._order(process)
        if number is not None:
            send(process, number)


def _reap_all(processes: Collection[MarkedProcess]) -> None:
    for process in processes:
        reap(process)
