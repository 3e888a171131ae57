"""Decides which requests for embeddings are worked off in parts; all others are left to an exchange."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

import aiohttp

from corral.gateway.embed.batch import Batch, cut, read_batch
from corral.gateway.embed.question import Question, headers_of
from corral.gateway.embed.work import Work
from corral.gateway.wire.answering import Answering
from corral.gateway.wire.canonical import with_num_ctx
from corral.gateway.wire.fields import route_request
from corral.gateway.wire.upload import Upload
from corral.model import RequestKind, RouteRequest

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

_TARGETS: Final = (b"/api/embed", b"/v1/embeddings")
_LEAST_BODY: Final = 128
_LEAST_TEXTS: Final = 4
_LEAST_WEIGHT: Final = 2048
"""Of a part, see :attr:`Batch.weight`: a smaller one is hardly worth a request."""
_MOST_HELD: Final = 256 << 20
"""Answers in parts are held until they are complete: all of them together take about so many bytes at most."""
_VECTOR_BYTES: Final = 24 << 10
"""In an answer; a thousand numbers, where nothing is known of the model."""
_MOST_MODELS: Final = 256
_PAUSE_S: Final = 60.0
"""After an answer that could not be joined nothing is tried in parts for so long."""


class Splitter:
    """Answers ``/api/embed`` and ``/v1/embeddings`` in parts where that is thought to be sooner."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self._gateway = gateway
        self._session = session
        self._works: WeakSet[Work] = WeakSet()
        """Those under way; one whose client left before it began is gone by itself."""
        self._vector_bytes: OrderedDict[str, int] = OrderedDict()
        """By model, as it was last; names come from clients: the oldest are forgotten."""
        self._paused_until_s = float("-inf")

    def answer(self, answering: Answering, upload: Upload | None) -> Coroutine[object, object, None] | None:
        """None: an exchange is to get it."""
        gateway, head, route = self._gateway, answering.head, answering.route
        if len(answering.body) < _LEAST_BODY or head.target not in _TARGETS or not gateway.splits_embeddings:
            return None
        if gateway.clock() < self._paused_until_s or len(gateway.carrier.scheduler.usable()) < 2:
            return None
        body = bytes(with_num_ctx(route, answering.body, gateway.num_ctx))
        batch = read_batch(body)
        if batch is None or len(batch.texts) < _LEAST_TEXTS or batch.weight < 2 * _LEAST_WEIGHT:
            return None
        headers = headers_of(head)
        if headers is None:
            return None
        request = route_request(route, body, head.content_type, answering.tenant, head.rank)
        parts = cut(batch, max(1, self._count(batch, request)))
        if len(parts) < 2:
            return None
        via = b",".join(filter(None, (head.via, gateway.run_id))).decode()
        question = Question(self._session, head.path, headers, gateway.timeouts.connect_s, gateway.clock, via)
        work = Work(gateway, answering, request, question, parts)
        work.held_bytes = self._bytes(request, batch)
        self._works.add(work)
        answering.model = request.model
        return self._run(work, request.model or "", body)

    def _count(self, batch: Batch, request: RouteRequest) -> int:
        """Of parts."""
        if request.kind is not RequestKind.INFERENCE or request.model is None or not request.text_bytes:
            return 0
        if sum(work.held_bytes for work in self._works) + self._bytes(request, batch) > _MOST_HELD:
            return 0
        coming = sum(work.to_submit for work in self._works)
        gateway = self._gateway
        sharing = gateway.carrier.scheduler.sharing(request, gateway.clock(), coming=coming)
        if sharing is None:
            return 0
        count = min(sharing.most_parts, batch.weight // _LEAST_WEIGHT, len(batch.texts))
        return count - count % sharing.replicas if count > sharing.replicas else count

    def _bytes(self, request: RouteRequest, batch: Batch) -> int:
        """Of the answer, about."""
        return len(batch.texts) * self._vector_bytes.get(request.model or "", _VECTOR_BYTES)

    async def _run(self, work: Work, model: str, body: bytes) -> None:
        await work.answer(body)
        if not work.is_joinable:
            self._paused_until_s = self._gateway.clock() + _PAUSE_S
        if work.vector_bytes is not None:
            self._vector_bytes[model] = work.vector_bytes
            self._vector_bytes.move_to_end(model)
            if len(self._vector_bytes) > _MOST_MODELS:
                self._vector_bytes.popitem(last=False)
