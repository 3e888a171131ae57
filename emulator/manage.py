"""The routes that read and change the model store."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from corral.emulator import listing
from corral.emulator.ask import Rejected, dict_of, flag, parse, text_of
from corral.emulator.catalog import ModelSpec, calibration, model_given, model_named
from corral.emulator.dialects import openai
from corral.emulator.dialects.base import JSON, PLAIN_JSON
from corral.emulator.dialects.native import NDJSON, error_body
from corral.emulator.rig import Rig
from corral.emulator.settings import Settings
from corral.emulator.store import Entry, Store, shown_name
from corral.emulator.text import to_json
from corral.emulator.wire import Exchange, framed
from corral.errors import OperatorError

_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
_PROGRESS_S = 0.06
_LEAST_PROGRESS_S = 0.01
_SMALL_LAYERS = (("license", 11_358), ("params", 417))
MISSING_MANIFEST = "pull model manifest: file does not exist"

Status = dict[str, Any]


class ManageRoutes:
    """Tags, show, pull, push, create, copy, delete and blobs."""

    def __init__(self, settings: Settings, store: Store, rig: Rig) -> None:
        self._settings = settings
        self._store = store
        self._rig = rig
        self.pulls = 0

    # -- reading --------------------------------------------------------------------------------------------------

    def tags(self, exchange: Exchange) -> None:
        legacy = self._settings.version_numbers < (0, 30)
        models = [listing.tag(entry, legacy=legacy) for entry in self._store.listed()]
        exchange.answer(200, to_json({"models": models}), JSON)

    def show(self, exchange: Exchange) -> None:
        def reply(body: dict[str, Any]) -> None:
            entry = self._named(body, "model '{}' not found")
            exchange.answer(200, to_json(listing.show(entry, verbose=flag(body, "verbose", False))), JSON)

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
                if not _valid(name):
                    raise Rejected(400, f'{what} "{name}" is invalid')
            entry = self._store.get(source)
            if entry is None:
                raise Rejected(404, f'model "{source}" not found')
            self._store.copy(entry, destination, time.time())
            exchange.answer(200, b"", None)

        self._simple(exchange, reply)

    def delete(self, exchange: Exchange) -> None:
        def reply(body: dict[str, Any]) -> None:
            self._store.delete(self._named(body, "model '{}' not found"))
            exchange.answer(200, b"", None)

        self._simple(exchange, reply)

    def blob(self, exchange: Exchange) -> None:
        digest = exchange.path.removeprefix("/api/blobs/")
        if _DIGEST.fullmatch(digest) is None:
            exchange.answer(400, error_body("invalid digest format"), JSON)
        elif exchange.method == "HEAD":
            found = self._store.shelf.has_blob(digest.replace("-", ":"))
            exchange.answer(200 if found else 404, b"", None)
        else:
            self._add_blob(exchange, digest.replace("-", ":"))

    def _add_blob(self, exchange: Exchange, digest: str) -> None:
        if self._store.shelf.has_blob(digest):
            exchange.answer(200, b"", None)
            return
        got = "sha256:" + hashlib.sha256(exchange.body).hexdigest()
        if got != digest:
            exchange.answer(400, error_body(f'digest mismatch, expected "{digest}", got "{got}"'), JSON)
            return
        self._store.shelf.put_blob(digest, exchange.body)
        exchange.answer(201, b"", None)

    async def pull(self, exchange: Exchange) -> None:
        await self._progress(exchange, self._pull)

    async def push(self, exchange: Exchange) -> None:
        await self._progress(exchange, self._push)

    async def create(self, exchange: Exchange) -> None:
        await self._progress(exchange, self._create)

    async def _pull(self, body: dict[str, Any]) -> AsyncIterator[Status]:
        name = _name(body)
        yield {"status": "pulling manifest"}
        spec = model_named(name)
        if spec is None:
            raise Rejected(500, MISSING_MANIFEST)
        self.pulls += 1
        spec = replace(spec, name=shown_name(name))
        async for status in self._download(spec.blob_digest, spec.file_bytes):
            yield status
        for layer, size in _SMALL_LAYERS:
            digest = "sha256:" + hashlib.sha256(f"{layer} {spec.family}".encode()).hexdigest()
            yield {"status": f"pulling {digest[7:19]}", "digest": digest, "total": size, "completed": size}
        yield {"status": "verifying sha256 digest"}
        yield {"status": "writing manifest"}
        self._store.install(spec, time.time())
        yield {"status": "success"}

    async def _download(self, digest: str, total: int) -> AsyncIterator[Status]:
        status: Status = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": total}
        shelf = self._store.shelf
        if shelf.has_blob(digest):
            yield status | {"completed": total}
            return
        shelf.begin_pull(digest)
        try:
            rate = calibration()["pull"]["MBps"] * 1e6
            step_s = max(_PROGRESS_S, _LEAST_PROGRESS_S * self._rig.speed)
            completed = 0
            while completed < total:
                # a completed of nothing is left out, as Go's omitempty does
                yield status | ({"completed": completed} if completed else {})
                await self._rig.sleep(min(step_s, (total - completed) / rate))
                completed += int(rate * step_s)
            yield status | {"completed": total}
        finally:
            shelf.end_pull(digest)

    async def _push(self, body: dict[str, Any]) -> AsyncIterator[Status]:
        name = _name(body)
        yield {"status": "retrieving manifest"}
        entry = self._store.get(name)
        if entry is None:
            raise Rejected(500, f"couldn't retrieve manifest for {name}")
        digest, total = entry.spec.blob_digest, entry.spec.file_bytes
        status = {"status": f"pushing {digest[7:19]}", "digest": digest, "total": total}
        yield status
        await self._rig.sleep(_PROGRESS_S)
        yield status | {"completed": total}
        yield {"status": "pushing manifest"}
        yield {"status": "success"}

    async def _create(self, body: dict[str, Any]) -> AsyncIterator[Status]:
        name, source, files = _name(body), text_of(body, "from"), dict_of(body, "files")
        if not _valid(name):
            raise Rejected(400, "invalid model name")
        if not source and not files:
            raise Rejected(400, "neither 'from' or 'files' was specified")
        if files:
            spec = self._spec_of_files(name, files)
            yield {"status": "parsing GGUF"}
            digests = tuple(str(digest) for digest in files.values())
        else:
            base = self._store.get(source)
            if base is None:
                raise Rejected(404, f"model '{source}' not found")
            spec, digests = replace(base.spec, name=shown_name(name)), (base.spec.blob_digest,)
        for digest in digests:
            yield {"status": f"using existing layer {digest}"}
        entry = Entry(
            shown_name(name),
            spec,
            time.time(),
            template=text_of(body, "template") or "{{ .Prompt }}",
            system=text_of(body, "system"),
            license=body["license"] if isinstance(body.get("license"), str) else "",
            parameters=dict_of(body, "parameters"),
            extra_digests=digests,
        )
        yield {"status": f"creating new layer sha256:{entry.digest}"}
        yield {"status": "writing manifest"}
        self._store.shelf.put(entry)
        yield {"status": "success"}

    def _spec_of_files(self, name: str, files: dict[str, Any]) -> ModelSpec:
        for digest in files.values():
            if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
                raise Rejected(400, "invalid digest format")
            if not self._store.shelf.has_blob(digest.replace("-", ":")):
                raise Rejected(400, f"stat blobs/{digest.replace(':', '-')}: no such file or directory")
        try:
            return replace(model_given(f"{name}=0.1"), name=shown_name(name))
        except OperatorError:
            raise Rejected(400, "invalid model name") from None

    # -- shapes ---------------------------------------------------------------------------------------------------

    async def _progress(self, exchange: Exchange, steps: Callable[[dict[str, Any]], AsyncIterator[Status]]) -> None:
        """Status lines as they happen; an error before the first has its status, a later one is a line."""
        last: Status = {}
        try:
            body = parse(exchange.body)
            stream = flag(body, "stream", True)
            async for status in steps(body):
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

    def _named(self, body: dict[str, Any], missing: str) -> Entry:
        name = _name(body)
        entry = self._store.get(name)
        if entry is None:
            raise Rejected(404, missing.format(name))
        return entry

    @staticmethod
    def _simple(exchange: Exchange, reply: Callable[[dict[str, Any]], None]) -> None:
        try:
            reply(parse(exchange.body))
        except Rejected as rejected:
            exchange.answer(rejected.status, error_body(rejected.message), JSON)


def _name(body: dict[str, Any]) -> str:
    name = text_of(body, "model") or text_of(body, "name")
    if not name:
        raise Rejected(400, "model is required")
    return name


def _valid(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.:/-]*", name) is not None and ".." not in name
