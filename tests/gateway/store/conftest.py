"""A real gateway in the test's loop, in front of scripted replicas with the stores that a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest
import pytest_asyncio
import uvloop

from tests.gateway.store.stage import Stage, StoreReplica, configuration
from tests.gateway.wire.harness import RunningGateway

Open = Callable[..., Awaitable[Stage]]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop the gateway runs on in real life."""
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Open]:
    """``await opened("s", "s", "t")``: a gateway in front of three replicas, r0 and r1 with one store."""
    stages: list[Stage] = []

    async def opener(*stores: str, extra: str = "") -> Stage:
        replicas = [StoreReplica() for _ in stores]
        for replica in replicas:
            await replica.start()
        places = [(replica.port, store) for replica, store in zip(replicas, stores, strict=True)]
        running = RunningGateway(configuration(places, extra), [*replicas])
        stage = Stage(running, replicas)
        stages.append(stage)
        await running.start()
        return stage

    yield opener
    for stage in stages:
        for replica in stage.replicas:
            replica.awake.set()
        await stage.running.stop()
