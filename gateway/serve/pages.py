"""The pages the gateway answers itself: what Ollama would say if all replicas were one.

They are made of what the probes last read, at once. Three things are worth a short wait: lists of a store that the
gateway itself has changed (or that were never read), a model that nobody is known to have, and memory in which the
gateway has just caused something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from corral.gateway.serve.poller import Poller
from corral.gateway.serve.views import CopyNotes, ReplicaPages, lowest_version, merge_ps
from corral.gateway.wire.answering import JSON, PLAIN_JSON, Answering
from corral.gateway.wire.dialect import Dialect, error_body
from corral.gateway.wire.routes import View
from corral.gateway.wire.upload import Upload
from corral.model import Health, Replica
from corral.probes.ollama import PsEntry

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

Page = tuple[int, bytes, bytes]
"""Status, body, content type."""

_TEXT: Final = b"text/plain; charset=utf-8"
_NOTES: Final = b"corral=1"
"""The parameter of a query that asks for what the gateway can add."""
_NONE_SERVES: Final = "no replica can serve this request now: all are down, drained or starting"


class Pages:
    """Answers all of them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def answer(self, answering: Answering, upload: Upload | None = None) -> None:
        """Make the page that is asked for."""
        answering.is_page = True
        poller = self._gateway.poller
        if poller is not None:
            answering.whole(*await self._page(answering, poller))

    async def _page(self, answering: Answering, poller: Poller) -> Page:
        view, dialect = answering.route.view, answering.route.dialect
        if view is View.ROOT:
            return 200, b"Ollama is running", _TEXT
        if view is View.VERSION:
            return self._version(poller)
        ids = [replica.id for replica in self._usable()]
        if view is View.PS:
            await poller.catch_up_ps(ids, self._gateway.carrier.scheduler.is_unsettled)
        else:
            await poller.catch_up_tags(ids)
        pages = self._read(poller)
        if not any(page.version is not None or page.tags is not None for page in pages):
            return 503, error_body(dialect, 503, _NONE_SERVES), JSON
        noted = _NOTES in answering.head.target.partition(b"?")[2].split(b"&")
        if view is View.PS:
            return 200, self._ps(poller, pages, noted=noted), JSON
        union = poller.union(ids)
        if view is View.TAGS:
            return 200, union.tags_noted(pages, self._stores()) if noted else union.tags(), JSON
        if view is View.MODELS:
            return 200, union.openai_models(), PLAIN_JSON
        return await self._model(poller, ids, answering.head.path.removeprefix("/v1/models/"))

    async def _model(self, poller: Poller, ids: list[str], name: str) -> Page:
        """One that is not known may have been pulled a moment ago, by somebody else."""
        body = poller.union(ids).openai_model(name)
        if body is None:
            await poller.catch_up_tags(ids, anew=True)
            body = poller.union(ids).openai_model(name)
        if body is not None:
            return 200, body, PLAIN_JSON
        return 404, error_body(Dialect.OPENAI, 404, f"model '{name}' not found") + b"\n", PLAIN_JSON

    def _ps(self, poller: Poller, pages: list[ReplicaPages], *, noted: bool) -> bytes:
        gateway, recent = self._gateway, poller.recent
        use_of, now_s = gateway.carrier.scheduler.use_of, gateway.clock()
        pinned = {replica.id: replica.pinned for replica in self._usable()}

        def has_left(page: ReplicaPages, entry: PsEntry) -> bool:
            model = entry.model.name
            if page.ps_at_s is None or not recent.has_left(page.replica_id, model, page.ps_at_s):
                return False
            return not use_of(page.replica_id, model).inflight  # who uses it holds it

        def notes(page: ReplicaPages, entry: PsEntry) -> CopyNotes:
            model, use = entry.model.name, use_of(page.replica_id, entry.model.name)
            return CopyNotes(
                page.replica_id,
                use.slots,
                use.inflight,
                model in pinned.get(page.replica_id, ()),
                None if use.used_s is None else round(max(0.0, now_s - use.used_s), 3),
                round(max(0.0, now_s - (page.ps_at_s or now_s)), 3),
            )

        return merge_ps(pages, has_left, notes if noted else None)

    def _version(self, poller: Poller) -> Page:
        lowest = lowest_version(page.version for page in self._read(poller) if page.version is not None)
        if lowest is not None:
            return 200, b'{"version":"%b"}' % lowest.encode(), JSON
        waited_for = any(state.health is Health.UNKNOWN for state in self._gateway.summary().replicas)
        message = "no replica has answered yet" if waited_for else _NONE_SERVES
        return 503, error_body(Dialect.NATIVE, 503, message), JSON

    def _usable(self) -> tuple[Replica, ...]:
        return self._gateway.carrier.scheduler.usable()

    def _read(self, poller: Poller) -> list[ReplicaPages]:
        """The last readings of every replica that requests may be sent to."""
        return [poller.pages(replica.id) for replica in self._usable()]

    def _stores(self) -> dict[str, str]:
        return {replica.id: replica.store for replica in self._usable()}
