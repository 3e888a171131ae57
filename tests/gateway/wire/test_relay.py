"""What goes in comes out: answers verbatim, both framings, keep-alive, pipelining, HTTP/1.0."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, CHAT_WHOLE, post, until
from tests.gateway.wire.replica import MODEL, Call


async def test_a_stream_arrives_line_by_line_as_the_replica_writes_it(start: Start) -> None:
    more = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.start_stream()
        await call.line_of(done=False, n=1)
        await more.wait()
        await call.line_of(done=True)
        await call.end()

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT))
    status, headers = await client.head()
    assert status == 200
    assert headers["content-type"] == "application/x-ndjson"
    assert headers["x-corral-replica"] == "r0"
    assert headers["x-request-id"]
    assert json.loads(await client.chunk())["n"] == 1  # before the second line exists
    more.set()
    assert json.loads(await client.chunk())["done"] is True
    assert await client.chunk() == b""
    gateway.assert_nothing_held()


async def test_the_request_reaches_the_replica_unchanged_but_for_its_hop_by_hop_headers(start: Start) -> None:
    gateway = await start(1)
    headers = (
        "Origin: http://localhost:3000",
        "X-Custom: a  b",
        "Connection: keep-alive, X-Hop",
        "X-Hop: 1",
        "TE: trailers",
    )
    status, _, _ = await gateway.ask(post("/api/chat?x=1&y=%20", CHAT, *headers, "Upgrade: websocket"))
    assert status == 200
    call = gateway.replicas[0].calls[0]
    assert call.line == "POST /api/chat?x=1&y=%20 HTTP/1.1"
    assert call.body == CHAT
    assert call.header("host") == f"127.0.0.1:{gateway.replicas[0].port}"
    assert b"\r\nX-Custom: a  b\r\n" in call.head
    for gone in ("origin", "connection", "x-hop", "te", "upgrade", "transfer-encoding"):
        assert call.header(gone) is None


async def test_a_chunked_request_body_is_sent_with_its_length(start: Start) -> None:
    gateway = await start(1)
    client = await gateway.connect()
    await client.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    for byte in CHAT:
        await client.send(b"1\r\n%c\r\n" % byte)
    await client.send(b"0\r\n\r\n")
    assert (await client.answer())[0] == 200
    assert gateway.replicas[0].calls[0].body == CHAT
    assert gateway.replicas[0].calls[0].header("content-length") == str(len(CHAT))


async def test_one_connection_serves_many_requests_also_pipelined_ones_in_order(start: Start) -> None:
    gateway = await start(1)
    gateway.gateway.pool.rest_s = 0.0

    async def answer(call: Call) -> None:
        await call.json({"done": True, "n": json.loads(call.body)["n"]})

    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    await client.send(b"".join(post("/api/chat", json.dumps({"model": MODEL, "n": n}).encode()) for n in range(20)))
    for n in range(20):
        status, _, body = await client.answer()
        assert (status, json.loads(body)["n"]) == (200, n)
    assert gateway.replicas[0].connections < 5  # and the upstream connection was reused


async def test_a_head_cut_at_every_byte_is_read_all_the_same(start: Start) -> None:
    gateway = await start(1)
    request = post("/api/chat", CHAT_WHOLE)
    client = await gateway.connect()
    for cut in range(1, len(request), 7):
        await client.send(request[:cut])
        await asyncio.sleep(0)
        await client.send(request[cut:])
        assert (await client.answer())[0] == 200
    for byte in request:
        await client.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await client.answer())[0] == 200


@pytest.mark.parametrize("split", [1, 2, 3, 7, 64])
async def test_a_response_in_any_pieces_arrives_whole(start: Start, split: int) -> None:
    lines = [b'{"message":{"content":"%b"},"done":false}\n' % (b"x" * size) for size in (1, 10, 300)]
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines) + b'e\r\n{"done":true}\n\r\n0\r\n\r\n'

    async def answer(call: Call) -> None:
        for at in range(0, len(raw), split):
            await call.write(raw[at : at + split])
            await asyncio.sleep(0)

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    status, _, body = await gateway.ask(post("/api/chat", CHAT))
    assert (status, body) == (200, b"".join(lines) + b'{"done":true}\n')
    gateway.assert_nothing_held()


async def test_a_large_body_passes_both_ways_unharmed(start: Start) -> None:
    big = bytes(range(256)) * 4096
    payload = json.dumps({"model": MODEL, "stream": False, "images": [big.hex()]}).encode()

    async def answer(call: Call) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(call.body)}\r\n\r\n"
        await call.write(head.encode() + call.body)

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    status, _, body = await gateway.ask(post("/api/chat", payload))
    assert status == 200
    assert body == payload


async def test_an_http_1_0_client_gets_the_bare_payload_and_the_close(start: Start) -> None:
    gateway = await start(1)
    client = await gateway.connect()
    await client.send(b"POST /api/chat HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(CHAT), CHAT))
    status, headers = await client.head()
    assert status == 200
    assert "transfer-encoding" not in headers
    lines = (await client.rest()).splitlines()
    assert [json.loads(line)["done"] for line in lines] == [False, False, True]


async def test_head_answers_carry_no_body(start: Start) -> None:
    async def answer(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    for path in ("/", "/api/tags", "/api/version", "/unknown"):
        await client.send(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status, headers = await client.head()
        assert status == 200
        assert int(headers["content-length"]) > 0


async def test_unknown_paths_and_methods_pass(start: Start) -> None:
    async def answer(call: Call) -> None:
        await call.json({"saw": call.line})

    gateway = await start(2)
    for replica in gateway.replicas:
        replica.answer = answer
    for line in ("GET /api/experimental/new", "PATCH /v1/things/7", "DELETE /x", "POST /api/me"):
        _, _, body = await gateway.ask(f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        assert json.loads(body)["saw"] == f"{line} HTTP/1.1"


async def test_a_blob_streams_through_with_back_pressure(start: Start) -> None:
    size = 64 << 20
    go = asyncio.Event()
    got = 0

    async def answer(call: Call) -> None:
        nonlocal got
        await go.wait()
        while got < size:
            got += len(await call.reader.read(1 << 16))
        await call.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    gateway = await start(1, "limits: {max_body_bytes: 1048576}\n")
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    await client.send(b"POST /api/blobs/sha256:aa HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)

    async def upload() -> int:
        sent = 0
        while sent < size:
            await client.send(b"x" * 65536)
            sent += 65536
        return sent

    task = asyncio.create_task(upload())
    await until(lambda: gateway.replicas[0].calls)
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert not done  # nobody reads: the gateway does not swallow 64 MiB meanwhile
    go.set()
    await task
    status, _, _ = await client.answer()
    assert (status, got) == (201, size)
    gateway.assert_nothing_held()


async def test_a_chunked_blob_streams_through(start: Start) -> None:
    async def answer(call: Call) -> None:
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await call.reader.read(1 << 16)
        assert call.header("transfer-encoding") == "chunked"
        await call.json({"body": body.decode()}, "201 Created")

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    await client.send(
        b"POST /api/blobs/sha256:aa HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    )
    await until(lambda: gateway.replicas[0].calls)
    await client.send(b"2\r\nde\r\n0\r\n\r\n")
    status, _, body = await client.answer()
    assert status == 201
    assert json.loads(body)["body"].replace("3\r\nabc\r\n2\r\nde\r\n", "") == "0\r\n\r\n"


async def test_expect_100_continue_is_answered_before_the_body(start: Start) -> None:
    gateway = await start(1)
    client = await gateway.connect()
    head, _, body = post("/api/chat", CHAT_WHOLE, "Expect: 100-continue").partition(b"\r\n\r\n")
    await client.send(head + b"\r\n\r\n")
    assert (await client.head())[0] == 100
    await client.send(body)
    assert (await client.answer())[0] == 200
