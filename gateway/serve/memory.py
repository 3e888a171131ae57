"""Has replicas load models and let go of them, by requests of the gateway's own that no client can end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Final, Protocol

import aiohttp

from corral.gateway.run.own_requests import OwnRequests, Trouble, in_one_line
from corral.gateway.schedule.effects import LetGo, Load, Unload
from corral.gateway.serve.metrics import Metrics
from corral.model import Replica
from corral.probes.ollama import Miss, OllamaProbe

log: Final = logging.getLogger("corral.gateway")

GONE_S: Final = 5.0
"""How long a model that was told to leave may still be listed; afterwards it counts as staying."""
GONE_EVERY_S: Final = 0.1
_READ_S: Final = 5.0
"""An Ollama answers ``/api/ps`` late while the memory of a model that left is coming free."""


def member_id(replica: Replica) -> str:
    """The replica that is asked, where the one meant is below it (``node1/gpu0``)."""
    return replica.id.partition("/")[0]


class MemoryFeed(Protocol):
    """Who wants to know how it ended. Called on the event loop, exactly once for each."""

    def load_ended(self, replica_id: str, number: int, *, ok: bool) -> None: ...

    def unload_ended(self, replica_id: str, number: int, *, ok: bool) -> None: ...


class Readings(Protocol):
    """What is read of the replicas, see :class:`corral.gateway.serve.poller.Poller`."""

    def spelled(self, replica_id: str, model: str) -> str: ...

    def read_memory(self, replica_id: str) -> None: ...


class MemoryKeeper:
    """Carries out :class:`Load`, :class:`Unload` and :class:`LetGo`. Close it before the session is closed."""

    def __init__(
        self,
        feed: MemoryFeed,
        readings: Readings,
        session: aiohttp.ClientSession,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._feed = feed
        self._readings = readings
        self._session = session
        self._metrics = metrics
        self._clock = clock
        self.run = ""
        """Of this gateway, for Corrals below it."""
        self.report_bug: Callable[[str, Exception], None] = lambda where, error: None
        self.names_of: Callable[[str], Collection[str]] = lambda model: (model,)
        """All names of a model: a replica lists it by the one that it was loaded by."""
        self._running: dict[asyncio.Task[None], Load | Unload] = {}
        """Those whose end was not yet told."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def change(self, effect: Load | Unload | LetGo) -> None:
        """Begin; how a load or unload ended is told to the feed. After :meth:`close` nothing happens any more."""
        if self._closed:
            return
        if isinstance(effect, LetGo):
            self._keep(asyncio.create_task(self._let_go(effect)))
            return
        work = self._load(effect) if isinstance(effect, Load) else self._unload(effect)
        task = asyncio.create_task(work, name=f"{type(effect).__name__} {effect.model} on {effect.replica.id}")
        self._running[task] = effect
        self._keep(task)

    def is_changing(self, replica_id: str) -> bool:
        """Whether something is under way on that replica."""
        return any(effect.replica.id == replica_id for effect in self._running.values())

    def keep_only(self, replicas: Iterable[Replica]) -> None:
        """What is under way on any other replica, or at another address, has failed."""
        places = {replica.id: (replica.host, replica.port) for replica in replicas}
        for task, effect in list(self._running.items()):
            replica = effect.replica
            if places.get(member_id(replica)) != (replica.host, replica.port):
                task.cancel()
                self._end(task, "the replica was removed")

    async def close(self) -> None:
        """Give up what is under way; nobody is told."""
        self._closed = True
        self._running.clear()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _let_go(self, effect: LetGo) -> None:
        replica = effect.replica
        try:
            await self._ask(replica).unload(self._readings.spelled(replica.id, effect.model))
        except Trouble as trouble:
            log.warning(
                'model_let_go_failed replica=%s model=%s error="%s"', replica.id, in_one_line(effect.model), trouble
            )
        self._readings.read_memory(replica.id)

    async def _load(self, load: Load) -> None:
        began_s = self._clock()
        try:
            await self._ask(load.replica).load(self._spelled(load), load.signature, load.keep_alive_s)
        except Trouble as trouble:
            self._end(asyncio.current_task(), str(trouble))
        else:
            self._end(asyncio.current_task(), None, self._clock() - began_s)

    async def _unload(self, unload: Unload) -> None:
        """A model that requests still use leaves after them: by then this may have ended, not well."""
        began_s = self._clock()
        try:
            await self._ask(unload.replica).unload(self._spelled(unload))
            await self._gone(unload)
        except Trouble as trouble:
            self._end(asyncio.current_task(), str(trouble))
        else:
            self._end(asyncio.current_task(), None, self._clock() - began_s)

    async def _gone(self, unload: Unload) -> None:
        probe = OllamaProbe(self._session, unload.replica)
        until_s = self._clock() + GONE_S
        while True:
            page = await probe.ps(_READ_S)
            if not isinstance(page, Miss):
                names = self.names_of(unload.model)
                if not any(entry.model.name in names for entry in page):
                    return
            if self._clock() >= until_s:
                why = f"its memory cannot be read: {page.value}" if isinstance(page, Miss) else "it is still in memory"
                raise Trouble(f"{why} after {GONE_S:g} s")
            await asyncio.sleep(GONE_EVERY_S)

    def _ask(self, replica: Replica) -> OwnRequests:
        leaf = replica.id.partition("/")[2]
        headers = {"x-corral-via": self.run, "x-corral-prefer": leaf} if leaf else {}
        return OwnRequests(self._session, replica.host, replica.port, headers)

    def _spelled(self, effect: Load | Unload) -> str:
        return self._readings.spelled(member_id(effect.replica), effect.model)

    def _end(self, task: asyncio.Task[None] | None, error: str | None, seconds: float = 0.0) -> None:
        """Count, log and tell it, unless that was done. ``error`` None: it went well."""
        effect = None if task is None else self._running.pop(task, None)
        if effect is None:
            return
        id, ok = member_id(effect.replica), error is None
        self._log(effect, error, seconds)
        if isinstance(effect, Load):
            self._metrics.load_ended(id, effect.model, seconds, ok=ok)
            self._feed.load_ended(effect.replica.id, effect.number, ok=ok)
        else:
            self._metrics.unload_ended(id, effect.model, ok=ok)
            self._feed.unload_ended(id, effect.number, ok=ok)
        self._readings.read_memory(id)

    def _log(self, effect: Load | Unload, error: str | None, seconds: float) -> None:
        loads = isinstance(effect, Load)
        options = f' options="{effect.signature}"' if isinstance(effect, Load) and effect.signature else ""
        place = f"replica={effect.replica.id} model={in_one_line(effect.model)}{options}"
        if error is None:
            log.info("%s %s seconds=%.1f", "model_loaded" if loads else "model_unloaded", place, seconds)
        else:
            event = "model_load_failed" if loads else "model_unload_failed"
            log.warning('%s %s error="%s"', event, place, error)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.report_bug("memory", error)
            self._end(task, type(error).__name__)
