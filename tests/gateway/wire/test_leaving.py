"""Clients that leave, stall or read slowly: the replica stops working for them, and memory stays bounded."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc

import pytest

from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, CHAT_WHOLE, Client, RunningGateway, post, until
from tests.gateway.wire.replica import MODEL, Call

SOON_S = 0.1
"""Upstream must be closed within this time of the client's leaving."""


class Watched:
    """A script that records when the gateway closed its connection."""

    def __init__(self, *, streams: bool) -> None:
        self.streams = streams
        self.closed = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        if self.streams:
            await call.start_stream()
            await call.line_of(done=False)
        await call.gone()
        self.closed.set()
        raise ConnectionResetError


async def leave(client: Client, how: str) -> None:
    if how == "close":
        client.close()
    elif how == "reset":
        client.reset()
    else:
        client.writer.write_eof()


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("when", ["before the first byte", "in the stream"])
@pytest.mark.parametrize("body", [CHAT, CHAT_WHOLE])
async def test_a_client_that_leaves_ends_the_work_at_once(start: Start, how: str, when: str, body: bytes) -> None:
    gateway = await start(1)
    watched = gateway.replicas[0].answer = Watched(streams=when == "in the stream")
    client = await gateway.connect()
    await client.send(post("/api/chat", body))
    await until(lambda: gateway.replicas[0].calls)
    if watched.streams:
        await client.head()
    await leave(client, how)
    await asyncio.wait_for(watched.closed.wait(), SOON_S)
    await until(lambda: gateway.scheduler.inflight == 0)
    gateway.assert_nothing_held()
    assert gateway.states[0].health.value == "up"  # nobody blames the replica


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_a_client_that_leaves_the_queue_is_never_sent(start: Start, how: str) -> None:
    gateway = await start(1, slots=1)
    first = Watched(streams=True)
    gateway.replicas[0].answer = first
    holder = await gateway.connect()
    await holder.send(post("/api/chat", CHAT))
    await until(lambda: gateway.replicas[0].calls)
    waiting = await gateway.connect()
    await waiting.send(post("/api/chat", CHAT))
    await until(lambda: gateway.scheduler.queued == 1)
    await leave(waiting, how)
    await until(lambda: gateway.scheduler.queued == 0, SOON_S)
    holder.reset()
    await until(lambda: gateway.scheduler.inflight == 0)
    assert len(gateway.replicas[0].calls) == 1


async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(start: Start) -> None:
    gateway = await start(1)
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT)[:-10])
    await until(lambda: gateway.gateway.slow)
    client.reset()
    await until(lambda: not gateway.gateway.connections)
    assert not gateway.gateway.slow
    assert not gateway.replicas[0].calls


async def test_a_blob_upload_that_stops_ends_the_upstream_connection(start: Start) -> None:
    gateway = await start(1)
    watched = gateway.replicas[0].answer = Watched(streams=False)
    client = await gateway.connect()
    await client.send(
        b"POST /api/blobs/sha256:aa HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000
    )
    await until(lambda: gateway.replicas[0].calls)
    client.reset()
    await asyncio.wait_for(watched.closed.wait(), SOON_S)
    gateway.assert_nothing_held()


async def test_a_slow_reader_holds_little_memory_and_stops_the_replica(start: Start) -> None:
    written = 0

    async def firehose(call: Call) -> None:
        nonlocal written
        await call.start_stream()
        line = b'{"message":{"content":"%b"},"done":false}\n' % (b"x" * 8000)
        while True:
            await call.chunk(line)
            written += len(line)

    gateway = await start(1)
    gateway.replicas[0].answer = firehose
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT))
    await client.head()
    before = -1
    while before != written:  # until nothing moves any more
        before = written
        await asyncio.sleep(0.2)
    exchange = next(iter(gateway.gateway.connections))
    assert exchange.transport is not None
    assert exchange.transport.get_write_buffer_size() < 1 << 20
    assert written < 64 << 20  # what the kernel's buffers take, and no more
    client.reset()
    await until(lambda: gateway.scheduler.inflight == 0)
    gateway.assert_nothing_held()


async def test_a_slow_reader_gets_everything_in_the_end(start: Start) -> None:
    count = 3000
    line = b'{"message":{"content":"%b"},"done":false}\n' % (b"x" * 8000)

    async def much(call: Call) -> None:
        await call.start_stream()
        for _ in range(count):
            await call.chunk(line)
        await call.line_of(done=True)
        await call.end()

    gateway = await start(1)
    gateway.replicas[0].answer = much
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT, "Connection: close"))
    await client.head()
    await asyncio.sleep(0.5)
    got = b"".join([piece async for piece in client.chunks()])
    assert got.startswith(line)
    assert json.loads(got.splitlines()[-1])["done"] is True
    assert len(got.splitlines()) == count + 1


