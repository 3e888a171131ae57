"""A replica whose every byte a test decides: probes are answered properly, all else by the test's own script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Answer = Callable[["Call"], Awaitable[None]]

MODEL = "llama3.1:8b"
_TAGS = {
    "models": [
        {
            "name": MODEL,
            "model": MODEL,
            "modified_at": "2026-08-21T18:48:11.123456789Z",
            "size": 4920753328,
            "digest": "46e0c10c039e019119339687c3c1757cc81b9da49709a3b3924863ba87ca666e",
            "details": {"format": "gguf", "family": "llama", "parameter_size": "8.0B", "quantization_level": "Q4_K_M"},
        }
    ]
}


@dataclass
class Call:
    """One request as the replica saw it, and the means to answer it."""

    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def line(self) -> str:
        return self.head.partition(b"\r\n")[0].decode()

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]

    def header(self, name: str) -> str | None:
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.decode("latin-1").partition(":")
            if key.lower() == name:
                return value.strip()
        return None

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def json(self, value: object, status: str = "200 OK") -> None:
        body = json.dumps(value).encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        await self.write(head.encode() + body)

    async def start_stream(self, content_type: str = "application/x-ndjson") -> None:
        await self.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )

    async def chunk(self, payload: bytes) -> None:
        await self.write(b"%x\r\n%b\r\n" % (len(payload), payload))

    async def line_of(self, **fields: object) -> None:
        await self.chunk(json.dumps({"model": MODEL, **fields}).encode() + b"\n")

    async def end(self) -> None:
        await self.write(b"0\r\n\r\n")

    def reset(self) -> None:
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Returns when the gateway has closed its connection."""
        while await self.reader.read(65536):
            pass


async def say_hello(call: Call) -> None:
    """The default script: a short stream (or one JSON answer for ``stream: false``)."""
    if b'"stream":false' in call.body.replace(b" ", b""):
        await call.json(
            {"model": MODEL, "message": {"role": "assistant", "content": "hello"}, "done": True, "eval_count": 2}
        )
        return
    await call.start_stream()
    await call.line_of(message={"role": "assistant", "content": "hel"}, done=False)
    await call.line_of(message={"role": "assistant", "content": "lo"}, done=False)
    await call.line_of(message={"role": "assistant", "content": ""}, done=True, done_reason="stop", eval_count=2)
    await call.end()


@dataclass
class ScriptedReplica:
    """Listens on a free loopback port; ``answer`` may be changed at any time."""

    answer: Answer = say_hello
    calls: list[Call] = field(default_factory=list)
    version: str = "0.32.15"
    tags: dict[str, object] = field(default_factory=lambda: dict(_TAGS))
    ps: dict[str, object] = field(default_factory=lambda: {"models": []})
    port: int = 0
    connections: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections and cut those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                await self._serve_one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        call = Call(head, b"", reader, writer)
        length = call.header("content-length")
        if length is not None and not call.line.startswith("POST /api/blobs"):  # uploads are the script's to read
            call.body = await reader.readexactly(int(length))
        if call.path == "/api/version" and call.line.startswith("GET"):
            await call.json({"version": self.version})
        elif call.path == "/api/tags":
            await call.json(self.tags)
        elif call.path == "/api/ps":
            await call.json(self.ps)
        else:
            self.calls.append(call)
            await self.answer(call)
