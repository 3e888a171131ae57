"""The watch over one replica: its liveness on a beat, its pages beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random
from typing import Protocol

from corral.gateway.serve.part import Part
from corral.gateway.serve.recent import Recent
from corral.gateway.serve.views import ReplicaPages
from corral.gateway.store.names import is_ours
from corral.model import OllamaSample, ProbeResult, Replica, TreeLoad
from corral.probes.corral import CorralProbe
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
SETTLES_S = 0.25
"""What was begun or ended just before a reading may take effect just after it: so long another one is worth a page's
while."""


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


class Watch:
    """The polling of one replica: its liveness on a beat, its pages beside it."""

    def __init__(
        self,
        replica: Replica,
        probe: Probe,
        feed: Feed,
        recent: Recent,
        listed: Callable[[Watch], None],
        clock: Callable[[], float],
        rng: Random,
        interval_s: float,
    ) -> None:
        self.replica = replica
        self.pages = ReplicaPages(replica.id)
        self.hidden: tuple[str, ...] = ()
        """Models that it listed last under names of the gateway's own."""
        self.tags = Part(lambda: self._guarded("tags", self._read_tags))
        self.ps = Part(lambda: self._guarded("ps", self._read_ps))
        self.tree = Part(lambda: self._guarded("load", self._read_tree))
        """Of a Corral: how those below it stand."""
        self.on_tree: Callable[[str, TreeLoad, float], None] = lambda replica_id, tree, taken_s: None
        self._probe = probe
        self._feed = feed
        self._recent = recent
        self._listed = listed
        """To be told that there is a new list of models."""
        self._clock = clock
        self._rng = rng
        self._interval_s = interval_s
        self._due_s = 0.0
        self._kicked = asyncio.Event()
        self._result: ProbeResult | None = None
        self._misses = 0
        self._rounds = 0
        self._adoptions = 0
        self._settles_until_s = 0.0
        self._trouble: dict[str, str] = {}
        loops = [self._watch_liveness(), self.tags.run(), self.ps.run()]
        if isinstance(probe, CorralProbe):
            loops.append(self.tree.run())
        self.tasks = [asyncio.create_task(loop, name=f"watch {replica.id}") for loop in loops]

    @property
    def is_silent(self) -> bool:
        """Whether its last liveness probe failed (never probed is not silent)."""
        return self._result not in (None, ProbeResult.ANSWERED)

    @property
    def _in_doubt(self) -> bool:
        return 0 < self._misses < DOUBT_PROBES

    def is_at(self, replica: Replica) -> bool:
        mine = self.replica
        return (mine.host, mine.port, mine.admin) == (replica.host, replica.port, replica.admin)

    def stop(self) -> None:
        # Each task by itself: a task group would let its children run, and feed, once more.
        for task in self.tasks:
            task.cancel()

    def kick(self) -> None:
        self._kicked.set()

    def anew(self) -> None:
        self._result, self._misses = None, 0
        self.pages = replace(self.pages, ps=None, ps_at_s=None)
        self.tags.is_behind = self.ps.is_behind = True
        self.kick()

    def adopt_tags(self, page: tuple[TagsEntry, ...], began_s: float) -> None:
        """A list of the replica's store that somebody else has read since it changed; one that is being read now may be
        of before, and one that was begun to be read later knows more."""
        if self.pages.tags_at_s is not None and began_s < self.pages.tags_at_s:
            return
        self._adoptions += 1
        self.tags.is_behind = self.tags.is_catching_up = False
        self._take_tags(page, began_s)

    def fresh_tags(self, *, anew: bool) -> asyncio.Future[None] | None:
        """Done with a reading of the list of models that is behind nothing, or (``anew``) that begins now; None: the
        last one is not, or it is not worth waiting for."""
        return None if self.is_silent else self.tags.fresh(unsettled=anew)

    def fresh_ps(self, *, unsettled: bool) -> asyncio.Future[None] | None:
        """Done with a reading of memory that shows what the gateway itself has just caused there; None: the last one
        does, or it is not worth waiting for. ``unsettled``: it may change at any moment."""
        if self.is_silent:
            return None
        if self.replica.id in self._recent.touched:
            self.ps.is_behind = True
        return self.ps.fresh(unsettled=unsettled or self._clock() < self._settles_until_s)

    @property
    def knows_memory(self) -> bool:
        """Whether the last reading of memory shows all that the gateway itself has caused there so far."""
        is_behind = self.ps.is_behind or self.ps.is_catching_up or self.replica.id in self._recent.touched
        return not is_behind and self._clock() >= self._settles_until_s

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
            self.tree.ask()
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
            self.tags.is_behind = self.ps.is_behind = True
            self.tags.ask()
            self.ps.ask()
            self.tree.ask()
        return None

    async def _read_tree(self) -> Miss | None:
        assert isinstance(self._probe, CorralProbe)
        began_s = self._clock()
        page = await self._probe.tree(PAGE_DEADLINE_S)
        self._feed.probe_seconds(self.replica.id, "load", self._clock() - began_s, not isinstance(page, Miss))
        if isinstance(page, Miss):
            return page
        self.on_tree(self.replica.id, page, began_s)
        return None

    async def _read_tags(self) -> Miss | None:
        began_s, adoptions = self._clock(), self._adoptions
        page = await self._probe.tags(PAGE_DEADLINE_S)
        self._feed.probe_seconds(self.replica.id, "tags", self._clock() - began_s, not isinstance(page, Miss))
        self.tags.is_catching_up = False  # nor is one waited for that could not be read
        if isinstance(page, Miss):
            return page
        if adoptions == self._adoptions:
            self._take_tags(page, began_s)
        else:  # the store was changed meanwhile, and it may be of before
            self.tags.ask()
        return None

    def _take_tags(self, page: tuple[TagsEntry, ...], began_s: float) -> None:
        self.hidden = tuple(entry.model.name for entry in page if is_ours(entry.model.name))
        page = tuple(entry for entry in page if not is_ours(entry.model.name))
        if page == self.pages.tags:
            page = self.pages.tags  # whatever was made of it can be told to be of now
        self.pages = replace(self.pages, tags=page, tags_at_s=began_s)
        installed = tuple(entry.model for entry in page)
        self._feed.sampled(OllamaSample(self.replica.id, began_s, self.pages.version, installed, None))
        self._listed(self)

    async def _read_ps(self) -> Miss | None:
        began_s = self._clock()
        if self.replica.id in self._recent.touched:
            self._recent.touched.discard(self.replica.id)
            self.ps.is_catching_up = True
            self._settles_until_s = began_s + SETTLES_S
        page = await self._probe.ps(PAGE_DEADLINE_S)
        self._feed.probe_seconds(self.replica.id, "ps", self._clock() - began_s, not isinstance(page, Miss))
        if isinstance(page, Miss):
            return page
        self.ps.is_catching_up = False
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
