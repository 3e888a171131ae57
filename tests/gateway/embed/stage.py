"""A gateway in front of emulated Ollamas that embed, all in the test's own loop."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest_asyncio

from corral.emulator.app import App
from corral.emulator.catalog import gpu_named, model_given
from corral.emulator.faults import fault_from
from corral.emulator.settings import Settings
from corral.gateway.config import parse_config
from tests.gateway.wire.harness import Client, RunningGateway, post, until

MODEL = "all-minilm:22m"
DURATIONS = re.compile(rb'"(total_duration|load_duration)":\d+')
NATIVE, OPENAI = "/api/embed", "/v1/embeddings"


def texts(count: int) -> list[str]:
    """Of uneven length, with what JSON and Go spell in more than one way."""
    odd = ("plain", "schön 漢字", 'quote " and \\', "<b>&\u2028", "😀" * 5)
    return [f"{number} {odd[number % len(odd)]} " + "word " * (number * 7 % 40) for number in range(count)]


def body(count: int = 64, **fields: object) -> bytes:
    return json.dumps({"model": MODEL, "input": texts(count), **fields}).encode()


def blanked(answer: bytes) -> bytes:
    return DURATIONS.sub(rb'"\1":0', answer)


class Stage:
    """The Ollamas, and the gateway once it was started."""

    def __init__(self, ollamas: Sequence[App], servers: Sequence[asyncio.Server]) -> None:
        self.ollamas = ollamas
        self.servers = servers
        self.asked_directly = [0] * len(ollamas)
        self.ports = [server.sockets[0].getsockname()[1] for server in servers]
        self.running: RunningGateway

    async def start(self, extra: str) -> None:
        listed = "".join(f'  - {{id: r{i}, url: "http://127.0.0.1:{port}"}}\n' for i, port in enumerate(self.ports))
        text = "listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nprobes: {ollama_interval_s: 0.05}\n"
        text += f"replicas:\n{listed}{extra}"
        self.running = RunningGateway(parse_config(text, "test"), [])
        await self.running.start()

    async def ask(self, path: str, content: bytes, *headers: str) -> tuple[int, dict[str, str], bytes]:
        return await self.running.ask(post(path, content, *headers))

    async def direct(self, path: str, content: bytes, number: int = 0) -> tuple[int, dict[str, str], bytes]:
        """What an Ollama by itself answers."""
        self.asked_directly[number] += 1
        client = Client(*await asyncio.open_connection("127.0.0.1", self.ports[number], limit=1 << 20))
        await client.send(post(path, content))
        try:
            return await client.answer()
        finally:
            client.close()

    async def load(self, *numbers: int) -> None:
        """Have these hold the model, and the gateway know it."""
        for number in numbers:
            await self.direct(NATIVE, json.dumps({"model": MODEL, "input": ""}).encode(), number)
        await until(lambda: all(MODEL in (self.running.states[number].loaded or ()) for number in numbers))

    def fault(self, number: int, kind: str, **fields: object) -> None:
        self.ollamas[number].faults.ordered.append(fault_from({"kind": kind, **fields}))

    def embedded(self, number: int) -> int:
        """Requests for embeddings that the gateway sent to an Ollama."""
        found: int = self.ollamas[number].control.stats()["inferences"]
        return found - self.asked_directly[number]

    async def teach(self, load_s: float) -> None:
        """What a text takes, and how long a load; the gateway is to believe that."""
        for number in range(3):
            await self.ask(NATIVE, body(4 + number))
        self.running.scheduler._forecast.costs.loaded(MODEL, load_s)

    def counted(self, kind: str) -> dict[str, int]:
        """Requests of one kind in the metrics, by outcome."""
        series = self.running.app.metrics.series.get((kind, MODEL))
        return {} if series is None else series.outcomes

    def kill(self, number: int) -> None:
        """As a process that ends: nobody listens any more, and every connection is cut."""
        self.servers[number].close()
        self.ollamas[number].close()


Build = Callable[..., Awaitable[Stage]]


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Build]:
    """``await stage(n, extra_yaml, load=(0, 1))`` → a gateway in front of n Ollamas, of which these hold the model."""
    async with AsyncExitStack() as stack:

        async def build(
            count: int = 4,
            extra: str = "",
            *,
            load: Sequence[int] | None = None,
            speeds: Sequence[float] = (),
            loads_s: Sequence[float] = (),
            **options: Any,
        ) -> Stage:
            apps, servers = [], []
            for number in range(count):
                settings = {"speed": 20.0, **options}
                if speeds:
                    settings["speed"] = speeds[number]
                settings["load_s"] = settings["speed"] * (loads_s[number] if loads_s else 0.02)
                app = App(Settings(f"r{number}", gpu_named("RTX 4090"), (model_given(MODEL),), **settings))
                server = await asyncio.get_running_loop().create_server(app.connection, "127.0.0.1", 0)
                stack.callback(server.close)
                stack.callback(app.close)
                apps.append(app)
                servers.append(server)
            made = Stage(apps, servers)
            await made.start(extra)
            stack.push_async_callback(made.running.stop)
            await made.load(*(range(count) if load is None else load))
            return made

        yield build
