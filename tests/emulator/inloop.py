"""Emulators inside the test's own loop, with a client for each: quick, and a test sees what is in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from corral.emulator.app import App
from corral.emulator.catalog import gpu_named, model_given
from corral.emulator.settings import Settings

WITHIN_S = 10.0


class InLoop:
    """One emulator and its address."""

    def __init__(self, app: App, session: aiohttp.ClientSession, url: str) -> None:
        self.app = app
        self.session = session
        self.url = url

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer: None, an object, or the objects of a stream."""
        async with self.session.request(method, self.url + path, data=json.dumps(body).encode()) as answer:
            text = await answer.text()
            found = [json.loads(line) for line in text.splitlines()]
            return answer.status, found if answer.content_type == "application/x-ndjson" else (found or [None])[0]

    async def post(self, path: str, **body: Any) -> Any:
        """The answer of a request that must succeed."""
        status, found = await self.ask("POST", path, body)
        assert status == 200, found
        return found

    async def pull(self, model: str) -> list[dict[str, Any]]:
        """The status lines."""
        lines: list[dict[str, Any]] = await self.post("/api/pull", model=model)
        return lines

    async def load(self, model: str, **fields: Any) -> None:
        await self.post("/api/generate", model=model, **fields)

    async def delete(self, model: str) -> None:
        assert await self.ask("DELETE", "/api/delete", {"model": model}) == (200, None)

    async def tags(self) -> dict[str, dict[str, Any]]:
        _, found = await self.ask("GET", "/api/tags")
        return {model["name"]: model for model in found["models"]}

    async def ps(self) -> dict[str, dict[str, Any]]:
        """By digest."""
        _, found = await self.ask("GET", "/api/ps")
        return {model["digest"]: model for model in found["models"]}

    async def until(self, holds: Callable[[], bool]) -> None:
        """Poll until it holds."""
        async with asyncio.timeout(WITHIN_S):
            while not holds():
                await asyncio.sleep(0.002)


@asynccontextmanager
async def emulated(*models: str, id: str = "a", **settings: Any) -> AsyncIterator[InLoop]:
    """One that has these models."""
    options = {"speed": 50.0, "context_length": 4096} | settings
    app = App(Settings(id, gpu_named("RTX 4090"), tuple(map(model_given, models)), **options))
    server = await asyncio.get_running_loop().create_server(app.connection, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        async with aiohttp.ClientSession() as session:
            yield InLoop(app, session, f"http://{host}:{port}")
    finally:
        app.close()
        server.close()
