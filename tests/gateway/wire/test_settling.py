"""Requests that are on their way when the gateway is told to stop."""

from __future__ import annotations

import asyncio

from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, post, until


async def ending(gateway: object) -> None:
    await gateway.app.until_stopped(lambda requests, drain_s: None)  # type: ignore[attr-defined]


async def test_the_request_of_a_connection_just_opened_is_still_answered(start: Start) -> None:
    gateway = await start(1)
    client = await gateway.connect()
    await until(lambda: gateway.gateway.connections)
    gateway.app.stop()
    end = asyncio.create_task(ending(gateway))
    await until(lambda: gateway.gateway.draining)
    await client.send(post("/api/chat", CHAT))
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (200, "close")
    await end
    gateway.assert_nothing_held()


async def test_who_has_been_idle_for_long_is_not_waited_for(start: Start) -> None:
    gateway = await start(1)
    client = await gateway.connect()
    await until(lambda: gateway.gateway.connections)
    for connection in gateway.gateway.connections:
        connection.idle_since_s -= 60
    gateway.app.stop()
    began_s = gateway.gateway.clock()
    await gateway.gateway.settle()
    assert gateway.gateway.clock() - began_s < 0.2
    await ending(gateway)
    assert await client.reader.read() == b""
