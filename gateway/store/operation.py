"""One operation on the stores, from its beginning to its end, and those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from corral.gateway.store.audience import Audience
from corral.gateway.store.lines import Line
from corral.gateway.store.merge import Merge
from corral.gateway.store.mutation import Act, Mutation
from corral.gateway.store.said import Said


@dataclass(frozen=True, slots=True)
class PullView:
    """A pull that is under way, or waits for its turn, in one store."""

    model: str
    store: str
    waiting: int
    """Callers; it goes on without any where the operator wants it."""
    completed_bytes: int | None
    """Of its layers as far as they are known; None: of none yet."""
    total_bytes: int | None
    since_s: float
    """When it was asked for, on the gateway's monotonic clock."""


class Operation:
    """Its task is made, and ended, by :class:`corral.gateway.store.stores.Stores`."""

    def __init__(self, mutation: Mutation, since_s: float, *, is_detached: bool) -> None:
        self.mutation = mutation
        self.since_s = since_s
        self.is_detached = is_detached
        """It goes on although nobody waits for it."""
        self.is_over = False
        self.audience = Audience()
        self.replica_id: str | None = None
        """Who does it; None: nobody yet, or several."""
        self.task: asyncio.Task[None] | None = None
        self._stores: tuple[str, ...] = ()
        self._merge = Merge(())

    def begin(self, stores: tuple[str, ...]) -> None:
        """It is its turn, in these."""
        self._stores = stores
        self._merge = Merge(stores)

    def ear(self, store: str) -> StoreEar:
        return StoreEar(self, store)

    def begun_at(self, replica_id: str) -> None:
        if self._merge.is_of_one:
            self.replica_id = replica_id
            self.audience.anew()

    def hear(self, store: str, line: Line) -> None:
        self._tell(self._merge.hear(store, line))

    def ended_in(self, store: str, *, ok: bool) -> None:
        self._tell(self._merge.ended(store, ok=ok))

    def end(self, said: Said) -> None:
        self.is_over = True
        self.audience.end(said)

    def views(self) -> Iterable[PullView]:
        if self.mutation.act is not Act.PULL:
            return
        for store in self._stores or ("",):
            sizes = self._merge.bytes_of(store)
            completed, total = sizes or (None, None)
            yield PullView(self.mutation.model or "", store, len(self.audience), completed, total, self.since_s)

    def _tell(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self.audience.tell(line)


class StoreEar:
    """What an operation hears of one store."""

    def __init__(self, operation: Operation, store: str) -> None:
        self._operation = operation
        self._store = store

    def begun(self, replica_id: str) -> None:
        self._operation.begun_at(replica_id)

    def hear(self, line: Line) -> None:
        self._operation.hear(self._store, line)
