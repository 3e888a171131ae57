"""What the Ollama of a replica prints: the end of its log, and what comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from corral.gateway.config.masking import masked
from corral.gateway.run.tailing import Tail
from corral.gateway.serve.readers import Readers
from corral.model import Snapshot

INDEX: Final = """\
GET  /replicas/ID/log          the log of its Ollama (only one that Corral runs; `corral logs ID` shows it)
"""
SCHEMA: Final = 1
MOST_LINES: Final = 5000
DEFAULT_LINES: Final = 100
MAX_READERS: Final = 16
PERIOD_S: Final = 0.25
"""Between two looks for something new."""
UNREAD_S: Final = 15.0
"""A reader that takes nothing for so long is let go."""


class ReplicaLogRoutes:
    """``snapshot`` tells which replicas Corral runs, and where their logs are."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._readers = Readers(MAX_READERS, "readers of logs")
        self._ending = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/replicas/{id}/log", self.log)]

    def close(self) -> None:
        """The gateway ends: let all readers go."""
        self._ending.set()

    async def log(self, request: web.Request) -> web.StreamResponse:
        """The last ``?n=`` lines as a page; with ``?follow=1`` as lines of JSON, and then all that comes."""
        replica_id, count, follows = request.match_info["id"], _count(request), _follows(request)
        path = self._path(replica_id)
        if path is None:
            return self._refused(replica_id)
        tail = Tail(path)
        lines = await asyncio.to_thread(tail.last, count)
        if not follows:
            shown = [_shown(line) for line in lines]
            return web.json_response({"schema": SCHEMA, "id": replica_id, "lines": shown})
        return await self._follow(request, tail, lines)

    def _path(self, replica_id: str) -> Path | None:
        paths = {process.id: Path(process.log) for process in self._snapshot().processes}
        return paths.get(replica_id)

    def _refused(self, replica_id: str) -> web.Response:
        ids = [replica.id for replica in self._snapshot().replicas]
        if replica_id in ids:
            said = f"{replica_id} is not run by Corral: its log is where whoever runs it has it"
            return web.json_response({"error": said}, status=409)
        return web.json_response({"error": f"no replica {replica_id!r}; known: {', '.join(ids)}"}, status=404)

    async def _follow(self, request: web.Request, tail: Tail, lines: list[str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
        return await self._readers.serve(request, response, lambda: self._tell(request, response, tail, lines))

    async def _tell(self, request: web.Request, response: web.StreamResponse, tail: Tail, lines: list[str]) -> None:
        while not self._ending.is_set():
            if lines:
                said = "".join(f"{json.dumps({'text': _shown(line)})}\n" for line in lines)
                async with asyncio.timeout(UNREAD_S):
                    await response.write(said.encode())
            elif request.transport is None or request.transport.is_closing():
                return  # nobody would notice otherwise as long as nothing is written
            elif await self._ended_within(PERIOD_S):
                return
            lines = await asyncio.to_thread(tail.more)

    async def _ended_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._ending.wait()
        except TimeoutError:
            return False


def _shown(line: str) -> str:
    """Ollama prints its environment when it starts, proxies with their passwords included."""
    text = masked("line", line)
    assert isinstance(text, str)
    return text


def _count(request: web.Request) -> int:
    text = request.query.get("n", str(DEFAULT_LINES))
    if not text.isdecimal() or not text.isascii() or len(text) > 5 or int(text) > MOST_LINES:
        raise web.HTTPBadRequest(reason=f"n={text!r:.20}: expected a whole number from 0 to {MOST_LINES}")
    return int(text)


def _follows(request: web.Request) -> bool:
    text = request.query.get("follow", "0")
    if text not in ("0", "1"):
        raise web.HTTPBadRequest(reason=f"follow={text!r:.20}: expected 0 or 1")
    return text == "1"
