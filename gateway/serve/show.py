"""``/api/show`` from memory: clients ask for the same few models again and again, and a model seldom changes.

An answer is kept as long as the merged list of models shows the same version under the name. Whatever is unusual about
a request is a replica's to answer, by an exchange.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec
from yarl import URL

from corral.errors import Fault
from corral.gateway.errand import Errand, Failed, Refused
from corral.gateway.schedule.ticket import Lease
from corral.gateway.wire.answering import JSON, Answering
from corral.gateway.wire.fields import route_request
from corral.gateway.wire.upload import Upload
from corral.model import RouteRequest, is_cloud_model
from corral.probes.ollama import TagsEntry

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

HEDGE_S: Final = 0.25
"""A replica that takes longer gets company: another one is asked as well, and the first answer taken."""
MOST_ENTRIES: Final = 1000
MOST_BYTES: Final = 32 << 20
_MOST_BODY: Final = 4096
_MOST_ANSWER: Final = 8 << 20
"""What a replica says about one model is much smaller, unless the client wants every tensor."""
_COPILOT: Final = re.compile(rb"(?:^|\r\n)user-agent:[ \t]*githubcopilotchat/", re.IGNORECASE)
"""Ollama answers this client differently."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer as it came."""

    status: int
    body: bytes
    content_type: bytes
    replica_id: str


class _Kept(msgspec.Struct, frozen=True):
    digest: str
    modified_s: float
    shown: Shown

    def is_of(self, entry: TagsEntry) -> bool:
        return (self.digest, self.modified_s) == (entry.model.digest, entry.modified_s)


class Shelf:
    """The answers that are kept, by the name as clients spelled it; the one that was used longest ago goes first."""

    def __init__(self, most_entries: int = MOST_ENTRIES, most_bytes: int = MOST_BYTES) -> None:
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._kept: dict[str, _Kept] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str, entry: TagsEntry) -> Shown | None:
        """What was said of this version of the model."""
        kept = self._take(name)
        if kept is None or not kept.is_of(entry):
            return None
        self._put(name, kept)
        return kept.shown

    def put(self, name: str, entry: TagsEntry, shown: Shown) -> None:
        self._take(name)
        self._put(name, _Kept(entry.model.digest, entry.modified_s, shown))
        while len(self._kept) > self._most_entries or self._bytes > self._most_bytes:
            self._take(next(iter(self._kept)))

    def _put(self, name: str, kept: _Kept) -> None:
        self._kept[name] = kept
        self._bytes += len(kept.shown.body)

    def _take(self, name: str) -> _Kept | None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            self._bytes -= len(kept.shown.body)
        return kept


