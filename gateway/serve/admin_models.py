"""The admin port's routes for models: what there is and where, pulls, removals, and the garbage of the stores."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Final, Protocol, TypeVar, cast

import msgspec
from aiohttp import web

from corral.gateway.serve.cleaning import Quiet, Step
from corral.gateway.store.garbage import GRACE_S
from corral.gateway.store.lines import read_line
from corral.gateway.store.said import StoreError

MODELS_SCHEMA: Final = 1
"""Grows when a key of these pages goes or changes its meaning; new keys may come without."""

INDEX: Final = """\
GET  /models                   models, where each is in memory and stored, and pulls (`corral models place`)
POST /models/pull              pull a model; progress as lines of JSON
POST /models/gc                what no model in the stores needs; removes it if the body says "yes": true
DELETE /models/NAME            remove a model from every store
"""

LEAST_AGE_S: Final = 60.0
"""A model that is being made needs blobs that nothing names yet."""
_NDJSON: Final = "application/x-ndjson"
_LOOK_S: Final = 0.25
"""Between two looks whether the one who asked is still there."""

_log = logging.getLogger("corral.admin")

_NEWS_S: Final = 2.0
"""Somebody who does not want to wait for a pull waits so long at most for what it begins with."""

_T = TypeVar("_T", bound=msgspec.Struct)


class StoreWork(Quiet, Protocol):
    """What is asked of the stores, see :class:`corral.gateway.store.stores.Stores`."""

    def pull(self, model: str, *, insecure: bool = False, detach: bool = False) -> AsyncIterator[bytes]: ...

    async def delete(self, model: str) -> None: ...


class Listing(Protocol):
    async def page(self) -> dict[str, Any]: ...


class Cleaning(Protocol):
    def clean(self, min_age_s: float, *, removes: bool) -> AsyncGenerator[Step, None]: ...


class _Pull(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    insecure: bool = False
    detach: bool = False


class _Clean(msgspec.Struct, forbid_unknown_fields=True):
    yes: bool = False
    min_age_s: Annotated[float, msgspec.Meta(ge=LEAST_AGE_S, le=10 * 366 * 86_400)] = GRACE_S


class ModelRoutes:
    """All of them."""

    def __init__(self, stores: StoreWork, listing: Listing, cleaning: Cleaning) -> None:
        self._stores = stores
        self._listing = listing
        self._cleaning = cleaning

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/models", self.models),
            web.post("/models/pull", self.pull),
            web.post("/models/gc", self.collect),
            web.delete("/models/{name:.+}", self.remove),
        ]

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"schema": MODELS_SCHEMA} | await self._listing.page())

    async def pull(self, request: web.Request) -> web.StreamResponse:
        """The lines as they come. Who leaves before the end leaves as any client does: the pull goes on for others."""
        asked = await _body(request, _Pull)
        if not asked.model.strip():
            return _error(400, "model is required")
        # closed when this ends: else it would wait for itself
        lines = cast(
            "AsyncGenerator[bytes, None]", self._stores.pull(asked.model, insecure=asked.insecure, detach=asked.detach)
        )
        async with aclosing(lines):
            if not asked.detach:
                return await _streamed(request, lines)
            return _begun(asked.model, await _why_not(lines))

    async def remove(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            await self._stores.delete(name)
        except StoreError as error:
            return _error(error.status, error.message)
        return web.json_response({"schema": MODELS_SCHEMA, "removed": name})

    async def collect(self, request: web.Request) -> web.StreamResponse:
        asked = await _body(request, _Clean)
        async with aclosing(self._cleaning.clean(asked.min_age_s, removes=asked.yes)) as steps:
            return await _streamed(request, (msgspec.json.encode(_whole(step)) + b"\n" async for step in steps))


def _whole(step: Step) -> Step:
    return {"schema": MODELS_SCHEMA} | step if "status" not in step else step


async def _why_not(lines: AsyncGenerator[bytes, None]) -> str | None:
    """Why the pull cannot be, if that is soon known; None: it has begun, or takes its time."""
    try:
        async with asyncio.timeout(_NEWS_S):
            async for raw in lines:
                line = read_line(raw)
                if line.error is not None or line.digest:
                    return line.error
    except TimeoutError:
        return None
    return None


def _begun(model: str, why_not: str | None) -> web.Response:
    """The answer to somebody who does not wait for the pull's end."""
    if why_not is not None:
        return _error(502, why_not)
    return web.json_response({"schema": MODELS_SCHEMA, "pulling": model}, status=202)


async def _body(request: web.Request, shape: type[_T]) -> _T:
    """The request's, an object of that shape; none is one without keys. Raises HTTPBadRequest."""
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=shape)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(reason=_one_line(f"the body is not as it should be: {error}")) from error


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:500]


async def _streamed(request: web.Request, lines: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Send them one by one, and end with whoever asked, also between two lines."""
    response = web.StreamResponse(headers={"Content-Type": _NDJSON, "Cache-Control": "no-store"})
    await response.prepare(request)
    try:
        while (line := await _next(request, lines)) is not None:
            await response.write(line)
    except ConnectionError:
        return response
    except Exception:  # a bug: half of an answer needs an end that says so
        _log.exception("admin_failed path=%s", request.path)
        await response.write(b'{"error":"internal error; the log says more"}\n')
    await response.write_eof()
    return response


async def _next(request: web.Request, lines: AsyncGenerator[bytes, None]) -> bytes | None:
    """None: that was the last. Raises ConnectionError where nobody is there any more."""
    coming = asyncio.ensure_future(anext(lines, None))
    try:
        while not (await asyncio.wait({coming}, timeout=_LOOK_S))[0]:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError
        return coming.result()
    finally:
        if not coming.done():
            coming.cancel()
            await asyncio.wait({coming})


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
