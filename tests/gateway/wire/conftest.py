"""A real gateway on loopback, in the test's own loop, in front of scripted replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest
import pytest_asyncio
import uvloop

from corral.gateway.config import parse_config
from tests.gateway.wire.harness import RunningGateway
from tests.gateway.wire.replica import ScriptedReplica

Start = Callable[..., Awaitable[RunningGateway]]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop the gateway runs on in real life: its transports differ from asyncio's own in more than speed."""
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """``await start(n, extra_yaml)`` → a gateway in front of n scripted replicas with 4 slots each."""
    running: list[RunningGateway] = []

    async def starter(count: int = 2, extra: str = "", slots: int = 4) -> RunningGateway:
        replicas = [ScriptedReplica() for _ in range(count)]
        for replica in replicas:
            await replica.start()
        listed = "".join(
            f'  - {{id: r{i}, url: "http://127.0.0.1:{replica.port}", slots: {slots}}}\n'
            for i, replica in enumerate(replicas)
        )
        # scripted replicas load nothing: what the gateway asks of its own accord would only be in the way
        own = "" if "placement:" in extra else "placement: {enabled: false}\n"
        text = f"listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n{listed}{own}{extra}"
        gateway = RunningGateway(parse_config(text, "test"), replicas)
        running.append(gateway)
        await gateway.start()
        return gateway

    yield starter
    for gateway in running:
        await gateway.stop()
