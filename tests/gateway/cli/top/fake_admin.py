"""An admin port that says what a real one once said (``records.json``, from a demo under load), and takes orders."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from aiohttp import web

PERIOD_S: Final = 0.1
RECORDS: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("records.json").read_text())


def records() -> dict[str, Any]:
    """``snapshot``, ``requests`` and ``log``; a copy, to be changed as it pleases."""
    return copy.deepcopy(RECORDS)


class FakeAdmin:
    """Each reader of ``/live`` gets all of ``records`` first, and then what is said."""

    def __init__(self) -> None:
        self.records = records()
        self.ordered: list[str] = []
        self.refusal: str | None = None
        """What every order is answered with."""
        self.streams = 0
        self.url = ""
        self._readers: set[asyncio.Queue[bytes | None]] = set()
        self.is_shut = False

    @property
    def page(self) -> dict[str, Any]:
        found: dict[str, Any] = self.records["snapshot"]
        return found

    def say(self, kind: str, data: dict[str, Any]) -> None:
        for reader in self._readers:
            reader.put_nowait(_event(kind, data))

    def cut(self) -> None:
        """End all streams."""
        for reader in self._readers:
            reader.put_nowait(None)

    async def snapshot(self, request: web.Request) -> web.Response:
        return web.json_response(self.page)

    async def requests(self, request: web.Request) -> web.Response:
        return web.json_response({"schema": 1, "requests": self.records["requests"][-int(request.query["n"]) :]})

    async def log(self, request: web.Request) -> web.Response:
        return web.json_response({"schema": 1, "lines": self.records["log"][-int(request.query["n"]) :]})

    async def live(self, request: web.Request) -> web.StreamResponse:
        if self.is_shut:
            raise web.HTTPServiceUnavailable
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.streams += 1
        reader: asyncio.Queue[bytes | None] = asyncio.Queue()
        for kind, data in self._beginning():
            reader.put_nowait(_event(kind, data))
        self._readers.add(reader)
        with suppress(ConnectionError):
            while (said := await self._next(reader)) is not None:
                await response.write(said)
        self._readers.discard(reader)
        return response

    async def _next(self, reader: asyncio.Queue[bytes | None]) -> bytes | None:
        try:
            return await asyncio.wait_for(reader.get(), PERIOD_S)
        except TimeoutError:
            return _event("snapshot", self.page)

    def _beginning(self) -> list[tuple[str, dict[str, Any]]]:
        said = [("snapshot", self.page)]
        said += [("request", one) for one in self.records["requests"]]
        return [*said, *(("log", one) for one in self.records["log"])]

    async def order(self, request: web.Request) -> web.Response:
        if self.refusal is not None:
            return web.json_response({"error": self.refusal}, status=409)
        replica_id, verb = request.match_info["id"], request.match_info["verb"]
        self.ordered.append(f"{verb} {replica_id}")
        return web.json_response({"id": replica_id})


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


@asynccontextmanager
async def fake_admin() -> AsyncIterator[FakeAdmin]:
    made = FakeAdmin()
    app = web.Application()
    app.add_routes(
        [
            web.get("/snapshot", made.snapshot),
            web.get("/requests", made.requests),
            web.get("/log", made.log),
            web.get("/live", made.live),
            web.post("/replicas/{id}/{verb}", made.order),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        made.cut()
        await runner.cleanup()
