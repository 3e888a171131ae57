"""One batch on its way: each part is an errand of its own, and their answers become one."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from corral.errors import CorralError, Fault, Refusal
from corral.gateway.embed.batch import Part
from corral.gateway.embed.join import Piece, Unjoinable, join, take_apart
from corral.gateway.embed.question import Question, Said
from corral.gateway.errand import Errand, Failed, Refused
from corral.gateway.schedule.ticket import Lease
from corral.gateway.wire.answering import Answering
from corral.gateway.wire.exchange import CRASH_TEXTS
from corral.model import RouteRequest

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

log: Final = logging.getLogger("corral.gateway")

MOST_VECTOR_BYTES: Final = 1 << 18
"""A vector of eight thousand numbers fits."""
_MOST_OTHER_BYTES: Final = 1 << 20
_PLAIN_BYTES: Final = 2048
"""Ollama sends a longer answer in chunks."""
_NAMED: Final = 8
"""So many replicas are named in a header."""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """What a replica said to one part."""

    said: Said
    """Without its body where that was taken apart."""
    piece: Piece | None
    """None: it is no answer to be joined, but an error for the client."""


class Rejected(CorralError):
    """What a replica said to one part, it says to the whole."""

    def __init__(self, said: Said) -> None:
        super().__init__(f"status {said.status}")
        self.said = said


class Work:
    """The parts of one batch. :meth:`answer` is its life."""

    def __init__(
        self, gateway: Gateway, answering: Answering, request: RouteRequest, question: Question, parts: Sequence[Part]
    ) -> None:
        self._gateway = gateway
        self._answering = answering
        self._request = request
        self._question = question
        self._parts = parts
        self._arrived_s = gateway.clock()
        self._first_sent_s: float | None = None
        self._replicas: dict[str, None] = {}
        """Ids of those that answered a part, in that order."""
        self.to_submit = len(parts)
        """So many parts the scheduler does not know of yet."""
        self.held_bytes = 0
        """What its answer is thought to take."""
        self.texts = sum(part.texts for part in parts)
        self.vector_bytes: int | None = None
        """How long the answer was, for each text."""
        self.is_joinable = True
        """No replica has answered otherwise than Ollama does."""

    async def answer(self, body: bytes) -> None:
        """``body``: the whole, for where the parts are not answered in a way that can be joined."""
        try:
            try:
                slices, content_type = await self._in_parts()
            except Unjoinable:
                self.is_joinable = False
                log.warning('embeddings_not_joined consequence="sent whole" route=%s', self._answering.route.label)
                self._pass_on(await self._whole(body))
            else:
                await self._send(slices, content_type)
        except Rejected as rejected:
            self._pass_on(rejected.said)
        except Refused as refused:
            self._answering.queue_s = self._gateway.clock() - self._arrived_s
            self._answering.refuse(refused.refusal, refused.retry_after_s)
        finally:
            self.held_bytes = 0

    # -- what the client gets

    async def _send(self, slices: Sequence[bytes], content_type: bytes) -> None:
        answering, size = self._answering, sum(map(len, slices))
        if size <= _PLAIN_BYTES:
            answering.whole(200, b"".join(slices), content_type, self._headers())
            return
        answering.begin(200, content_type, self._headers())
        for each in slices:
            await answering.piece(each)
        answering.end()

    def _pass_on(self, said: Said) -> None:
        self._replicas = {said.replica_id: None}
        self._answering.whole(said.status, said.body, said.content_type, self._headers() + said.headers)

    def _headers(self) -> bytes:
        answering, names = self._answering, list(self._replicas)
        answering.queue_s = 0.0 if self._first_sent_s is None else self._first_sent_s - self._arrived_s
        chosen = b""
        if len(names) == 1:
            answering.replica_id = names[0]
        elif names:
            more = f",+{len(names) - _NAMED}" if len(names) > _NAMED else ""
            chosen = f"x-corral-replica: {','.join(names[:_NAMED])}{more}\r\n".encode()
        return b"%bx-corral-parts: %d\r\nx-corral-queue-s: %.3f\r\n" % (chosen, len(self._parts), answering.queue_s)

    # -- the parts

    async def _in_parts(self) -> tuple[list[bytes], bytes]:
        """The joined answer in slices, and its type. Raises Rejected, Refused or Unjoinable: what the first part in
        order met with, of those that have met with anything."""
        tasks = [asyncio.create_task(self._carry(part)) for part in self._parts]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done() and (error := _error_of(task)) is not None:
                    raise error
            return self._joined([task.result() for task in tasks])
        finally:
            self.to_submit = 0
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _joined(self, dones: Sequence[Done]) -> tuple[list[bytes], bytes]:
        pieces = [done.piece for done in dones if done.piece is not None]
        tokens = [piece.figures.prompt_tokens for piece in pieces if piece.figures.prompt_tokens is not None]
        self._answering.prompt_tokens = sum(tokens) if tokens else None
        slices = join(self._answering.route.dialect, pieces)
        self.vector_bytes = sum(map(len, slices)) // self.texts
        return slices, dones[0].said.content_type

    async def _carry(self, part: Part) -> Done:
        """What was said to one part, by whichever replica. Raises as :meth:`_in_parts`."""
        self.to_submit -= 1
        request = replace(self._request, body_bytes=len(part.body), text_bytes=part.text_bytes)
        done = await self._run(request, part.body, part.texts, part)
        if done.piece is None:
            raise Rejected(done.said)
        self._replicas[done.said.replica_id] = None
        return done

    async def _whole(self, body: bytes) -> Said:
        return (await self._run(self._request, body, self.texts, None)).said

    async def _run(self, request: RouteRequest, body: bytes, texts: int, part: Part | None) -> Done:
        """One errand. ``part``: as what its answer is read; None: it is not."""
        errand = Errand(self._gateway.carrier, request, self._arrived_s)
        errand.id = (self._answering.head.request_id or b"").decode()
        unable: list[Said] = []
        """What those said that could not answer now."""

        async def work(lease: Lease) -> Done:
            self._first_sent_s = self._first_sent_s or self._gateway.clock()
            said = await self._question.ask(lease.replica, body, _MOST_OTHER_BYTES + texts * MOST_VECTOR_BYTES)
            fault = _fault_in(said)
            if fault is not None:
                unable.append(said)
                raise Failed(fault)
            piece = None
            if said.status == 200 and part is not None:
                piece = take_apart(self._answering.route.dialect, said.body, part.first, texts)
                errand.figures = piece.figures
                said = dataclasses.replace(said, body=b"")
            self._gateway.carrier.first_byte(errand)  # and the last one: until now it could be tried elsewhere
            return Done(said, piece)

        try:
            return await errand.run(work)
        except Refused as refused:
            if unable and refused.refusal in (Refusal.EXHAUSTED, Refusal.NO_REPLICA):
                raise Rejected(unable[-1]) from refused
            raise


def _fault_in(said: Said) -> Fault | None:
    if said.status == 503:
        return Fault.BUSY
    if said.status == 500 and any(text in said.body for text in CRASH_TEXTS):
        return Fault.CRASHED
    return None


def _error_of(task: asyncio.Task[Done]) -> BaseException | None:
    return CorralError("a part was abandoned") if task.cancelled() else task.exception()
