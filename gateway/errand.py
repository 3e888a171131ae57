"""An errand: a request that a task of the gateway's carries out, by a lease of the scheduler's like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from corral.errors import CorralError, Fault, Refusal
from corral.gateway.carried import Carried
from corral.gateway.carrier import Carrier
from corral.gateway.schedule.ticket import Lease
from corral.model import Figures, RouteRequest

R = TypeVar("R")


class Refused(CorralError):
    """No replica did it, and why."""

    def __init__(self, refusal: Refusal, retry_after_s: int | None = None) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal
        self.retry_after_s = retry_after_s


class Failed(CorralError):
    """The work failed at this replica in a way that another one may not: it is to be tried elsewhere."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class Errand(Carried):
    """One request. Run it once."""

    __slots__ = ("_carrier", "_fault", "_turn", "_work", "figures")

    def __init__(self, carrier: Carrier, request: RouteRequest, now_s: float) -> None:
        super().__init__(request, now_s)
        self._carrier = carrier
        self._turn: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._work: asyncio.Future[Any] | None = None
        self._fault: Fault | None = None
        """Why the work was interrupted."""
        self.figures: Figures | None = None
        """What its end told; to be set by the work."""

    async def run(self, work: Callable[[Lease], Awaitable[R]]) -> R:
        """Wait for a lease and do ``work`` with it, elsewhere again where that raises :class:`Failed`.

        Raises :class:`Refused`, and whatever else ``work`` raises: then nobody is blamed. When it ends, however it
        ends, the lease is given back.
        """
        self._carrier.submit(self)
        while True:
            try:
                lease = await self._turn
                result = await self._do(work, lease)
            except Failed as failed:
                self._turn, self._fault = asyncio.get_running_loop().create_future(), None
                self._carrier.failed(self, failed.fault)
            except BaseException:
                self._end()
                raise
            else:
                self._carrier.finished(self, ok=True, figures=self.figures)
                return result

    async def _do(self, work: Callable[[Lease], Awaitable[R]], lease: Lease) -> R:
        """The work as a task of its own: an interruption ends that, and not whoever waits for it."""
        if self._fault is not None:  # it went down after the lease was given, before anything was done with it
            raise Failed(self._fault)
        task = asyncio.ensure_future(work(lease))
        self._work = task
        try:
            await asyncio.wait({task})
        finally:
            self._work = None
            task.cancel()
        if task.cancelled() and self._fault is not None:
            raise Failed(self._fault)
        return task.result()

    def _end(self) -> None:
        if self.lease is not None:
            self._carrier.spared(self)
        else:
            self._carrier.cancel(self)

    # -- what the carrier asks of it

    def send(self, lease: Lease) -> None:
        if not self._turn.done():
            self._turn.set_result(lease)

    def refuse(self, refusal: Refusal, retry_after_s: int | None) -> None:
        if not self._turn.done():
            self._turn.set_exception(Refused(refusal, retry_after_s))

    def interrupt(self, fault: Fault) -> None:
        self._fault = fault
        if self._work is not None:
            self._work.cancel()

    def abandon(self) -> None:
        if not self._turn.done():
            self._turn.set_exception(CorralError("internal error of the gateway"))
        elif self._work is not None:
            self._work.cancel()
