"""Blobs where there are several stores: looked for in each, sent to all at once. With one store an exchange does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Final

from corral.errors import Refusal
from corral.gateway.errand import Errand, Refused
from corral.gateway.schedule.ticket import Lease
from corral.gateway.store.fleet import Fleet
from corral.gateway.store.requests import StoreRequests
from corral.gateway.store.said import Outcome, Said, StoreError, combine
from corral.gateway.wire.answering import Answering
from corral.gateway.wire.dialect import refusal_answer
from corral.gateway.wire.upload import Upload
from corral.model import Replica, RequestKind, RouteRequest

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

_END: Final = b""

Task = asyncio.Task[Outcome]


class _Channel:
    """What one store is still to get of the body: one piece at a time."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._is_closed = False

    async def put(self, piece: bytes) -> None:
        """Waits until there is room."""
        if not self._is_closed:
            await self._pieces.put(piece)

    def close(self) -> None:
        """Nothing is read any more: whoever waits for room is let go."""
        self._is_closed = True
        while not self._pieces.empty():
            self._pieces.get_nowait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._pieces.get():
            yield piece


class Blobs:
    """Answers ``/api/blobs/DIGEST``."""

    def __init__(self, gateway: Gateway, fleet: Fleet, requests: StoreRequests) -> None:
        self._gateway = gateway
        self._fleet = fleet
        self._requests = requests

    def answer(self, answering: Answering, upload: Upload | None) -> Coroutine[object, object, None] | None:
        """None: an exchange is to get it."""
        if len(self._fleet.names()) < 2:
            return None
        if answering.head.method == b"HEAD":
            return self._look(answering)
        return self._add(answering, upload) if answering.head.method == b"POST" else None

    async def _look(self, answering: Answering) -> None:
        """It is there if every store has it."""
        path = answering.head.path
        outcomes = await self._everywhere(lambda replica, store: self._requests.blob(replica, "HEAD", path, {}, _END))
        said = next((outcome.said for outcome in outcomes if not outcome.said.ok), outcomes[0].said)
        _send(answering, said)

    async def _add(self, answering: Answering, upload: Upload | None) -> None:
        path, length = answering.head.path, answering.head.content_length
        headers = {"Content-Type": "application/octet-stream"}
        if length is not None:
            headers["Content-Length"] = str(length)
        channels = {store: _Channel() for store in self._fleet.targets().stores}

        async def send(replica: Replica, store: str) -> Said:
            body = self._taken(replica, channels[store])
            said = await self._requests.blob(replica, "POST", path, dict(headers), body)
            channels[store].close()  # it may not have read all; but who could not connect left all to the next one
            return said

        feeding = asyncio.create_task(_feed(upload, tuple(channels.values())))
        try:
            _send(answering, combine(await self._everywhere(send, tuple(channels))))
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def _taken(self, replica: Replica, channel: _Channel) -> AsyncIterator[bytes]:
        """The body; a replica that takes some of it does not hang."""
        async for piece in channel:
            self._gateway.carrier.scheduler.progress(replica.id, self._gateway.clock())
            yield piece

    async def _everywhere(
        self, ask: Callable[[Replica, str], Coroutine[object, object, Said]], stores: tuple[str, ...] | None = None
    ) -> list[Outcome]:
        """What became of it in each store, or, once it has failed in one, in those where it is over."""
        stores = self._fleet.targets().stores if stores is None else stores
        tasks: list[Task] = [asyncio.create_task(self._in(store, ask)) for store in stores]
        try:
            waiting = set(tasks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not all(task.result().said.ok for task in done):
                    break
            return [task.result() for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _in(self, store: str, ask: Callable[[Replica, str], Coroutine[object, object, Said]]) -> Outcome:
        gateway, where = self._gateway, store

        async def work(lease: Lease) -> Said:
            nonlocal where
            where = lease.replica.id
            return await ask(lease.replica, store)

        errand = Errand(gateway.carrier, RouteRequest(RequestKind.BLOB, None, store=store), gateway.clock())
        try:
            return Outcome(where, await errand.run(work))
        except Refused as refused:
            status, message = refusal_answer(refused.refusal)
            if refused.refusal is Refusal.EXHAUSTED:
                message = f"the connection to replica {where} was lost, or there was none"
            error = StoreError(status, message, retry_after_s=refused.retry_after_s)
            return Outcome(where, error.said())


async def _feed(upload: Upload | None, channels: Sequence[_Channel]) -> None:
    """All of the body to all channels, as fast as the slowest takes it."""
    if upload is not None:
        async for piece in upload:
            await asyncio.gather(*(channel.put(piece) for channel in channels))
    await asyncio.gather(*(channel.put(_END) for channel in channels))


def _send(answering: Answering, said: Said) -> None:
    answering.whole(said.status, said.body, said.content_type, said.headers)
