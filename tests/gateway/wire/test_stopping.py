"""What a client gets of its answer when the gateway stops."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, CHAT_WHOLE, RunningGateway, post, until
from tests.gateway.wire.replica import Call

SIZE = 300_000


async def large(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % SIZE)
    await call.write(b"x" * SIZE)


async def never(call: Call) -> None:
    await asyncio.Event().wait()


def small_buffers(gateway: RunningGateway) -> None:
    """The kernel keeps little of an answer: the rest waits in the gateway."""
    for connection in gateway.gateway.connections:
        assert connection.transport is not None
        raw = connection.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def stopped(gateway: RunningGateway) -> None:
    await gateway.app.until_stopped(lambda requests, drain_s: None)


@pytest.mark.parametrize("more", [(), ("Connection: close",)])
async def test_a_complete_answer_that_is_not_yet_read_is_still_sent(start: Start, more: tuple[str, ...]) -> None:
    gateway = await start(1)
    gateway.replicas[0].answer = large
    client = await gateway.connect()
    client.writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: gateway.gateway.connections)
    small_buffers(gateway)
    await client.send(post("/api/embed", CHAT_WHOLE, *more))
    await until(lambda: gateway.replicas[0].calls and not gateway.scheduler.inflight)
    assert gateway.gateway.busy == 1
    gateway.app.stop()
    ending = asyncio.create_task(stopped(gateway))
    await until(lambda: gateway.gateway.draining)
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert len((await client.answer())[2]) == SIZE
    await ending


async def test_who_has_had_no_byte_when_it_ends_now_is_refused(start: Start) -> None:
    gateway = await start(1)
    gateway.replicas[0].answer = never
    asked = asyncio.create_task(gateway.ask(post("/api/chat", CHAT)))
    await until(lambda: gateway.scheduler.inflight)
    gateway.app.stop()
    gateway.app.stop()
    await stopped(gateway)
    status, headers, body = await asked
    assert (status, headers["connection"], body) == (503, "close", b'{"error":"the gateway is shutting down"}')
    gateway.assert_nothing_held()