@pytest.mark.parametrize("part", ["head", "body", "chunked body"])
async def test_a_request_that_dribbles_is_closed_and_others_are_not_touched(start: Start, part: str) -> None:
    gateway = await start(1, "timeouts: {head_s: 0.6}\n")
    slow = await gateway.connect()
    if part == "body":
        await slow.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
    elif part == "chunked body":
        await slow.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def dribble() -> None:
        for n in range(1000):
            await slow.send(
                b"1\r\nx\r\n" if part == "chunked body" else b"X-A: b\r\n" if n and part == "head" else b"G"
            )
            await asyncio.sleep(0.05)

    task = asyncio.create_task(dribble())
    answers = [await gateway.ask(post("/api/chat", CHAT)) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200] * 5
    assert b" 408 " in (await slow.rest()).split(b"\r\n")[0]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    slow.close()
    await until(lambda: not gateway.gateway.slow)


async def test_two_hundred_half_sent_requests_are_all_closed_in_time(start: Start) -> None:
    gateway = await start(1, "timeouts: {head_s: 0.6}\n")
    slow = [await gateway.connect() for _ in range(200)]
    for client in slow:
        await client.send(b"GET / HTTP/1.1\r\nHost: loc")
    assert (await gateway.ask(post("/api/chat", CHAT)))[0] == 200
    for client in slow:
        await client.rest()
        client.close()
    await until(lambda: not gateway.gateway.slow)


async def test_an_idle_connection_is_closed_after_its_time(start: Start) -> None:
    gateway = await start(1, "timeouts: {idle_s: 0.5}\n")
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT_WHOLE))
    await client.answer()
    assert await client.rest() == b""


async def test_a_client_that_pipelines_without_end_is_cut(start: Start) -> None:
    gateway = await start(1)
    gateway.replicas[0].answer = Watched(streams=False)
    client = await gateway.connect()

    async def flood() -> None:
        while True:
            await client.send(post("/api/chat", CHAT) * 100)
            await asyncio.sleep(0)

    with pytest.raises(ConnectionError):
        await flood()
    await until(lambda: gateway.scheduler.inflight == 0)


async def drained(gateway: RunningGateway) -> None:
    gateway.app.stop()
    await gateway.app.until_stopped(lambda requests, drain_s: None)


async def test_sigterm_lets_a_running_stream_finish(start: Start) -> None:
    more = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.start_stream()
        await call.line_of(done=False)
        await more.wait()
        await call.line_of(done=True)
        await call.end()

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    idle = await gateway.connect()
    await idle.send(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await idle.answer()
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT))
    await client.head()
    stopping = asyncio.create_task(drained(gateway))
    assert await idle.rest() == b""  # idle connections close at once
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", gateway.port)
    assert not stopping.done()
    more.set()
    assert [json.loads(piece)["done"] async for piece in client.chunks()] == [False, True]
    await asyncio.wait_for(stopping, 5)


async def test_a_stream_that_outlives_the_drain_ends_with_an_error(start: Start) -> None:
    gateway = await start(1, "timeouts: {drain_s: 0.3}\n")
    gateway.replicas[0].answer = Watched(streams=True)
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT))
    await client.head()
    await asyncio.wait_for(drained(gateway), 5)
    lines = (await client.rest()).split(b"\r\n")
    assert b'"error"' in b"".join(lines)


async def test_thousands_of_strange_names_leave_no_memory(start: Start) -> None:
    gateway = await start(1)
    client = await gateway.connect()

    async def ask(n: int) -> None:
        body = json.dumps({"model": f"m{n}:x{n}", "stream": False, "messages": []}).encode()
        await client.send(post("/api/chat", body, f"X-Name-{n}: {n}", f"Authorization: Bearer k{n}"))
        assert (await client.answer())[0] == 200
        await client.send(f"GET /strange/{n} HTTP/1.1\r\nHost: localhost\r\nX-{n}: 1\r\n\r\n".encode())
        assert (await client.answer())[0] == 200

    async def plain(call: Call) -> None:
        gateway.replicas[0].calls.clear()
        await call.json({"done": True})

    gateway.replicas[0].answer = plain
    tracemalloc.start()
    try:
        for n in range(500):  # the last requests are kept, so many and no more
            await ask(n)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for n in range(500, 2000):
            await ask(n)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 300_000  # less than 100 bytes a request
    finally:
        tracemalloc.stop()
    page = gateway.app.metrics.series
    assert {model for _, model in page} <= {MODEL, "other", "none", ""}
