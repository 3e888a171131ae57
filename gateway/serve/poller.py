"""Polls every replica side by side and tells what came back; no replica can hold up another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Protocol

from corral.gateway.serve.views import ReplicaPages
from corral.model import OllamaSample, ProbeResult, Replica
from corral.probes.ollama import Miss, PsEntry, TagsEntry

log = logging.getLogger(__name__)

LIVENESS_SHARE = 0.8
"""A liveness probe may take this share of the interval."""
MAX_LIVENESS_S = 1.0
DOUBT_PROBES = 3
"""So many failed probes in a row settle the matter; between the first and the last of them there is doubt."""
DOUBT_SHARE = 0.55
"""In doubt, of both the interval and what a probe may take: a replica that froze right after a good probe has failed
three within 2.7 intervals."""
PAGE_DEADLINE_S = 5.0
"""For tags and ps. Ollama answers ps late while it loads; waiting costs nothing, they hold up only themselves."""
TAGS_EVERY = 5
"""Rounds: a store changes rarely, and who changes it through the gateway asks for a refresh."""
KICK_GAP_S = 0.05
"""Least time between two rounds, however many failed requests ask for one."""


class Feed(Protocol):
    """Where the readings go. Called on the event loop, never after the replica's removal; must not block."""

    def probed(self, replica_id: str, result: ProbeResult) -> None: ...

    def sampled(self, sample: OllamaSample) -> None:
        """A part that was read. A failed reading sends none: what is known grows old instead of turning to zero."""
        ...

    def probe_seconds(self, replica_id: str, part: str, seconds: float, ok: bool) -> None:
        """One reading of ``part`` (version, tags, ps) took so long and could be used or not."""
        ...


class Probe(Protocol):
    """One replica's probe, see :class:`corral.probes.ollama.OllamaProbe`."""

    async def liveness(self, deadline_s: float) -> tuple[ProbeResult, str | None]: ...

    async def tags(self, deadline_s: float) -> tuple[TagsEntry, ...] | Miss: ...

    async def ps(self, deadline_s: float) -> tuple[PsEntry, ...] | Miss: ...


