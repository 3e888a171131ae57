"""The operations under way: each waits for its turn, is carried out in every store that it concerns, and ends alike for
all who wait for it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from corral.errors import Refusal
from corral.gateway.run.own_requests import in_one_line
from corral.gateway.store.audience import Listener
from corral.gateway.store.changes import Changes
from corral.gateway.store.fleet import Fleet, Targets
from corral.gateway.store.gate import Gate
from corral.gateway.store.mutation import Act, Mutation, Reach
from corral.gateway.store.operation import Operation, PullView
from corral.gateway.store.said import Outcome, Said, StoreError, combine
from corral.gateway.wire.dialect import SERVER_BUSY, refusal_answer

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

log: Final = logging.getLogger("corral.gateway")

_CARRIED_TO_THE_END: Final = (Act.COPY, Act.DELETE)
"""Once begun: they are done in a moment, and half of one is worse than one that nobody waited for."""

MOST_UNDER_WAY: Final = 2048
"""Each has a connection to a replica, and some go on when their clients have left."""

_PullKey = tuple[str, str]


class Operations:
    """All of them. Close it."""

    def __init__(self, gateway: Gateway, fleet: Fleet, gate: Gate, changes: Changes) -> None:
        self._gateway = gateway
        self._fleet = fleet
        self._gate = gate
        self._changes = changes
        self._under_way: list[Operation] = []
        self._pulls: dict[_PullKey, Operation] = {}
        """Those that others may join."""
        self._is_closed = False

    def begin(self, mutation: Mutation, *, is_detached: bool = False) -> Operation:
        """A new one, or the pull of the same that is under way."""
        key = _key_of(mutation)
        joined = None if key is None else self._pulls.get(key)
        if joined is not None:
            joined.is_detached |= is_detached
            return joined
        operation = Operation(mutation, self._gateway.clock(), is_detached=is_detached)
        if self._is_closed or len(self._under_way) >= MOST_UNDER_WAY:
            operation.end(_stopping() if self._is_closed else StoreError(503, SERVER_BUSY, retry_after_s=1).said())
            return operation
        self._under_way.append(operation)
        if key is not None:
            self._pulls[key] = operation
        task = operation.task = asyncio.create_task(self._carry(operation), name=mutation.act.value)
        task.add_done_callback(lambda task: self._ended(operation, task))
        return operation

    def leave(self, operation: Operation, listener: Listener) -> None:
        """It ends with the last one who waits for it, unless it is to go on."""
        operation.audience.leave(listener)
        if not (operation.is_over or operation.is_detached or len(operation.audience)) and operation.task is not None:
            operation.task.cancel()
            self._forget(operation)

    def pulls(self) -> tuple[PullView, ...]:
        return tuple(view for operation in self._under_way for view in operation.views())

    async def close(self) -> None:
        self._is_closed = True
        tasks = [operation.task for operation in self._under_way if operation.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, operation: Operation) -> None:
        try:
            async with self._gate.turn(operation.mutation.claim(frozenset(self._fleet.names()))):
                operation.is_detached |= operation.mutation.act in _CARRIED_TO_THE_END
                targets = self._fleet.targets()
                operation.begin(targets.stores)
                said = combine(await self._everywhere(operation, targets))
        except StoreError as error:
            said = error.said()
        self._forget(operation)
        operation.end(said)

    def _ended(self, operation: Operation, task: asyncio.Task[None]) -> None:
        """However it ended, nobody waits for ever."""
        self._under_way.remove(operation)
        self._forget(operation)
        if operation.is_over:
            return
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._gateway.report_bug("store", error)
        operation.end(_stopping() if error is None else StoreError(500, "internal error of the gateway").said())

    def _forget(self, operation: Operation) -> None:
        """Nobody can join it any more."""
        key = _key_of(operation.mutation)
        if key is not None and self._pulls.get(key) is operation:
            del self._pulls[key]

    async def _everywhere(self, operation: Operation, targets: Targets) -> list[Outcome]:
        stores, insist = targets.stores, len(targets.stores) == 1
        if operation.mutation.act is Act.PUSH:
            outcomes = await self._first(operation, stores, insist=insist)
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._in(operation, store, insist=insist)) for store in stores]
            outcomes = [task.result() for task in tasks]
            outcomes += [_down(words) for words in targets.down.values()]
        if stores and all(outcome.said.is_absent for outcome in outcomes):
            operation.begin(stores[:1])
            return [await self._in(operation, stores[0], insist=True)]  # in Ollama's own words
        return outcomes

    async def _first(self, operation: Operation, stores: tuple[str, ...], *, insist: bool) -> list[Outcome]:
        """One store is enough."""
        outcomes = []
        for store in stores:
            operation.begin((store,))
            outcomes.append(await self._in(operation, store, insist=insist))
            if not outcomes[-1].said.is_absent:
                break
        return outcomes

    async def _in(self, operation: Operation, store: str, *, insist: bool) -> Outcome:
        mutation, began_s = operation.mutation, self._gateway.clock()
        about = f"store={store} model={in_one_line(mutation.model or '-')}"
        if mutation.act is Act.PULL:
            log.info("pull_started %s", about)
        outcome: Outcome | None = None
        try:
            done = await self._changes.carry_out(mutation, store, operation.ear(store), insist=insist)
            outcome = Outcome(done.replica.id, done.said)
        except StoreError as failure:
            outcome = Outcome(failure.replica_id or f"the store {store!r}", failure.said())
        finally:
            self._log(f"{mutation.act.value}_ended {about}", outcome, self._gateway.clock() - began_s)
        operation.ended_in(store, ok=outcome.said.ok)
        return outcome

    @staticmethod
    def _log(event: str, outcome: Outcome | None, seconds: float) -> None:
        if outcome is not None and outcome.said.is_absent:
            return
        error = "cancelled" if outcome is None else "" if outcome.said.ok else outcome.said.message
        log.info('%s seconds=%.1f error="%s"', event, seconds, in_one_line(error))


def _key_of(mutation: Mutation) -> _PullKey | None:
    if mutation.act is not Act.PULL or mutation.reach is not Reach.NAMED:
        return None
    return mutation.model or "", mutation.rest


def _down(words: str) -> Outcome:
    return Outcome(words, StoreError(503, "no answer").said())


def _stopping() -> Said:
    status, message = refusal_answer(Refusal.STOPPING)
    return StoreError(status, message).said()
