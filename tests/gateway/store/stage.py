"""Scripted replicas whose stores' operations a test feeds by hand, and clients that ask for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from corral.gateway.config import Config, parse_config
from corral.gateway.store.names import is_ours
from corral.gateway.store.stores import Stores
from tests.gateway.wire.harness import Client, RunningGateway, post, until
from tests.gateway.wire.replica import Call, ScriptedReplica

MANIFEST = {"status": "pulling manifest"}
SUCCESS = {"status": "success"}
NEW = "new:latest"
LOST_S = 20.0

Script = Callable[[Call], Awaitable[None]]


def configuration(places: Sequence[tuple[int, str]], extra: str = "") -> Config:
    """Replicas r0, r1, … at these ports with these stores."""
    listed = "".join(
        f'  - {{id: r{number}, url: "http://127.0.0.1:{port}", slots: 4, store: {store}}}\n'
        for number, (port, store) in enumerate(places)
    )
    own = "" if "placement:" in extra else "placement: {enabled: false}\n"
    text = f"listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n{listed}{own}{extra}"
    return parse_config(text, "test")


def layer(completed: int, digest: str = "sha256:aa", total: int = 100) -> dict[str, Any]:
    line: dict[str, Any] = {"status": f"pulling {digest[7:]}", "digest": digest, "total": total}
    return line | ({"completed": completed} if completed else {})


def entry(name: str, digest: str) -> dict[str, Any]:
    """One of ``/api/tags``."""
    return {"name": name, "model": name, "modified_at": "2026-08-21T18:48:11Z", "size": 10, "digest": digest * 64}


class Feed:
    """One request to a replica whose answer a test writes, line by line."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.left = asyncio.Event()
        """The gateway has closed the connection."""
        self._is_begun = False
        self._over = asyncio.Event()

    @property
    def body(self) -> Any:
        return json.loads(self.call.body)

    async def say(self, *lines: object) -> None:
        if not self._is_begun:
            self._is_begun = True
            await self.call.start_stream()
        for line in lines:
            await self.call.chunk(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")

    async def end(self, *lines: object) -> None:
        """With these last lines."""
        await self.say(*lines)
        await self.call.end()
        self._over.set()

    async def answer(self, status: str = "200 OK", body: object = None) -> None:
        """Whole."""
        if body is None:
            await self.call.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status.encode())
        else:
            await self.call.json(body, status)
        self._over.set()

    def cut(self) -> None:
        self.call.reset()
        self._over.set()

    async def serve(self) -> None:
        gone, over = asyncio.create_task(self.call.gone()), asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({gone, over}, return_when=asyncio.FIRST_COMPLETED)
            if not self._over.is_set():
                self.left.set()
                raise ConnectionResetError
        finally:
            gone.cancel()
            over.cancel()


class Feeds:
    """Requests to one path."""

    def __init__(self) -> None:
        self.all: list[Feed] = []

    async def __call__(self, call: Call) -> None:
        feed = Feed(call)
        self.all.append(feed)
        await feed.serve()

    async def get(self, number: int = 0) -> Feed:
        await until(lambda: len(self.all) > number)
        return self.all[number]


class _Gated:
    """A reader whose owner falls asleep before it answers anything."""

    def __init__(self, reader: asyncio.StreamReader, awake: asyncio.Event) -> None:
        self._reader = reader
        self._awake = awake

    async def readuntil(self, separator: bytes) -> bytes:
        data = await self._reader.readuntil(separator)
        await self._awake.wait()
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


class StoreReplica(ScriptedReplica):
    """Answers what changes its store at once and well, but where a test has fed."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: dict[str, Script] = {}
        self.answer = self._answer
        self.awake = asyncio.Event()
        self.awake.set()

    def feed(self, path: str = "/api/pull") -> Feeds:
        """The test answers what is asked of this path."""
        feeds = Feeds()
        self.scripts[path] = feeds
        return feeds

    def asked(self, path: str) -> list[Any]:
        """The bodies of what was asked of it, but for what concerns names of the gateway's own."""
        bodies = [json.loads(call.body) for call in self.calls if call.path == path]
        return [body for body in bodies if not any(is_ours(str(value)) for value in body.values())]

    def list(self, *entries: dict[str, Any]) -> None:
        """These are its models from now on."""
        self.tags = {"models": [*entries]}

    async def _answer(self, call: Call) -> None:
        if any(name in call.body for name in (b"corral-previous/",)):
            await Feed(call).answer()
        elif call.path in self.scripts:
            await self.scripts[call.path](call)
        elif call.path in ("/api/pull", "/api/create", "/api/push"):
            await Feed(call).end(MANIFEST, SUCCESS)
        else:
            await Feed(call).answer()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await super()._serve_one(cast(asyncio.StreamReader, _Gated(reader, self.awake)), writer)


class Asked:
    """One client on its way."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def line(self) -> Any:
        """The next one; None: there is none any more."""
        chunk = await self.client.chunk()
        return json.loads(chunk) if chunk else None

    async def lines(self) -> list[Any]:
        """All that are left."""
        return [json.loads(piece) async for piece in self.client.chunks()]

    async def hears(self, line: object) -> None:
        """Read on until this one comes."""
        while (said := await self.line()) != line:
            assert said is not None

    def leave(self) -> None:
        self.client.reset()


class Stage:
    """A gateway and its replicas."""

    def __init__(self, running: RunningGateway, replicas: list[StoreReplica]) -> None:
        self.running = running
        self.replicas = replicas

    def __getitem__(self, number: int) -> StoreReplica:
        return self.replicas[number]

    @property
    def stores(self) -> Stores:
        return self.running.app.stores

    async def send(self, path: str, *, method: str = "POST", **body: Any) -> Asked:
        """A client asks; its answer is not read yet."""
        client = await self.running.connect()
        request = post(path, json.dumps(body).encode())
        await client.send(request.replace(b"POST", method.encode(), 1))
        return Asked(client)

    async def pull(self, model: str = NEW, **fields: Any) -> Asked:
        return await self.send("/api/pull", model=model, **fields)

    async def begun(self, model: str = NEW, **fields: Any) -> Asked:
        """A pull whose answer has begun."""
        asked = await self.pull(model, **fields)
        status, headers = await asked.client.head()
        assert (status, headers["content-type"]) == (200, "application/x-ndjson")
        return asked

    async def ask(self, path: str, *, method: str = "POST", **body: Any) -> tuple[int, Any]:
        """Status and what was said: None, an object or several lines."""
        asked = await self.send(path, method=method, **body)
        async with asyncio.timeout(LOST_S):
            status, headers, answer = await asked.client.answer()
        if headers.get("content-type") == "application/x-ndjson":
            return status, [json.loads(line) for line in answer.splitlines()]
        return status, json.loads(answer) if answer else None

    async def delete(self, model: str) -> tuple[int, Any]:
        return await self.ask("/api/delete", method="DELETE", model=model)

    async def get(self, path: str) -> Any:
        client = await self.running.connect()
        await client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return json.loads((await client.answer())[2])

    async def tags(self) -> dict[str, str]:
        """Digests by name, as clients see them."""
        return {each["name"]: each["digest"][:1] for each in (await self.get("/api/tags"))["models"]}

    async def at_rest(self) -> None:
        """Nothing is held, and nothing of the gateway's own is under way."""
        await until(lambda: not self.stores.pulls() and not self.running.scheduler.inflight)
        self.running.assert_nothing_held()