class Poller:
    """Keeps one watch per replica. Call :meth:`close` before the probes' session is closed."""

    def __init__(
        self,
        probe_for: Callable[[Replica], Probe],
        feed: Feed,
        clock: Callable[[], float],
        rng: Random,
        interval_s: float = 1.0,
    ) -> None:
        self._probe_for = probe_for
        self._feed = feed
        self._clock = clock
        self._rng = rng
        self._interval_s = interval_s
        self._watches: dict[str, _Watch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def set_replicas(self, replicas: Iterable[Replica]) -> None:
        """Watch exactly these from now on; one whose address did not change keeps its watch and its pages."""
        wanted = {replica.id: replica for replica in replicas}
        for replica_id, watch in list(self._watches.items()):
            if replica_id not in wanted or not watch.is_at(wanted[replica_id]):
                self._watches.pop(replica_id).stop()
        for replica_id, replica in wanted.items():
            if replica_id not in self._watches:
                self._watches[replica_id] = self._watch(replica)

    def set_interval(self, interval_s: float) -> None:
        """Probe in this rhythm from now on."""
        if interval_s != self._interval_s:
            self._interval_s = interval_s
            for watch in self._watches.values():
                watch.set_interval(interval_s)

    def anew(self, replica_id: str) -> None:
        """Another process answers there now: what was read of the last one says nothing of it."""
        watch = self._watches.get(replica_id)
        if watch is not None:
            watch.anew()

    def kick(self, replica_id: str | None = None) -> None:
        """Probe that replica's liveness (None: every one's) at once; kicks during a probe make one more of them."""
        for watch in self._watches.values():
            if replica_id in (None, watch.replica.id):
                watch.kick()

    def read_memory(self, replica_id: str) -> None:
        """Read what the replica holds in memory at once: that has just changed."""
        watch = self._watches.get(replica_id)
        if watch is not None:
            watch.ps.ask()

    def spelled(self, replica_id: str, model: str) -> str:
        """The model's name as the replica itself writes it, where it is known to have the model."""
        entries = self.pages(replica_id).tags or ()
        return next((entry.spelled for entry in entries if entry.model.name == model), model)

    def is_silent(self, replica_id: str) -> bool:
        """Whether the replica's last liveness probe failed."""
        watch = self._watches.get(replica_id)
        return watch is not None and watch.is_silent

    async def refresh(self, *, tags: bool, ps: bool, deadline_s: float) -> None:
        """Wait for readings that begin after this call, of all replicas that are not known to be down.

        Returns at the deadline at the latest; what is late is fed when it comes. Concurrent calls share readings.
        """
        parts = [watch.tags for watch in self._watches.values() if tags and not watch.is_silent]
        parts += [watch.ps for watch in self._watches.values() if ps and not watch.is_silent]
        if parts:
            await asyncio.wait([part.ask() for part in parts], timeout=deadline_s)

    def pages(self, replica_id: str) -> ReplicaPages:
        """What the replica last answered; nothing, for one that is not watched."""
        watch = self._watches.get(replica_id)
        return ReplicaPages(replica_id) if watch is None else watch.pages

    async def close(self) -> None:
        """Stop all watches and wait until they have ended."""
        self.set_replicas(())
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _watch(self, replica: Replica) -> _Watch:
        watch = _Watch(replica, self._probe_for(replica), self._feed, self._clock, self._rng, self._interval_s)
        self._tasks.update(watch.tasks)
        for task in watch.tasks:
            task.add_done_callback(self._tasks.discard)
        return watch


class _Watch:
    """The polling of one replica: its liveness on a beat, its pages beside it."""

    def __init__(
        self, replica: Replica, probe: Probe, feed: Feed, clock: Callable[[], float], rng: Random, interval_s: float
    ) -> None:
        self.replica = replica
        self.pages = ReplicaPages(replica.id)
        self.tags = _Part(lambda: self._guarded("tags", self._read_tags))
        self.ps = _Part(lambda: self._guarded("ps", self._read_ps))
        self._probe = probe
        self._feed = feed
        self._clock = clock
        self._rng = rng
        self._interval_s = interval_s
        self._due_s = 0.0
        self._kicked = asyncio.Event()
        self._result: ProbeResult | None = None
        self._misses = 0
        self._rounds = 0
        self._trouble: dict[str, str] = {}
        loops = (self._watch_liveness(), self.tags.run(), self.ps.run())
        self.tasks = [asyncio.create_task(loop, name=f"watch {replica.id}") for loop in loops]

    @property
    def is_silent(self) -> bool:
        """Whether its last liveness probe failed (never probed is not silent)."""
        return self._result not in (None, ProbeResult.ANSWERED)

    @property
    def _in_doubt(self) -> bool:
        return 0 < self._misses < DOUBT_PROBES

    def is_at(self, replica: Replica) -> bool:
        return (self.replica.host, self.replica.port) == (replica.host, replica.port)

    def stop(self) -> None:
        # Each task by itself: a task group would let its children run, and feed, once more.
        for task in self.tasks:
            task.cancel()

    def kick(self) -> None:
        self._kicked.set()

    def anew(self) -> None:
        self._result, self._misses = None, 0
        self.pages = replace(self.pages, ps=None, ps_at_s=None)
        self.kick()

    def set_interval(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._due_s = min(self._due_s, asyncio.get_running_loop().time() + interval_s)
        self.kick()  # it may be waiting for the old beat

    async def _watch_liveness(self) -> None:
        loop = asyncio.get_running_loop()
        scheduled = True
        while True:
            began_s = loop.time()
            if scheduled:
                # Spread downwards only: jitter keeps replicas out of step and must not delay finding one dead.
                self._due_s = began_s + self._interval_s * self._rng.uniform(0.9, 1.0)
            await self._guarded("version", self._read_scheduled if scheduled else self._read_liveness)
            if self._in_doubt:
                self._due_s = min(self._due_s, began_s + self._interval_s * DOUBT_SHARE)
            await asyncio.sleep(max(0.0, began_s + min(KICK_GAP_S, self._interval_s) - loop.time()))
            kicked = await self._kicked_before(self._due_s)
            scheduled = not kicked or loop.time() >= self._due_s

    async def _kicked_before(self, due_s: float) -> bool:
        try:
            async with asyncio.timeout_at(due_s):
                await self._kicked.wait()
        except TimeoutError:
            return False
        self._kicked.clear()
        return True

    async def _read_scheduled(self) -> Miss | None:
        await self._read_liveness()
        self._rounds += 1
        if not self.is_silent:
            self.ps.ask()
            if self._rounds % TAGS_EVERY == 0:
                self.tags.ask()
        return None

    async def _read_liveness(self) -> Miss | None:
        began_s = self._clock()
        deadline_s = min(self._interval_s * LIVENESS_SHARE, MAX_LIVENESS_S) * (DOUBT_SHARE if self._in_doubt else 1.0)
        result, version = await self._probe.liveness(deadline_s)
        answered = result is ProbeResult.ANSWERED
        appeared = answered and self._result is not ProbeResult.ANSWERED
        self._result = result
        self._misses = 0 if answered else self._misses + 1
        self._feed.probe_seconds(self.replica.id, "version", self._clock() - began_s, answered)
        self._feed.probed(self.replica.id, result)
        if version is not None and version != self.pages.version:
            self.pages = replace(self.pages, version=version)
            self._feed.sampled(OllamaSample(self.replica.id, began_s, version, None, None))
        if appeared:  # it may be a new process, with another store and nothing loaded
            self.tags.ask()
            self.ps.ask()
        return None

    async def _read_tags(self) -> Miss | None:
        began_s = self._clock()
        page = await self._probe.tags(PAGE_DEADLINE_S)
        self._feed.probe_seconds(self.replica.id, "tags", self._clock() - began_s, not isinstance(page, Miss))
        if isinstance(page, Miss):
            return page
        self.pages = replace(self.pages, tags=page, tags_at_s=began_s)
        installed = tuple(entry.model for entry in page)
        self._feed.sampled(OllamaSample(self.replica.id, began_s, self.pages.version, installed, None))
        return None

    async def _read_ps(self) -> Miss | None:
        began_s = self._clock()
        page = await self._probe.ps(PAGE_DEADLINE_S)
        self._feed.probe_seconds(self.replica.id, "ps", self._clock() - began_s, not isinstance(page, Miss))
        if isinstance(page, Miss):
            return page
        self.pages = replace(self.pages, ps=page, ps_at_s=began_s)
        loaded = tuple(entry.model for entry in page)
        self._feed.sampled(OllamaSample(self.replica.id, began_s, self.pages.version, None, loaded))
        return None

    async def _guarded(self, part: str, read: Callable[[], Awaitable[Miss | None]]) -> None:
        """The loops' boundary: nothing a reading does ends the loop, and each change of its state is logged once."""
        try:
            miss = await read()
        except Exception as error:
            if self._changed(part, repr(error)):
                log.exception("probe_crashed replica=%s part=%s", self.replica.id, part)
            return
        if not self._changed(part, "" if miss is None else miss.value):
            return
        if miss is None:
            log.info("probe_recovered replica=%s part=%s", self.replica.id, part)
        else:
            log.warning('probe_failed replica=%s part=%s reason="%s"', self.replica.id, part, miss.value)

    def _changed(self, part: str, trouble: str) -> bool:
        before = self._trouble.get(part, "")
        self._trouble[part] = trouble
        return trouble != before


class _Part:
    """One page of one replica: one reading at a time; who asks meanwhile shares the next."""

    def __init__(self, read: Callable[[], Awaitable[None]]) -> None:
        self._read = read
        self._asked = asyncio.Event()
        self._next: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ask(self) -> asyncio.Future[None]:
        """Done when a reading that begins after this call has ended (or none will, because the watch stopped)."""
        self._asked.set()
        return self._next

    async def run(self) -> None:
        reading = self._next
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                reading, self._next = self._next, asyncio.get_running_loop().create_future()
                await self._read()
                reading.set_result(None)
        finally:
            for waited in {reading, self._next}:
                if not waited.done():
                    waited.set_result(None)
