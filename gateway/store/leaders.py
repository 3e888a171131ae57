"""Has a store's leader do something, and knows what it means when that leader is lost in the middle of it.

Rules of this file:

1. Nothing that was asked of a replica is asked again, but a pull, which goes on where it was broken off: at the next
   replica of the store, or once more at the same one where that lives.
2. Two processes must not download into one store at once. Where a leader ends its silence neither by an answer nor by
   refusing connections, its process may still be at it: nothing else is changed in that store until one of both comes.
   A leader that was drained in the middle of a download finishes it before another one begins one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp

from corral.errors import Fault, Refusal
from corral.gateway.errand import Errand, Failed, Refused
from corral.gateway.schedule.ticket import Lease
from corral.gateway.store.fleet import Fleet
from corral.gateway.store.mutation import Act
from corral.gateway.store.said import Said, StoreError
from corral.gateway.wire.dialect import refusal_answer
from corral.model import ProbeResult, Replica, RequestKind, RouteRequest
from corral.probes.ollama import OllamaProbe

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

log: Final = logging.getLogger("corral.gateway")

LOOK_S: Final = 1.0
"""An Ollama says its version at once, whatever it does."""
LOOK_EVERY_S: Final = 0.5
SETTLES_S: Final = 0.25
"""A process that lives needs a moment to notice that nobody listens to it any more."""
_DOWNLOADS: Final = (Act.PULL, Act.CREATE)


class Site:
    """The replica that is to do it, as long as the lease lasts."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.is_asked = False
        """From now on it may be carried out there."""


@dataclass(frozen=True, slots=True)
class Done:
    """Who did it, and what it said."""

    replica: Replica
    said: Said


Work = Callable[[Site], Awaitable[Said]]


class _Attempt:
    """One errand's work."""

    def __init__(self, work: Work, downloads: _Downloads | None, store: str) -> None:
        self.site: Site | None = None
        self.is_interrupted = False
        self._work = work
        self._downloads = downloads
        self._store = store

    async def __call__(self, lease: Lease) -> Said:
        site = self.site = Site(lease.replica)
        self.is_interrupted = False
        try:
            if self._downloads is None:
                return await self._work(site)
            async with self._downloads.one(self._store, lease.replica):
                return await self._work(site)
        except Failed as failed:
            if failed.fault is Fault.CONNECT:
                site.is_asked = False
            raise
        except asyncio.CancelledError:
            self.is_interrupted = True
            raise


class Leaders:
    """Of all stores. Close it."""

    def __init__(self, gateway: Gateway, fleet: Fleet, session: aiohttp.ClientSession) -> None:
        self._gateway = gateway
        self._fleet = fleet
        self._session = session
        self._downloads = _Downloads()
        self._silent: dict[tuple[str, str], asyncio.Task[None]] = {}
        """By store and replica: those of which rule 2 speaks."""

    async def run(self, act: Act, store: str, model: str | None, work: Work) -> Done:
        """Do ``work`` at the store's leader. Raises :class:`StoreError`, and what else ``work`` raises."""
        pull = _Losses(self, act, store)
        while True:
            self.check(store)
            attempt = _Attempt(work, self._downloads if act in _DOWNLOADS else None, store)
            request = RouteRequest(RequestKind.STORE, model, store=store)
            errand = Errand(self._gateway.carrier, request, self._gateway.clock())
            errand.excluded = pull.excluded
            try:
                said = await errand.run(attempt)
            except Refused as refused:
                await pull.after(refused, attempt, errand.excluded)
                continue
            assert attempt.site is not None
            return Done(attempt.site.replica, said)

    async def close(self) -> None:
        tasks = list(self._silent.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self, replica: Replica) -> ProbeResult:
        result, _ = await OllamaProbe(self._session, replica).liveness(LOOK_S)
        return result

    def heard(self, replica: Replica) -> None:
        """Something came from it: it may be too busy for its probe, but it does not hang."""
        self._gateway.carrier.scheduler.progress(replica.id, self._gateway.clock())

    def block(self, store: str, replica: Replica) -> None:
        """Let nobody change the store until it is known what became of the replica's process."""
        if (store, replica.id) not in self._silent:
            log.warning('store_blocked store=%s replica=%s reason="it fell silent changing it"', store, replica.id)
            self._silent[store, replica.id] = asyncio.create_task(self._watch(store, replica))

    def check(self, store: str) -> None:
        """Raises :class:`StoreError` where nothing may be changed, see rule 2."""
        for silent_in, replica_id in self._silent:
            if silent_in == store:
                raise StoreError(
                    503,
                    f"replica {replica_id} stopped answering while it changed the model store {store!r}: nothing else "
                    "is changed there until it answers again, has ended or is taken out of the configuration",
                    replica_id,
                )

    async def _watch(self, store: str, replica: Replica) -> None:
        result = ProbeResult.TIMED_OUT
        while self._fleet.has(replica) and result not in (ProbeResult.ANSWERED, ProbeResult.REFUSED):
            await asyncio.sleep(LOOK_EVERY_S)
            result = await self.look(replica)
        await asyncio.sleep(SETTLES_S)
        del self._silent[store, replica.id]
        log.info('store_unblocked store=%s replica=%s reason="%s"', store, replica.id, result.value)


