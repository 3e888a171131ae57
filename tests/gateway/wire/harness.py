"""Runs the gateway inside a test and speaks to it in raw bytes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable

from corral.gateway.app import App
from corral.gateway.carried import Carried
from corral.gateway.config import Config
from corral.gateway.config.sources import Sources
from corral.gateway.gateway import Gateway
from corral.gateway.schedule.scheduler import Scheduler
from corral.model import Health, ReplicaState
from corral.probes.ollama import probe_session
from tests.gateway.wire.replica import MODEL, ScriptedReplica

CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
CHAT_WHOLE = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": False}).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A complete POST as a client would send it."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1:11434", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait for a condition that other tasks bring about."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.002)


class Client:
    """A raw client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read one response head: status and headers (lower-case names)."""
        raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        lines = raw.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            if name:
                headers[name.lower()] = value.strip()
        return int(lines[0].split(" ")[1]), headers

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one whole response, de-chunked."""
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, b"".join([piece async for piece in self.chunks()])
        if "content-length" in headers:
            return status, headers, await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), 10)
        return status, headers, await self.rest()

    async def chunk(self) -> bytes:
        """One chunk's payload; empty for the last."""
        size = int((await asyncio.wait_for(self.reader.readuntil(b"\r\n"), 10))[:-2], 16)
        data = await self.reader.readexactly(size + 2)
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks' payloads, up to the last chunk."""
        while payload := await self.chunk():
            yield payload

    async def rest(self) -> bytes:
        """Everything until the connection ends."""
        return await asyncio.wait_for(self.reader.read(), 10)

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


class RunningGateway:
    """A gateway, its replicas, and connections to it."""

    def __init__(self, config: Config, replicas: list[ScriptedReplica]) -> None:
        self.config = config
        self.replicas = replicas
        self.clients: list[Client] = []
        self.drained = False

    async def start(self) -> None:
        self._session = probe_session()
        sources = Sources(None, {}, base=self.config, command="the test")
        self.app = App(sources, sources.settle(), asyncio.get_running_loop(), self._session)
        self._sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        for each in self._sockets:
            each.setblocking(False)
        self.port = self._sockets[0].getsockname()[1]
        self.admin_port = self._sockets[1].getsockname()[1]
        await self.app.start(*self._sockets)
        await until(lambda: all(state.health is Health.UP and state.installed for state in self.states))

    @property
    def gateway(self) -> Gateway:
        return self.app.gateway

    @property
    def states(self) -> tuple[ReplicaState, ...]:
        return self.app.gateway.snapshot().replicas

    @property
    def scheduler(self) -> Scheduler[Carried]:
        return self.app.gateway.carrier.scheduler

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20))
        self.clients.append(client)
        return client

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        client = await self.connect()
        await client.send(request)
        return await client.answer()

    def assert_nothing_held(self) -> None:
        """No lease, no queued request, no upstream connection at work is left."""
        assert self.scheduler.inflight == 0
        assert self.scheduler.queued == 0
        assert not self.gateway.pool.active

    async def stop(self) -> None:
        for client in self.clients:
            client.reset()
        self.app.stop()
        self.app.stop()
        await self.app.until_stopped(lambda requests, drain_s: None)
        await self._session.close()
        for replica in self.replicas:
            await replica.stop()
        for each in self._sockets:
            each.close()
