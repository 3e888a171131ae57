"""Answers that tasks make: whole and in pieces, slow clients, clients that leave, and uploads that a task reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from corral.gateway.wire.answering import Answering
from corral.gateway.wire.routes import Duty
from corral.gateway.wire.upload import Upload
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import RunningGateway, post, until

BLOB = "/api/blobs/sha256:" + "0" * 64
ERROR = b'{"error":"internal error of the gateway"}'

Work = Callable[[Answering, "Upload | None"], Coroutine[object, object, None]]


async def answering(start: Start, work: Work, duty: Duty = Duty.STORE) -> RunningGateway:
    """A gateway where ``work`` answers."""
    running = await start(1)
    running.gateway.answerers[duty] = work
    return running


async def test_a_whole_answer_leaves_the_connection_for_the_next_request(start: Start) -> None:
    async def work(answer: Answering, upload: Upload | None) -> None:
        answer.whole(200, bytes(answer.body))

    running = await answering(start, work)
    client = await running.connect()
    await client.send(post("/api/pull", b'{"a":1}') + post("/api/pull", b'{"a":2}'))
    for number in (1, 2):
        status, headers, body = await client.answer()
        assert (status, body) == (200, b'{"a":%d}' % number)
        assert headers["content-type"] == "application/json; charset=utf-8"
        assert headers["x-request-id"]


async def test_each_piece_is_a_chunk_and_the_connection_serves_on(start: Start) -> None:
    async def work(answer: Answering, upload: Upload | None) -> None:
        answer.begin()
        for line in (b"one\n", b"two\n"):
            await answer.piece(line)
        answer.end()

    running = await answering(start, work)
    client = await running.connect()
    for _ in range(2):
        await client.send(post("/api/pull", b"{}"))
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "application/x-ndjson")
        assert [piece async for piece in client.chunks()] == [b"one\n", b"two\n"]


async def test_http_1_0_gets_the_bare_lines_and_the_end_of_the_connection(start: Start) -> None:
    async def work(answer: Answering, upload: Upload | None) -> None:
        answer.begin()
        await answer.piece(b"one\n")
        answer.end()

    running = await answering(start, work)
    client = await running.connect()
    await client.send(b"POST /api/pull HTTP/1.0\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    _, headers = await client.head()
    assert "transfer-encoding" not in headers
    assert await client.rest() == b"one\n"


@pytest.mark.parametrize("begun", [False, True])
async def test_a_task_that_fails_tells_its_client(start: Start, begun: bool) -> None:
    async def work(answer: Answering, upload: Upload | None) -> None:
        if begun:
            answer.begin()
        raise ZeroDivisionError

    running = await answering(start, work)
    status, _, body = await running.ask(post("/api/pull", b"{}"))
    assert (status, body) == ((200, ERROR + b"\n") if begun else (500, ERROR))


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_ends_the_task(start: Start, begun: bool) -> None:
    entered, ended = asyncio.Event(), asyncio.Event()

    async def work(answer: Answering, upload: Upload | None) -> None:
        if begun:
            answer.begin()
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = await answering(start, work)
    client = await running.connect()
    await client.send(post("/api/pull", b"{}"))
    await asyncio.wait_for(entered.wait(), 5)
    client.reset()
    await asyncio.wait_for(ended.wait(), 5)


async def test_what_a_task_does_after_its_answer_it_does_to_the_end(start: Start) -> None:
    go_on, done = asyncio.Event(), asyncio.Event()

    async def work(answer: Answering, upload: Upload | None) -> None:
        answer.whole(200, b"{}")
        await go_on.wait()
        done.set()

    running = await answering(start, work)
    client = await running.connect()
    await client.send(post("/api/pull", b"{}", "Connection: close"))
    assert (await client.answer())[0] == 200
    assert await client.rest() == b""
    client.close()
    go_on.set()
    await asyncio.wait_for(done.wait(), 5)


async def test_a_client_that_does_not_read_holds_up_its_task_and_not_the_memory(start: Start) -> None:
    sent = 0

    async def work(answer: Answering, upload: Upload | None) -> None:
        nonlocal sent
        answer.begin()
        for _ in range(400):
            await answer.piece(b"x" * 65536)
            sent += 1
        answer.end()

    running = await answering(start, work)
    client = await running.connect()
    await client.send(post("/api/pull", b"{}"))
    await client.head()
    before = -1
    while before != sent:  # until nothing moves any more
        before = sent
        await asyncio.sleep(0.1)
    assert sent < 400
    assert sum([len(piece) async for piece in client.chunks()]) == 400 * 65536
    assert sent == 400


async def test_stopping_ends_a_stream_with_a_word(start: Start) -> None:
    async def work(answer: Answering, upload: Upload | None) -> None:
        answer.begin()
        await asyncio.Event().wait()

    running = await answering(start, work)
    client = await running.connect()
    await client.send(post("/api/pull", b"{}"))
    await client.head()
    await running.gateway.close()
    assert b"shutting down" in b"".join([piece async for piece in client.chunks()])


# -- uploads


async def read(answer: Answering, upload: Upload | None) -> None:
    assert upload is not None
    size = 0
    async for piece in upload:
        size += len(piece)
    answer.whole(201, b"%d" % size)


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_is_read_to_its_end(start: Start, chunked: bool) -> None:
    running = await answering(start, read, Duty.BLOB)
    payload = b"x" * 1_000_000
    if chunked:
        head = f"POST {BLOB} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        request = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(payload), payload)
    else:
        request = post(BLOB, payload)
    client = await running.connect()
    for _ in range(2):  # and the connection serves on
        await client.send(request)
        status, _, body = await client.answer()
        assert (status, body) == (201, b"1000000")


async def test_an_upload_comes_no_faster_than_it_is_taken(start: Start) -> None:
    go_on = asyncio.Event()

    async def slow(answer: Answering, upload: Upload | None) -> None:
        assert upload is not None
        async for _ in upload:
            await go_on.wait()
        answer.whole(201, b"")

    running = await answering(start, slow, Duty.BLOB)
    client = await running.connect()
    request = post(BLOB, b"x" * 50_000_000)
    client.writer.write(request)
    before = -1
    while before != (left := client.writer.transport.get_write_buffer_size()):
        before = left
        await asyncio.sleep(0.1)
    assert left > 20_000_000  # the kernel takes some of it, and the gateway little
    go_on.set()
    assert (await client.answer())[0] == 201


async def test_an_upload_that_is_refused_early_is_told_and_closed(start: Start) -> None:
    async def refuse(answer: Answering, upload: Upload | None) -> None:
        answer.error(400, "no")

    running = await answering(start, refuse, Duty.BLOB)
    client = await running.connect()
    await client.send(f"POST {BLOB} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx".encode())
    status, headers, body = await client.answer()
    assert (status, headers["connection"], body) == (400, "close", b'{"error":"no"}')


async def test_a_client_that_leaves_in_the_middle_of_an_upload_ends_the_task(start: Start) -> None:
    ended = asyncio.Event()

    async def work(answer: Answering, upload: Upload | None) -> None:
        try:
            await read(answer, upload)
        finally:
            ended.set()

    running = await answering(start, work, Duty.BLOB)
    client = await running.connect()
    await client.send(f"POST {BLOB} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx".encode())
    await until(lambda: any(each.answering for each in running.gateway.connections))
    client.reset()
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_malformed_upload_is_refused_and_ends_the_task(start: Start) -> None:
    ended = asyncio.Event()

    async def work(answer: Answering, upload: Upload | None) -> None:
        try:
            await read(answer, upload)
        finally:
            ended.set()

    running = await answering(start, work, Duty.BLOB)
    client = await running.connect()
    await client.send(f"POST {BLOB} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".encode())
    assert (await client.answer())[0] == 400
    await asyncio.wait_for(ended.wait(), 5)


async def test_who_declines_leaves_the_request_to_the_data_path(start: Start) -> None:
    running = await start(1)
    running.gateway.answerers[Duty.SHOW] = lambda answer, upload: None
    status, headers, _ = await running.ask(post("/api/show", b'{"model":"m"}'))
    assert status == 200
    assert headers["x-corral-replica"] == "r0"
