"""A whole gateway in front of emulators that have their stores on disk, all in the test's own loop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from corral.gateway.config import parse_config
from tests.emulator.inloop import InLoop, emulated
from tests.gateway.wire.harness import RunningGateway

MODEL, OTHER, LARGE = "llama3.2:1b", "all-minilm:22m", "llama3.1:8b"
OLD_S = 2 * 3600


class Box:
    """A gateway, what is behind it, and somebody who asks its admin port."""

    def __init__(self, gateway: RunningGateway, emulators: list[InLoop], session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.emulators = emulators
        self.session = session

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.gateway.admin_port}"

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status, and the object or the objects of the answer."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.request(method, self.admin + path, data=data, headers=headers) as answer:
            text = await answer.text()
            found = [json.loads(line) for line in text.splitlines()]
            return answer.status, found if answer.content_type == "application/x-ndjson" else found[0]

    async def models(self) -> dict[str, dict[str, Any]]:
        status, page = await self.ask("GET", "/models")
        assert (status, page["schema"]) == (200, 1)
        return {model["name"]: model for model in page["models"]}

    async def gc(self, **body: Any) -> list[dict[str, Any]]:
        """What was found, by store."""
        status, steps = await self.ask("POST", "/models/gc", body)
        assert (status, steps[-1]["schema"]) == (200, 1)
        found: list[dict[str, Any]] = steps[-1]["stores"]
        return found


@asynccontextmanager
async def box(
    tmp_path: Path,
    *models: str,
    stores: tuple[str, ...] = ("one", "one"),
    named: tuple[str, ...] = ("one",),
    **settings: Any,
) -> AsyncIterator[Box]:
    """With ``models`` beside :data:`OTHER`. ``stores``: by replica; ``named``: those whose folder is configured."""
    models = tuple(dict.fromkeys((OTHER, *models)))
    options = {"noprune": True, "registry": tmp_path / "registry"} | settings
    async with AsyncExitStack() as stack:
        emulators = [
            await stack.enter_async_context(emulated(*models, id=f"r{at}", store=tmp_path / store, **options))
            for at, store in enumerate(stores)
        ]
        lines = "".join(
            f'  - {{id: r{at}, url: "{each.url}", store: {store}, keep_off: [{OTHER if at else "none"}]}}\n'
            for at, (each, store) in enumerate(zip(emulators, stores, strict=True))
        )
        folders = "".join(f"  {name}: {{path: {tmp_path / name}}}\n" for name in named)
        often = "probes: {ollama_interval_s: 0.1}\n"
        text = f"listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\n{often}replicas:\n{lines}"
        gateway = RunningGateway(parse_config(text + (f"stores:\n{folders}" if named else ""), "test"), [])
        stack.push_async_callback(gateway.stop)
        await gateway.start()
        yield Box(gateway, emulators, await stack.enter_async_context(aiohttp.ClientSession()))


def old_blob(store: Path, letter: str = "a", age_s: float = OLD_S) -> Path:
    path = store / "blobs" / f"sha256-{letter * 64}"
    path.write_bytes(b"x" * 1000)
    os.utime(path, (time.time() - age_s,) * 2)
    return path
