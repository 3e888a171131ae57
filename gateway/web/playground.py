"""``POST /chat``: a question from the web page, asked at the client port as any client would, and in its turn.

The page cannot ask there itself: another port is another origin to a browser, and may not even be reachable from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Final, TypeVar

import aiohttp
from aiohttp import web

INDEX: Final = """\
POST /chat                     a question, asked at the client port as Ollama's /api/chat (the web page does)
"""
_LOOK_S: Final = 0.25
"""Between two looks whether the one who asked is still there."""
_PASSED_ON: Final = ("Content-Type", "X-Request-Id", "X-Corral-Replica", "X-Corral-Reason", "X-Corral-Queue-S")

T = TypeVar("T")


class _Left(Exception):
    """Nobody waits for the answer any more."""


class Playground:
    """``url``: where clients connect, as seen from here."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/chat", self.chat)]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """The answer as it comes. Who leaves ends it, also while it waits."""
        body = await request.read()
        asking = self._session.post(
            f"{self._url}/api/chat", data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
        )
        try:
            async with await _while_there(request, _entered(asking)) as answer:
                return await _passed_on(request, answer)
        except _Left:
            return web.Response()  # which nobody reads
        except aiohttp.ClientError as error:
            raise web.HTTPBadGateway(reason=f"the client port does not answer: {type(error).__name__}") from error


async def _entered(asking: aiohttp.client._RequestContextManager) -> aiohttp.ClientResponse:
    return await asking


async def _passed_on(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    headers = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
    response = web.StreamResponse(status=answer.status, headers={**headers, "Cache-Control": "no-store"})
    await response.prepare(request)
    try:
        while piece := await _while_there(request, answer.content.readany()):
            await response.write(piece)
        await response.write_eof()
    except (_Left, aiohttp.ClientError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()  # the answer broke: that must not look like its end
    return response


async def _while_there(request: web.Request, work: Coroutine[object, object, T]) -> T:
    """What comes of ``work``, as long as somebody waits for it. Raises :class:`_Left`."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_S))[0]:
            if request.transport is None or request.transport.is_closing():
                raise _Left
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
