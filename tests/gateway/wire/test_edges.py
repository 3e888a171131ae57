"""Events in unusual order and in unusual company: each was once answered wrongly."""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import pytest

from corral.gateway.schedule.ticket import Lease
from corral.gateway.wire.exchange import Exchange
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, CHAT_WHOLE, RunningGateway, post, until
from tests.gateway.wire.replica import MODEL, Call, say_hello

DIGEST = "sha256:" + "a" * 64


def upload(size: int, *headers: str) -> bytes:
    lines = [f"POST /api/blobs/{DIGEST} HTTP/1.1", "Host: localhost", f"Content-Length: {size}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def created(call: Call) -> None:
    await call.reader.readexactly(int(call.header("content-length") or 0))
    await call.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "GET", "DELETE"])
async def test_a_chunked_body_to_a_blob_never_becomes_framing(start: Start, method: str) -> None:
    gateway = await start(1)
    inner = b"0\r\n\r\nDELETE /api/delete HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    client = await gateway.connect()
    head = f"{method} /api/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    await client.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner))
    await client.answer()
    assert [call.line.split()[0] for call in gateway.replicas[0].calls] == [method]
    assert gateway.replicas[0].calls[0].body == inner


async def test_answers_nobody_reads_do_not_open_the_way_for_an_unbounded_stream(start: Start) -> None:
    written = 0

    async def answer(call: Call) -> None:
        nonlocal written
        if b'"stream": false' in call.body:
            await call.json({"done": True, "text": "x" * 50_000})
            return
        await call.start_stream()
        while True:
            await call.line_of(done=False, text="x" * 8000)
            written += 8000

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    small = json.dumps({"model": MODEL, "stream": False}).encode()
    await client.send(post("/api/chat", small) * 150 + post("/api/chat", CHAT))
    before = (-1, -1)
    while before != (written, len(gateway.replicas[0].calls)):
        before = (written, len(gateway.replicas[0].calls))
        await asyncio.sleep(0.3)
    (connection,) = gateway.gateway.connections
    assert connection.transport is not None
    assert connection.transport.get_write_buffer_size() < 1 << 20
    for _ in range(150):  # and once the client reads, everything comes
        assert (await client.answer())[0] == 200
    assert (await client.head())[0] == 200
    client.reset()
    await until(lambda: gateway.scheduler.inflight == 0)


async def test_after_an_upload_that_filled_every_buffer_the_client_is_read_again(start: Start) -> None:
    go = asyncio.Event()
    size = 6 << 20

    async def late(call: Call) -> None:
        if call.path.startswith("/api/blobs"):
            await go.wait()
            await created(call)
        else:
            await say_hello(call)

    gateway = await start(1)
    gateway.replicas[0].answer = late
    client = await gateway.connect()
    await client.send(upload(size))
    sending = asyncio.create_task(client.send(b"x" * size))
    await until(lambda: gateway.replicas[0].calls)
    await asyncio.wait([sending], timeout=1)
    go.set()
    await sending
    assert (await client.answer())[0] == 201
    await client.send(post("/api/chat", CHAT_WHOLE))
    assert (await client.answer())[0] == 200
    client.reset()
    await until(lambda: not gateway.gateway.connections)


async def test_a_client_that_resets_an_upload_that_is_held_back_is_noticed(start: Start) -> None:
    async def never_reads(call: Call) -> None:
        await asyncio.Event().wait()

    gateway = await start(1)
    gateway.replicas[0].answer = never_reads
    client = await gateway.connect()
    await client.send(upload(64 << 20))
    sending = asyncio.create_task(client.send(b"x" * (64 << 20)))
    await until(lambda: gateway.replicas[0].calls and gateway.gateway.watch)
    await asyncio.wait([sending], timeout=0.3)
    assert gateway.scheduler.inflight == 1
    sending.cancel()
    raw = client.writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.reset()
    await until(lambda: gateway.scheduler.inflight == 0, 0.15)
    gateway.assert_nothing_held()


DEEP = b'{"model":"%b","messages":' % MODEL.encode() + b"[" * 3000 + b"]" * 3000 + b"}"


@pytest.mark.parametrize(
    "body",
    [DEEP, b'{"model":"m","options":{"num_ctx":1%b}}' % (b"0" * 400), b'{"model":"m","options":{"num_ctx":1e400}}'],
)
async def test_no_body_is_too_strange_to_be_answered(
    start: Start, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start(1)
    status, _, _ = await gateway.ask(post("/api/chat", body))
    assert status == 200
    assert gateway.replicas[0].calls[0].body == body
    assert "bug" not in caplog.text


async def test_a_deeply_nested_answer_is_passed_on(start: Start) -> None:
    nested = b'{"done":' + b"[" * 3000 + b"]" * 3000 + b"}"

    async def answer(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(nested), nested)
        )

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    assert (await gateway.ask(post("/api/chat", CHAT)))[2] == nested


