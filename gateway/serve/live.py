"""Pages that go on: a stream of what happens (server-sent events), and what happened lately."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web
from msgspec.json import encode

from corral.gateway.ended import Ended
from corral.gateway.serve.lately import KEPT, Journal, Ring, line_json, request_json
from corral.gateway.serve.readers import Readers

INDEX: Final = """\
GET  /live                     what happens, as server-sent events: snapshot, request, log
GET  /requests                 the last requests as JSON
GET  /log                      the last lines of the log as JSON (`corral logs` shows them)
"""
SCHEMA: Final = 1
"""Of ``/requests`` and ``/log``: grows when a key goes or changes its meaning."""
MAX_READERS: Final = 64
PERIOD_S: Final = 0.5
"""Between two looks for something new, where the reader wants no longer one."""
LONGEST_S: Final = 60.0
"""A reader that needs it less often may ask for that, up to here."""
UNREAD_S: Final = 15.0
"""A reader that takes nothing for so long is let go."""

Page = Callable[[], dict[str, Any]]


class LiveRoutes:
    """``page`` gives what ``/snapshot`` shows."""

    def __init__(self, page: Page, requests: Ring[Ended], journal: Journal, clock: Callable[[], float]) -> None:
        self._page = page
        self._requests = requests
        self._journal = journal
        self._clock = clock
        self._readers = Readers(MAX_READERS, "readers")
        self._ending = asyncio.Event()
        self._made: tuple[float, bytes] = (float("-inf"), b"")

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/live", self.live),
            web.get("/requests", self.requests),
            web.get("/log", self.log),
        ]

    def close(self) -> None:
        """The gateway ends: let all readers go."""
        self._ending.set()

    async def requests(self, request: web.Request) -> web.Response:
        found = self._requests.newest(_wanted(request))
        return web.json_response({"schema": SCHEMA, "requests": [request_json(*each) for each in found]})

    async def log(self, request: web.Request) -> web.Response:
        found = self._journal.lines.newest(_wanted(request))
        return web.json_response({"schema": SCHEMA, "lines": [line_json(*each) for each in found]})

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Begins with the newest ``?n=`` requests and lines (default 50); then all that comes, every ``?every=``
        seconds."""
        backlog, period_s = _wanted(request, 50), _period_s(request)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        return await self._readers.serve(request, response, lambda: self._tell(response, backlog, period_s))

    async def _tell(self, response: web.StreamResponse, backlog: int, period_s: float) -> None:
        seen = self._requests.last - backlog, self._journal.lines.last - backlog
        while not self._ending.is_set():
            said = [self._snapshot()]
            said += [_event("request", _quick(request_json(*each))) for each in self._requests.since(seen[0])]
            said += [_event("log", _text(line_json(*each))) for each in self._journal.lines.since(seen[1])]
            seen = self._requests.last, self._journal.lines.last
            async with asyncio.timeout(UNREAD_S):
                await response.write(b"".join(said))
            try:
                async with asyncio.timeout(period_s):
                    await self._ending.wait()
            except TimeoutError:
                continue

    def _snapshot(self) -> bytes:
        """Made once for all readers of one moment."""
        made_at_s, event = self._made
        now_s = self._clock()
        if now_s - made_at_s >= PERIOD_S / 2:
            event = _event("snapshot", _text(self._page()))
            self._made = now_s, event
        return event


def _wanted(request: web.Request, default: int = 100) -> int:
    text = request.query.get("n", str(default))
    if not text.isdecimal() or len(text) > len(str(KEPT)) or int(text) > KEPT:
        raise web.HTTPBadRequest(reason=f"n={text!r:.20}: expected a whole number from 0 to {KEPT}")
    return int(text)


def _period_s(request: web.Request) -> float:
    text = request.query.get("every", "")
    if not text:
        return PERIOD_S
    try:
        period_s = float(text)
    except ValueError:
        period_s = 0.0
    if not PERIOD_S <= period_s <= LONGEST_S:
        raise web.HTTPBadRequest(reason=f"every={text!r:.20}: expected seconds, from {PERIOD_S:g} to {LONGEST_S:g}")
    return period_s


def _event(kind: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _quick(data: dict[str, Any]) -> bytes:
    """There may be hundreds at a time: msgspec takes a tenth of the time, but refuses what a client may have sent as
    half a character."""
    try:
        return encode(data)
    except UnicodeEncodeError:
        return _text(data)


def _text(data: dict[str, Any]) -> bytes:
    """Whatever stands in it: a path in a line of the log may be no proper text."""
    return json.dumps(data).encode()
