"""Polls every replica side by side and tells what came back; no replica can hold up another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from random import Random

from corral.gateway.serve.agreement import Agreement
from corral.gateway.serve.part import PAGE_WAIT_S
from corral.gateway.serve.recent import Recent
from corral.gateway.serve.views import ReplicaPages, Union
from corral.gateway.serve.watch import Feed, Probe, Watch
from corral.model import Replica, TreeLoad
from corral.probes.ollama import TagsEntry

log = logging.getLogger(__name__)


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
        self.recent = Recent(clock)
        """To be told of what the gateway begins and ends at the replicas."""
        self._union = Union()
        self._agreement = Agreement()
        self.found_hidden: Callable[[str, tuple[str, ...]], None] = lambda store, names: None
        """To be told which models a store has under names of the gateway's own."""
        self.on_tree: Callable[[str, TreeLoad, float], None] = lambda replica_id, tree, taken_s: None
        """To be told what a Corral said of those below it, and when it was asked."""
        self._watches: dict[str, Watch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def set_replicas(self, replicas: Iterable[Replica]) -> None:
        """Watch exactly these from now on; one whose address did not change keeps its watch and its pages."""
        wanted = {replica.id: replica for replica in replicas}
        for replica_id, watch in list(self._watches.items()):
            if replica_id not in wanted or not watch.is_at(wanted[replica_id]):
                self._watches.pop(replica_id).stop()
        for replica_id, replica in wanted.items():
            if replica_id in self._watches:
                self._watches[replica_id].replica = replica
            else:
                self._watches[replica_id] = self._watch(replica)

        self._agreement.use({replica.id: replica.store for replica in wanted.values()})

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

    def knows_memory(self, replica_id: str) -> bool:
        """Whether what was last read of its memory shows all that the gateway itself has caused there so far."""
        watch = self._watches.get(replica_id)
        return watch is not None and watch.knows_memory

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

    async def catch_up_tags(self, replica_ids: Iterable[str], *, anew: bool = False) -> None:
        """Wait briefly for lists of models of these replicas that were read after the first time that they answered,
        and after the last change of their store that is known; ``anew``: after this call in any case."""
        await self._wait_for(watch.fresh_tags(anew=anew) for watch in self._those(replica_ids))

    async def catch_up_ps(self, replica_ids: Iterable[str], is_unsettled: Callable[[str], bool]) -> None:
        """Have the pages of memory of these replicas show what the gateway itself has caused there so far.

        Only those are read where it began or ended something since their last reading, or where what is in memory
        ``is_unsettled``. It is waited for briefly, not for a slow one, and concurrent calls share readings.
        """
        await self._wait_for(
            watch.fresh_ps(unsettled=is_unsettled(watch.replica.id)) for watch in self._those(replica_ids)
        )

    def store_changed(self, store: str) -> None:
        """Something was done to it: its replicas' lists are of before, until they are read or one is adopted."""
        self._agreement.changed(store)
        for watch in self._watches.values():
            if watch.replica.store == store:
                watch.tags.is_behind = True

    def adopt_tags(self, replica_id: str, page: tuple[TagsEntry, ...], began_s: float) -> None:
        """What a replica listed since its store was changed: all that share the store would say the same now."""
        adopting = self._watches.get(replica_id)
        if adopting is None:
            return
        store = adopting.replica.store
        self._agreement.changed(store)
        for watch in [watch for watch in self._watches.values() if watch.replica.store == store]:
            if watch is adopting or self._agreement.is_one(store):
                watch.adopt_tags(page, began_s)
            else:
                watch.tags.ask()

    @property
    def advice(self) -> tuple[str, ...]:
        """What an operator should know of the replicas' stores."""
        return self._agreement.advice

    def _listed(self, watch: Watch) -> None:
        if watch.hidden:
            self.found_hidden(watch.replica.store, watch.hidden)
        if self._agreement.read(watch.pages, self._clock()):
            log.warning('advice text="%s"', self._agreement.sentence(watch.replica.store))

    def _those(self, replica_ids: Iterable[str]) -> list[Watch]:
        return [self._watches[replica_id] for replica_id in replica_ids if replica_id in self._watches]

    @staticmethod
    async def _wait_for(readings: Iterable[asyncio.Future[None] | None]) -> None:
        waited = {reading for reading in readings if reading is not None}
        if waited:
            await asyncio.wait(waited, timeout=PAGE_WAIT_S)

    def union(self, replica_ids: Iterable[str]) -> Union:
        """The models of these replicas, as if they had one store."""
        return self._union.of(self.pages(replica_id) for replica_id in replica_ids)

    def pages(self, replica_id: str) -> ReplicaPages:
        """What the replica last answered; nothing, for one that is not watched."""
        watch = self._watches.get(replica_id)
        return ReplicaPages(replica_id) if watch is None else watch.pages

    async def close(self) -> None:
        """Stop all watches and wait until they have ended."""
        self.set_replicas(())
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _watch(self, replica: Replica) -> Watch:
        watch = Watch(
            replica,
            self._probe_for(replica),
            self._feed,
            self.recent,
            self._listed,
            self._clock,
            self._rng,
            self._interval_s,
        )
        watch.on_tree = lambda replica_id, tree, taken_s: self.on_tree(replica_id, tree, taken_s)
        self._tasks.update(watch.tasks)
        for task in watch.tasks:
            task.add_done_callback(self._tasks.discard)
        return watch
