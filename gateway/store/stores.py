"""The model stores: everything that changes them goes through here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Final

import aiohttp

from corral.gateway.run.own_requests import in_one_line
from corral.gateway.serve.poller import Poller
from corral.gateway.store.blobs import Blobs
from corral.gateway.store.changes import Changes
from corral.gateway.store.fleet import Fleet
from corral.gateway.store.gate import Gate
from corral.gateway.store.leaders import Leaders
from corral.gateway.store.letting import Freezer, Letting
from corral.gateway.store.lists import Lists
from corral.gateway.store.mutation import ACTS, Mutation, deletion_of, pull_of, read_mutation
from corral.gateway.store.operation import Operation, PullView
from corral.gateway.store.operations import Operations
from corral.gateway.store.previous import Previous
from corral.gateway.store.requests import StoreRequests
from corral.gateway.store.said import Said, StoreError
from corral.gateway.store.turns import Claim, Sort
from corral.gateway.wire.answering import PLAIN_JSON, Answering
from corral.gateway.wire.routes import Duty
from corral.gateway.wire.upload import Upload

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

__all__ = ["PullView", "StoreError", "Stores"]

log: Final = logging.getLogger("corral.gateway")


class Stores:
    """Answers what clients ask of the stores, and does what the gateway itself wants done. Close it."""

    def __init__(self, gateway: Gateway, poller: Poller, session: aiohttp.ClientSession, rng: Random) -> None:
        self._fleet = Fleet(gateway)
        self._gate = Gate()
        self._requests = StoreRequests(lambda: gateway.timeouts.connect_s)
        self._lists = Lists(poller, session, gateway.clock)
        self._leaders = Leaders(gateway, self._fleet, session)
        self._previous = Previous(self._requests, self._lists, rng, self._remove_later)
        poller.found_hidden = self._previous.found
        letting = Letting(gateway, poller, self._fleet, session)
        self._changes = Changes(self._leaders, self._requests, self._lists, letting, Freezer(gateway), self._previous)
        self._operations = Operations(gateway, self._fleet, self._gate, self._changes)
        self._blobs = Blobs(gateway, self._fleet, self._requests)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    # -- clients

    def answer(self, answering: Answering, upload: Upload | None) -> Coroutine[object, object, None] | None:
        """For :attr:`Duty.STORE` and :attr:`Duty.BLOB`. None: an exchange is to get it."""
        if answering.route.duty is Duty.BLOB:
            return self._blobs.answer(answering, upload)
        act, head = ACTS.get(answering.head.path), answering.head
        if act is None:
            return None
        return self._answer(answering, read_mutation(act, answering.body, head.content_type or PLAIN_JSON))

    async def _answer(self, answering: Answering, mutation: Mutation) -> None:
        answering.model = mutation.model
        operation = self._operations.begin(mutation)
        listener = operation.audience.join()
        try:
            if mutation.streams:
                async for line in listener:
                    _begin(answering, operation)
                    await answering.piece(line)
            said = await listener.said()
            if mutation.streams and said.is_line:
                _begin(answering, operation)
            answering.replica_id = operation.replica_id
            _finish(answering, said)
        finally:
            self._operations.leave(operation, listener)

    # -- the gateway's own

    def names(self) -> tuple[str, ...]:
        """The stores."""
        return self._fleet.names()

    async def pull(self, model: str, *, insecure: bool = False, detach: bool = False) -> AsyncGenerator[bytes, None]:
        """Progress as it comes, lines with their newline; the last says success, or an error. It begins with the first
        line that is asked for; ``detach``: from then on it goes on without a listener."""
        operation = self._operations.begin(pull_of(model, insecure=insecure), is_detached=detach)
        listener = operation.audience.join()
        try:
            async for line in listener:
                yield line
            yield (await listener.said()).line
        finally:
            self._operations.leave(operation, listener)

    async def delete(self, model: str) -> None:
        """From every store that has it. Raises :class:`StoreError`."""
        operation = self._operations.begin(deletion_of(model))
        listener = operation.audience.join()
        try:
            said = await listener.said()
        finally:
            self._operations.leave(operation, listener)
        if not said.ok:
            raise StoreError(said.status, said.message)

    def pulls(self) -> tuple[PullView, ...]:
        """Those under way, and those that wait for their turn, whose store is empty."""
        return self._operations.pulls()

    @asynccontextmanager
    async def quiet(self, *stores: str) -> AsyncIterator[None]:
        """Nothing else changes these meanwhile. Waits for what is under way there, which may take an hour; whatever is
        asked of them inside would wait for its own end, and so would another of these. Raises :class:`StoreError` where
        it is not known whether a replica that fell silent still changes one."""
        async with self._gate.turn(Claim(Sort.WHOLE_STORE, frozenset(stores))):
            for store in stores:
                self._leaders.check(store)
            yield

    async def close(self) -> None:
        """End everything; those who wait are told so."""
        self._is_closed = True
        await self._operations.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._leaders.close()
        await self._requests.close()

    # -- what is left behind

    def _remove_later(self, store: str, name: str) -> None:
        if not self._is_closed:
            task = asyncio.create_task(self._remove(store, name), name=f"remove {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _remove(self, store: str, name: str) -> None:
        try:
            async with self._gate.turn(deletion_of(name).claim(frozenset((store,)))):
                await self._changes.remove_own(store, name)
        except StoreError as error:
            log.warning('previous_version_left store=%s name=%s error="%s"', store, name, in_one_line(error.message))
            self._previous.stays(name)
        else:
            self._previous.removed(name)


def _begin(answering: Answering, operation: Operation) -> None:
    """To answer in lines, unless that was done."""
    if not answering.is_begun:
        answering.replica_id = operation.replica_id
        answering.begin()


def _finish(answering: Answering, said: Said) -> None:
    if answering.is_begun and said.is_line:
        answering.put(said.line)
        answering.end()
    elif answering.is_begun:
        answering.error(said.status, said.message)
    elif said.is_line:
        answering.whole(said.status, said.body.rstrip(b"\n"), PLAIN_JSON)
    else:
        answering.whole(said.status, said.body, said.content_type, said.headers)
