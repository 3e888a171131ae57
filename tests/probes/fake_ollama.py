"""A replica on a real socket that answers each path as the test says, faults included."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from corral.model import Replica

Answer = Callable[[asyncio.StreamWriter], Awaitable[bool]]
"""Writes one answer; says whether the connection stays open."""


def page(body: bytes, status: str = "200 OK", extra: bytes = b"") -> Answer:
    """A complete HTTP answer on a connection that stays open."""

    async def write(writer: asyncio.StreamWriter) -> bool:
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n".encode()
        writer.write(head + extra + b"\r\n" + body)
        return True

    return write


def document(value: Any) -> Answer:
    return page(json.dumps(value).encode())


def octets(data: bytes) -> Answer:
    """Exactly these octets, then the end of the connection."""

    async def write(writer: asyncio.StreamWriter) -> bool:
        writer.write(data)
        await writer.drain()
        return False

    return write


def endless(head: bytes, piece: bytes) -> Answer:
    """An answer that never ends by itself."""

    async def write(writer: asyncio.StreamWriter) -> bool:
        writer.write(head)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
        return False

    return write


def held(gate: asyncio.Event, answer: Answer, first: bytes = b"") -> Answer:
    """``answer``, but not before the gate opens; ``first`` is sent ahead of it."""

    async def write(writer: asyncio.StreamWriter) -> bool:
        writer.write(first)
        await gate.wait()
        return await answer(writer)

    return write


def reset() -> Answer:
    async def write(writer: asyncio.StreamWriter) -> bool:
        writer.transport.abort()
        return False

    return write


TAG = {
    "name": "llama3.1:8b",
    "model": "llama3.1:8b",
    "modified_at": "2026-08-21T18:48:11.123456789+02:00",
    "size": 4920753328,
    "digest": "46e0c10c039e",
    "details": {"parent_model": "", "format": "gguf", "families": ["llama"]},
}
LOADED = {
    "name": "llama3.1:8b",
    "model": "llama3.1:8b",
    "size": 6654289920,
    "digest": "46e0c10c039e",
    "details": {"format": "gguf"},
    "expires_at": "2318-11-30T02:00:00.5+02:00",
    "size_vram": 6654289000,
    "context_length": 4096,
}


class FakeOllama:
    """Counts what it is asked; ``answers`` may be changed at any time."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {
            "/api/version": document({"version": "0.32.15"}),
            "/api/tags": document({"models": [TAG]}),
            "/api/ps": document({"models": [LOADED]}),
        }
        self.heads: list[str] = []
        self.asked: Counter[str] = Counter()
        self.now: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def replica(self, replica_id: str = "a") -> Replica:
        return Replica(replica_id, "127.0.0.1", self.port)

    async def start(self) -> None:
        """Listen on a free port, or after :meth:`stop` on the same one again."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        self.heads.append(head)
        self.asked[path] += 1
        self.now[path] += 1
        self.most_at_once[path] = max(self.most_at_once[path], self.now[path])
        try:
            return await self.answers[path](writer)
        finally:
            self.now[path] -= 1


@asynccontextmanager
async def fake_ollama() -> AsyncIterator[FakeOllama]:
    fake = FakeOllama()
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()