class Shows:
    """Answers them."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self._gateway = gateway
        self._session = session
        self.shelf = Shelf()

    def answer(self, answering: Answering, upload: Upload | None) -> Coroutine[object, object, None] | None:
        """None: the request is not one whose answer is kept."""
        head, body = answering.head, bytes(answering.body)
        name = plain_name(body)
        if name is None or head.content_encoding is not None or _COPILOT.search(head.forward) is not None:
            return None
        request = route_request(answering.route, body, head.content_type, "", head.rank)
        if request.model is None or is_cloud_model(request.model):  # the cloud is asked with all that the client sent
            return None
        answering.model = request.model
        return self._answer(answering, request, name, body)

    async def _answer(self, answering: Answering, request: RouteRequest, name: str, body: bytes) -> None:
        entry = await self._entry(name)
        shown = None if entry is None else self.shelf.get(name, entry)
        if shown is None:
            try:
                shown = await Inquiry(self._gateway, self._session, request, body).first(entry)
            except Refused as refused:
                answering.refuse(refused.refusal, refused.retry_after_s)
                return
            answering.replica_id = shown.replica_id
            if entry is not None and shown.status == 200:
                self.shelf.put(name, entry, shown)
        answering.whole(shown.status, shown.body, shown.content_type)

    async def _entry(self, name: str) -> TagsEntry | None:
        """The model as the merged list has it now."""
        poller = self._gateway.poller
        if poller is None:
            return None
        ids = [replica.id for replica in self._gateway.carrier.scheduler.usable()]
        await poller.catch_up_tags(ids)
        return poller.union(ids).find(name)


class Inquiry:
    """One request on its way to a replica, and to a second one where the first is late or fails."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession, request: RouteRequest, body: bytes) -> None:
        self._gateway = gateway
        self._session = session
        self._request = request
        self._body = body
        self._unable: Shown | None = None
        """What the last one said that could not answer now."""

    async def first(self, entry: TagsEntry | None) -> Shown:
        """The first answer; ``entry``: the version that is to be shown, None: not known. Raises :class:`Refused`."""
        asked = self._errand(self._others(entry, same_age=True))
        tasks = [asyncio.create_task(asked.run(self._ask))]
        try:
            await self._late_or_done(tasks[0], asked)
            second = None if _is_well(tasks[0]) else self._second(entry, asked)
            if second is not None:
                tasks.append(asyncio.create_task(second.run(self._ask)))
            return await _first_of(tasks)
        except Refused:
            if self._unable is None:
                raise
            return self._unable
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _second(self, entry: TagsEntry | None, asked: Errand) -> Errand | None:
        """To a replica that was not asked yet; None: no other one is known to have this version of the model, or the
        model is a stub: of these one replica speaks for all, in the name of its account."""
        if entry is None or entry.model.remote:
            return None
        failed = set(asked.excluded) - set(self._others(entry, same_age=True))
        excluded = {*failed, *self._others(entry, same_age=False)}
        if asked.lease is not None:
            excluded.add(asked.lease.replica.id)
        is_left = any(replica_id not in excluded for replica_id, _ in self._lists(entry))
        return self._errand(tuple(excluded)) if is_left else None

    async def _late_or_done(self, task: asyncio.Task[Shown], asked: Errand) -> None:
        """One that waits for its turn is not late: the other would wait, too."""
        while True:
            await asyncio.wait({task}, timeout=HEDGE_S)
            if task.done() or asked.lease is not None:
                return

    def _errand(self, excluded: tuple[str, ...]) -> Errand:
        errand = Errand(self._gateway.carrier, self._request, self._gateway.clock())
        errand.excluded = excluded
        return errand

    def _others(self, entry: TagsEntry | None, *, same_age: bool) -> tuple[str, ...]:
        """Replicas that have another version under the name, or the same one but of another day."""
        if entry is None:
            return ()
        return tuple(
            replica_id
            for replica_id, held in self._lists(entry)
            if held.model.digest != entry.model.digest or (same_age and held.modified_s != entry.modified_s)
        )

    def _lists(self, entry: TagsEntry) -> list[tuple[str, TagsEntry]]:
        poller = self._gateway.poller
        if poller is None:
            return []
        return [
            (replica.id, held)
            for replica in self._gateway.carrier.scheduler.usable()
            for held in poller.pages(replica.id).tags or ()
            if held.model.name == entry.model.name
        ]

    async def _ask(self, lease: Lease) -> Shown:
        """The one seam where the client library's exceptions end."""
        replica = lease.replica
        url = URL.build(scheme="http", host=replica.host, port=replica.port, path="/api/show")
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(url, data=self._body, headers=headers, allow_redirects=False) as response:
                body = await _bounded(response.content)
                content_type = response.headers.get("Content-Type", "").encode("latin-1", "replace") or JSON
                shown = Shown(response.status, body, content_type, replica.id)
        except aiohttp.ClientConnectorError as error:
            raise Failed(Fault.CONNECT) from error
        except aiohttp.ServerDisconnectedError as error:  # an idle connection, probably; a second one is a reset
            raise Failed(Fault.STALE) from error
        except (aiohttp.ClientPayloadError, OSError) as error:
            raise Failed(Fault.RESET) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise Failed(Fault.MALFORMED) from error
        if shown.status == 503:
            self._unable = shown
            raise Failed(Fault.BUSY)
        return shown


def _is_well(task: asyncio.Task[Shown]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _first_of(tasks: list[asyncio.Task[Shown]]) -> Shown:
    waiting = set(tasks)
    while len(waiting) > 1:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            with suppress(Refused):
                return task.result()
    return await (waiting.pop() if waiting else tasks[-1])


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for piece in content.iter_any():
        body += piece
        if len(body) > _MOST_ANSWER:
            raise ValueError("too long")
    return bytes(body)


class _Plain(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    name: str | None = None
    system: str | None = None
    template: str | None = None
    verbose: bool | None = None
    options: dict[str, object] | None = None


def plain_name(body: bytes) -> str | None:
    """The model that a request is about, as it is spelled, if the request asks for nothing else.

    >>> plain_name(b'{"model":"m","system":"","verbose":false,"options":null}'), plain_name(b'{"name":"M:7b"}')
    ('m', 'M:7b')
    >>> plain_name(b'{"model":"m","verbose":true}'), plain_name(b"{}"), plain_name(b"[")
    (None, None, None)
    """
    if len(body) > _MOST_BODY:
        return None
    try:
        plain = msgspec.json.decode(body, type=_Plain)
    except (ValueError, RecursionError):
        return None
    if plain.system or plain.template or plain.verbose or plain.options:
        return None
    return plain.model or plain.name or None
