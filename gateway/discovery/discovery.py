"""Keeps looking for replicas, and tells the gateway which there are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final, Protocol

import aiohttp

from corral.gateway.config.discovery import DiscoveryConfig, DnsConfig, KubernetesConfig
from corral.gateway.discovery.dns import DnsSource
from corral.gateway.discovery.endpoint import Endpoint, Known, replicas_of
from corral.gateway.discovery.kubernetes import KubernetesSource
from corral.model import Hold, Replica

log: Final = logging.getLogger("corral.gateway")

_SWEEP_S: Final = 0.5
_INSIST_S: Final = 0.5
GONE: Final = "no longer found"
LEAVING: Final = "about to end, as its cluster says"


class DiscoveryFeed(Protocol):
    """Who wants to know. Called on the event loop."""

    def set_discovered(self, replicas: tuple[Replica, ...]) -> None:
        """These were found, those that are leaving among them."""
        ...

    def hold_discovered(self, replica_id: str, hold: Hold | None) -> None: ...


class Source(Protocol):
    """Where replicas are found."""

    name: str

    @property
    def is_final(self) -> bool:
        """Whether what it no longer lists is gone for sure."""
        ...

    async def run(self, found: Callable[[Sequence[Endpoint]], None]) -> None: ...


class Discovery:
    """Built by ``app.py``. Call :meth:`use` with each configuration, and :meth:`close` at the end."""

    def __init__(
        self, feed: DiscoveryFeed, session: aiohttp.ClientSession, clock: Callable[[], float], rng: Random
    ) -> None:
        self._feed = feed
        self._session = session
        self._clock = clock
        self._rng = rng
        self._config = DiscoveryConfig()
        self._known: dict[str, Known] = {}
        """By the name of a source."""
        self._tasks: dict[DnsConfig | KubernetesConfig, tuple[Source, asyncio.Task[None]]] = {}
        self._ended: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._told: tuple[Replica, ...] = ()
        self._held: dict[str, str] = {}
        self._awaited: set[str] = set()
        self.looked = asyncio.Event()
        """Every source has answered once."""
        self.looked.set()

    def sources(self, config: DiscoveryConfig | None) -> list[Source]:
        """What the configuration asks for, made but not begun. Raises OperatorError where it cannot be had here."""
        wanted = [] if config is None else [each for each in (config.dns, config.kubernetes) if each is not None]
        return [self._tasks[each][0] if each in self._tasks else self._source(each) for each in wanted]

    def _source(self, wanted: DnsConfig | KubernetesConfig) -> Source:
        if isinstance(wanted, DnsConfig):
            return DnsSource(wanted, self._rng)
        return KubernetesSource(wanted, self._session, self._rng)

    def use(self, config: DiscoveryConfig | None) -> None:
        """Look there from now on; a source that stays keeps what it found. Raises OperatorError as :meth:`sources`."""
        sources = self.sources(config)
        self._config = DiscoveryConfig() if config is None else config
        wanted = [each for each in (self._config.dns, self._config.kubernetes) if each is not None]
        for gone in [each for each in self._tasks if each not in wanted]:
            self._end(self._tasks.pop(gone)[1])
        names = {source.name for source in sources}
        self._known = {name: known for name, known in self._known.items() if name in names}
        self._awaited &= names
        for each, source in zip(wanted, sources, strict=True):
            self._known.setdefault(source.name, Known(self._config.leaving_s)).leaving_s = self._config.leaving_s
            if each not in self._tasks:
                self._awaited.add(source.name)
                self._tasks[each] = source, asyncio.create_task(self._run(source), name=f"discovery {source.name}")
        if self._tasks and self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep(), name="discovery")
        self._settle()

    async def close(self) -> None:
        for _, task in self._tasks.values():
            self._end(task)
        self._tasks.clear()
        if self._sweeping is not None:
            self._end(self._sweeping)
            self._sweeping = None
        if self._ended:
            await asyncio.wait(self._ended)

    def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        ending = asyncio.create_task(_insist(task), name=f"end of {task.get_name()}")
        self._ended.add(ending)
        ending.add_done_callback(self._ended.discard)

    async def _run(self, source: Source) -> None:
        """The boundary of a source's task: whatever it does, it is begun again."""
        while True:
            try:
                await source.run(partial(self._found, source))
            except Exception:
                log.exception('discovery_crashed source="%s"', source.name)
                await asyncio.sleep(self._rng.uniform(1.0, 5.0))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            for known in self._known.values():
                known.forget_old(self._clock())
            self._tell()

    def _found(self, source: Source, endpoints: Sequence[Endpoint]) -> None:
        known = self._known.get(source.name)
        if known is None:
            return
        known.read(endpoints, self._clock(), is_final=source.is_final)
        self._awaited.discard(source.name)
        self._settle()

    def _settle(self) -> None:
        self._tell()
        if self._awaited:
            self.looked.clear()
        else:
            self.looked.set()

    def _tell(self) -> None:
        """What has changed since the last time. One that one source keeps and another has lost is kept."""
        replicas = replicas_of({name: known.endpoints for name, known in self._known.items()}, self._config)
        if replicas != self._told:
            self._log(replicas)
            self._told = replicas
            self._feed.set_discovered(replicas)
        held = self._holds()
        for id in self._held.keys() - held.keys():
            if any(replica.id == id for replica in replicas):
                log.info("discovery_back replica=%s", id)
                self._feed.hold_discovered(id, None)
        for id, why in held.items():
            if self._held.get(id) != why:
                log.info('discovery_leaving replica=%s reason="%s"', id, why)
                self._feed.hold_discovered(id, Hold(why, coming=False))
        self._held = held

    def _holds(self) -> dict[str, str]:
        leaving: dict[str, bool] = {}
        for known in self._known.values():
            leaving |= known.leaving
        for known in self._known.values():
            for endpoint in known.endpoints:
                if endpoint.id not in known.leaving:
                    leaving.pop(endpoint.id, None)
        return {id: LEAVING if is_listed else GONE for id, is_listed in leaving.items()}

    def _log(self, replicas: tuple[Replica, ...]) -> None:
        before, after = {each.id: each for each in self._told}, {each.id: each for each in replicas}
        for id in after.keys() - before.keys():
            log.info('discovery_found replica=%s port=%d source="%s"', id, after[id].port, after[id].found_by)
        for id in before.keys() - after.keys():
            log.info("discovery_forgotten replica=%s", id)


async def _insist(task: asyncio.Task[None]) -> None:
    """Cancel it until it has ended: a wait with a limit may swallow that, where both come at once (Python 3.11)."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_INSIST_S)