class _Losses:
    """What became of one operation's attempts so far."""

    def __init__(self, leaders: Leaders, act: Act, store: str) -> None:
        self.excluded: tuple[str, ...] = ()
        self._leaders = leaders
        self._act = act
        self._store = store
        self._lost: Replica | None = None
        self._living: set[str] = set()
        """Those that lost it once and went on living."""

    async def after(self, refused: Refused, attempt: _Attempt, excluded: tuple[str, ...]) -> None:
        """Returns where another attempt makes sense; raises StoreError where none does."""
        site = attempt.site
        if site is not None and site.is_asked:
            await self._broke_off(site.replica, excluded)
        elif site is not None and attempt.is_interrupted and refused.refusal is Refusal.EXHAUSTED:
            self.excluded = excluded  # it went down before anything was asked of it
        elif self._lost is not None and refused.refusal is not Refusal.STOPPING:
            id = self._lost.id
            raise StoreError(
                502, f"replica {id} was lost in the middle of the pull, and no other one of its store can go on", id
            ) from refused
        else:
            status, message = refusal_answer(refused.refusal)
            raise StoreError(status, message, retry_after_s=refused.retry_after_s) from refused

    async def _broke_off(self, replica: Replica, excluded: tuple[str, ...]) -> None:
        act, id = self._act.value, replica.id
        result = await self._leaders.look(replica)
        if result not in (ProbeResult.ANSWERED, ProbeResult.REFUSED):
            self._leaders.block(self._store, replica)
            raise StoreError(
                502,
                f"replica {id} stopped answering in the middle of the {act}, which may or may not have been carried "
                f"out: nothing else is changed in its model store until it answers again or has ended",
                id,
            )
        if self._act is not Act.PULL:
            message = f"the connection to replica {id} was lost: the {act} may or may not have been carried out"
            raise StoreError(502, message, id)
        self._lost, self.excluded = replica, excluded
        if result is ProbeResult.ANSWERED and id not in self._living:
            self._living.add(id)
            self.excluded = tuple(each for each in excluded if each != id)
            await asyncio.sleep(SETTLES_S)


class _Downloads:
    """Where each store is being downloaded into."""

    def __init__(self) -> None:
        self._places: dict[object, tuple[str, str]] = {}
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def one(self, store: str, replica: Replica) -> AsyncIterator[None]:
        """Waits while another replica of the store has one."""
        place = store, f"{replica.id} {replica.host}:{replica.port}"
        while any(other[0] == store and other != place for other in self._places.values()):
            await self._changed.wait()
        token = object()
        self._places[token] = place
        try:
            yield
        finally:
            del self._places[token]
            self._changed.set()
            self._changed = asyncio.Event()