@pytest.mark.parametrize("request_of", [upload(5), upload(5) + b"hello"])
async def test_an_upload_that_was_not_begun_goes_to_the_next_leader(start: Start, request_of: bytes) -> None:
    gateway = await start(2)
    gateway.replicas[1].answer = created
    await gateway.replicas[0].stop()
    client = await gateway.connect()
    await client.send(request_of)
    await asyncio.sleep(0.05)
    if not request_of.endswith(b"hello"):
        await client.send(b"hello")
    assert (await client.answer())[0] == 201


async def test_a_request_behind_a_preflight_is_answered(start: Start) -> None:
    gateway = await start(1)
    client = await gateway.connect()
    preflight = b"OPTIONS /api/chat HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost:3000\r\n\r\n"
    await client.send(preflight + post("/api/chat", CHAT_WHOLE))
    assert (await client.head())[0] == 204
    assert (await client.answer())[0] == 200


async def test_a_204_has_no_body_whatever_it_says(start: Start) -> None:
    async def answer(call: Call) -> None:
        if call.line.startswith("PUT"):
            await call.write(b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n")
        else:
            await say_hello(call)

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    await client.send(b"PUT /x HTTP/1.1\r\nHost: localhost\r\n\r\n" + post("/api/chat", CHAT_WHOLE))
    status, headers = await client.head()
    assert status == 204
    assert "transfer-encoding" not in headers
    assert "content-length" not in headers
    assert (await client.answer())[0] == 200


async def test_the_last_answer_is_told_whole_also_when_it_was_chunked(start: Start) -> None:
    async def answer(call: Call) -> None:
        head = b"HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\nRetry-After: 7\r\n"
        await call.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
        await call.chunk(b'{"error":"first half,')
        await asyncio.sleep(0.02)
        await call.chunk(b' second half"}')
        await call.end()

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    status, headers, body = await gateway.ask(post("/api/chat", CHAT))
    assert (status, json.loads(body)) == (503, {"error": "first half, second half"})
    assert headers["retry-after"] == "7"


async def test_what_follows_the_json_does_not_hide_the_model(start: Start) -> None:
    gateway = await start(1, slots=1)
    go = asyncio.Event()

    async def hold(call: Call) -> None:
        await go.wait()
        await say_hello(call)

    gateway.replicas[0].answer = hold
    asked = [asyncio.create_task(gateway.ask(post("/api/chat", CHAT_WHOLE + tail))) for tail in (b"", b" x", b"{}")]
    await until(lambda: gateway.scheduler.queued == 2 and len(gateway.replicas[0].calls) == 1)
    go.set()
    assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 3


async def test_a_removed_replica_that_hangs_is_given_up(start: Start) -> None:
    gateway = await start(2, "timeouts: {stall_s: 0.5}\n")

    async def hang(call: Call) -> None:
        if call.header("x-stream"):
            await call.start_stream()
            await call.line_of(done=False)
        await asyncio.Event().wait()

    gateway.replicas[0].answer = hang
    gateway.gateway.set_enabled("r1", False)
    stream = asyncio.create_task(gateway.ask(post("/api/chat", CHAT, "X-Stream: 1")))
    waiting = asyncio.create_task(gateway.ask(post("/api/chat", CHAT)))
    await until(lambda: len(gateway.replicas[0].calls) == 2)
    gateway.gateway.set_enabled("r1", True)
    scheduler = gateway.scheduler
    gateway.gateway.carrier.apply(scheduler.set_replicas([gateway.app.replicas[1]], gateway.gateway.clock()))
    _, _, text = await asyncio.wait_for(stream, 10)
    assert isinstance(json.loads(text.splitlines()[-1])["error"], str)
    status, headers, _ = await asyncio.wait_for(waiting, 10)
    assert (status, headers["x-corral-replica"]) == (200, "r1")


async def test_silence_in_a_body_is_not_paid_for_by_its_first_bytes(start: Start) -> None:
    gateway = await start(1, "timeouts: {head_s: 0.5}\n")
    client = await gateway.connect()
    await client.send(
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 8_000_000
    )
    assert (await asyncio.wait_for(client.rest(), 5)).startswith(b"HTTP/1.1 408 ")


async def test_a_malformed_rest_of_an_upload_never_puts_a_head_into_an_answer(start: Start) -> None:
    async def early(call: Call) -> None:
        await call.start_stream("application/octet-stream")
        await call.chunk(b"begun")
        await call.gone()

    gateway = await start(1)
    gateway.replicas[0].answer = early
    client = await gateway.connect()
    await client.send(f"POST /api/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost\r\n".encode())
    await client.send(b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    assert (await client.head())[0] == 200
    assert await client.chunk() == b"begun"
    await client.send(b"zz\r\n")
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        assert b"HTTP/1.1" not in await client.chunk()


async def test_an_empty_stream_with_a_length_gets_nothing_behind_it(start: Start) -> None:
    async def empty(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 0\r\n\r\n")

    gateway = await start(1)
    gateway.replicas[0].answer = empty
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT))
    assert (await client.head())[0] == 200
    assert await client.rest() == b""


async def test_a_request_that_kills_a_reused_connection_late_is_not_sent_there_again(start: Start) -> None:
    gateway = await start(1)
    await gateway.ask(post("/api/chat", CHAT_WHOLE))

    async def die_late(call: Call) -> None:
        await asyncio.sleep(1.2)
        call.reset()
        raise ConnectionResetError

    gateway.replicas[0].answer = die_late
    status, _, _ = await gateway.ask(post("/api/chat", CHAT))
    assert status == 502
    assert len(gateway.replicas[0].calls) == 2  # the first one, and this


def poison(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def broken(*args: object) -> None:
        monkeypatch.undo()
        raise LookupError("secret detail")

    monkeypatch.setattr(Exchange if name == "upstream_answered" else type(gateway.scheduler), name, broken)


@pytest.mark.parametrize("name", ["submit", "upstream_answered", "tick"])
async def test_a_bug_is_one_line_in_the_log_and_nobody_waits_for_ever(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    gateway = await start(1)
    poison(gateway, monkeypatch, name)
    if name == "tick":
        await until(lambda: "bug" in caplog.text)
    else:
        assert (await gateway.ask(post("/api/chat", CHAT)))[0] in (500, 502)
    assert "error=LookupError" in caplog.text
    assert "Traceback" not in caplog.text
    assert "secret" not in caplog.text
    assert (await gateway.ask(post("/api/chat", CHAT)))[0] == 200


async def test_an_upload_costs_later_requests_nothing(start: Start) -> None:
    gateway = await start(2)
    gateway.replicas[0].answer = created
    client = await gateway.connect()
    await client.send(upload(5) + b"hello")
    assert (await client.answer())[0] == 201

    async def busy(call: Call) -> None:
        await call.json({"error": "busy"}, "503 Service Unavailable")

    for chance in range(6):  # whichever replica is asked first: one of the two is always busy
        gateway.replicas[chance % 2].answer = busy
        gateway.replicas[1 - chance % 2].answer = say_hello
        await client.send(post("/api/chat", CHAT_WHOLE))
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize("begun", [upload(1000), post("/api/chat", CHAT)[:-5], b"POST /api/chat HTT"])
async def test_a_client_that_neither_reads_nor_sends_is_let_go(
    start: Start, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr("corral.gateway.wire.client._LINGER_S", 0.3)
    monkeypatch.setattr("corral.gateway.wire.client._UNREAD_S", 0.3)

    async def answer(call: Call) -> None:
        if call.path.startswith("/api/blobs"):
            await asyncio.Event().wait()
        await call.json({"done": True, "text": "x" * 150_000})

    gateway = await start(1, "timeouts: {head_s: 0.5}\n")
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    (connection,) = gateway.gateway.connections
    assert connection.transport is not None
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(post("/api/chat", CHAT_WHOLE) + begun)
    await until(lambda: gateway.replicas[0].calls)
    await until(lambda: not gateway.gateway.connections, 10)
    gateway.assert_nothing_held()
    assert not gateway.gateway.slow
    assert gateway.gateway.busy == 0


async def test_a_bug_in_one_effect_takes_no_other_request_along(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start(1, slots=1)
    go = asyncio.Event()

    async def hold(call: Call) -> None:
        await go.wait()
        await say_hello(call)

    gateway.replicas[0].answer = hold
    asked = [asyncio.create_task(gateway.ask(post("/api/chat", CHAT_WHOLE))) for _ in range(4)]
    await until(lambda: gateway.scheduler.queued == 3)
    send = Exchange.send
    left = 1

    def broken(self: Exchange, lease: Lease) -> None:
        nonlocal left
        if left:
            left -= 1
            raise LookupError("secret detail")
        send(self, lease)

    monkeypatch.setattr(Exchange, "send", broken)
    go.set()
    answers = [status for status, _, _ in await asyncio.wait_for(asyncio.gather(*asked), 10)]
    assert sorted(answers) == [200, 200, 200, 500]
    assert "at=test_edges.py" in caplog.text
    gateway.assert_nothing_held()
