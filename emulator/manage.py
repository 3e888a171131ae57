"""The routes that read and change the model store."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from corral.emulator import listing
from corral.emulator.ask import Rejected, flag, parse, text_of
from corral.emulator.dialects import openai
from corral.emulator.dialects.base import JSON, PLAIN_JSON
from corral.emulator.dialects.native import NDJSON, error_body
from corral.emulator.downloads import Status, Statuses
from corral.emulator.manifest import Entry, digest_of
from corral.emulator.pulling import DIGEST, Pulling, is_valid, name_of
from corral.emulator.rig import Rig
from corral.emulator.settings import Settings
from corral.emulator.store import Store
from corral.emulator.text import to_json
from corral.emulator.wire import Exchange, framed

_PUSH_S = 0.06


class ManageRoutes:
    """Tags, show, pull, push, create, copy, delete and blobs."""

    def __init__(self, settings: Settings, store: Store, rig: Rig, pulling: Pulling) -> None:
        self._settings = settings
        self._store = store
        self._rig = rig
        self._pulling = pulling

    # -- reading --------------------------------------------------------------------------------------------------

    def tags(self, exchange: Exchange) -> None:
        legacy = self._settings.version_numbers < (0, 30)
        models = [listing.tag(entry, legacy=legacy) for entry in self._store.listed()]
        exchange.answer(200, to_json({"models": models}), JSON)

    def show(self, exchange: Exchange) -> None:
        def reply(body: dict[str, Any]) -> None:
            entry = self._named(body, find=self._store.find)
            weights = self._store.shelf.blob_path(entry.spec.blob_digest)
            exchange.answer(200, to_json(listing.show(entry, weights, verbose=flag(body, "verbose", False))), JSON)

        self._simple(exchange, reply)

    def models(self, exchange: Exchange) -> None:
        data = [listing.openai_model(entry) for entry in self._store.listed()]
        exchange.answer(200, to_json({"object": "list", "data": data or None}) + b"\n", PLAIN_JSON)

    def one_model(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix("/v1/models/")
        entry = self._store.get(name)
        if entry is None:
            exchange.answer(404, openai.error_body(404, f"model '{name}' not found") + b"\n", PLAIN_JSON)
        else:
            exchange.answer(200, to_json(listing.openai_model(entry) | {"id": name}) + b"\n", PLAIN_JSON)

    # -- changing -------------------------------------------------------------------------------------------------

    def copy(self, exchange: Exchange) -> None:
        def reply(body: dict[str, Any]) -> None:
            source, destination = text_of(body, "source"), text_of(body, "destination")
            for what, name in (("source", source), ("destination", destination)):
                if not is_valid(name):
                    raise Rejected(400, f'{what} "{name}" is invalid')
            entry = self._store.get(source)
            if entry is None:
                raise Rejected(404, f'model "{source}" not found')
            self._store.copy(entry, destination, time.time())
            exchange.answer(200, b"", None)

        self._simple(exchange, reply)

    def delete(self, exchange: Exchange) -> None:
        def reply(body: dict[str, Any]) -> None:
            entry = self._named(body)
            self._store.delete(entry)
            exchange.answer(200, b"", None)

        self._simple(exchange, reply)

    def blob(self, exchange: Exchange) -> None:
        digest = exchange.path.removeprefix("/api/blobs/")
        if DIGEST.fullmatch(digest) is None:
            exchange.answer(400, error_body("invalid digest format"), JSON)
        elif exchange.method == "HEAD":
            found = self._store.shelf.blob_bytes(digest.replace("-", ":"))
            exchange.answer(404 if found is None else 200, b"", None)
        else:
            self._add_blob(exchange, digest.replace("-", ":"))

    def _add_blob(self, exchange: Exchange, digest: str) -> None:
        if self._store.shelf.blob_bytes(digest) is not None:
            exchange.answer(200, b"", None)
            return
        got = digest_of(exchange.body)
        if got != digest:
            exchange.answer(400, error_body(f'digest mismatch, expected "{digest}", got "{got}"'), JSON)
            return
        self._store.shelf.put_blob(digest, exchange.body)
        exchange.answer(201, b"", None)

    async def pull(self, exchange: Exchange) -> None:
        await self._progress(exchange, self._pulling.pull)

    async def push(self, exchange: Exchange) -> None:
        await self._progress(exchange, self._push)

    async def create(self, exchange: Exchange) -> None:
        await self._progress(exchange, self._pulling.create)

    async def _push(self, body: dict[str, Any]) -> Statuses:
        name = name_of(body)
        yield {"status": "retrieving manifest"}
        entry = self._store.get(name)
        if entry is None:
            raise Rejected(500, f"couldn't retrieve manifest for {name}")
        digest, total = entry.spec.blob_digest, entry.spec.file_bytes
        status = {"status": f"pushing {digest[7:19]}", "digest": digest, "total": total}
        yield status
        await self._rig.sleep(_PUSH_S)
        yield status | {"completed": total}
        yield {"status": "pushing manifest"}
        yield {"status": "success"}

    # -- shapes ---------------------------------------------------------------------------------------------------

    async def _progress(self, exchange: Exchange, steps: Callable[[dict[str, Any]], Statuses]) -> None:
        """Status lines as they happen; an error before the first has its status, a later one is a line."""
        last: Status = {}
        try:
            body = parse(exchange.body)
            stream = flag(body, "stream", True)
            # closed before this ends: a download that nobody waits for any more must not outlive its request
            async with aclosing(steps(body)) as statuses:
                async for status in statuses:
                    last = status
                    if stream:
                        self._line(exchange, to_json(status))
        except Rejected as rejected:
            if exchange.started:
                self._line(exchange, error_body(rejected.message))
                exchange.end()
            else:
                # once a status was due, the handler had already named its own content type
                content_type = PLAIN_JSON if last else JSON
                exchange.answer(rejected.status, error_body(rejected.message), content_type)
            return
        if stream:
            exchange.end()
        else:
            exchange.answer(200, to_json(last), PLAIN_JSON)

    @staticmethod
    def _line(exchange: Exchange, line: bytes) -> None:
        data = framed(line + b"\n")
        if exchange.started:
            exchange.send(data)
        else:
            exchange.start(NDJSON, first=data)

    def _named(self, body: dict[str, Any], *, find: Callable[[str], Entry | None] | None = None) -> Entry:
        name = name_of(body)
        entry = (find or self._store.get)(name)
        if entry is None:
            raise Rejected(404, f"model '{name}' not found")
        return entry

    @staticmethod
    def _simple(exchange: Exchange, reply: Callable[[dict[str, Any]], None]) -> None:
        try:
            reply(parse(exchange.body))
        except Rejected as rejected:
            exchange.answer(rejected.status, error_body(rejected.message), JSON)
