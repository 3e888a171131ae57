"""A replica that fails: retried before the first byte, never after it, and never a clean-looking end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from corral.model import Hold
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, CHAT_WHOLE, RunningGateway, post, until
from tests.gateway.wire.replica import MODEL, Call, ScriptedReplica, say_hello

Script = Callable[[Call], Awaitable[None]]


async def busy(call: Call) -> None:
    await call.json(
        {"error": "server busy, please try again.  maximum pending requests exceeded"}, "503 Service Unavailable"
    )


async def crashed(call: Call) -> None:
    await call.json({"error": "llama-server process has terminated: exit status 1"}, "500 Internal Server Error")


async def reset(call: Call) -> None:
    call.reset()
    raise ConnectionResetError


async def head_then_reset(call: Call) -> None:
    await call.start_stream()
    call.reset()
    raise ConnectionResetError


async def half_a_json_answer(call: Call) -> None:
    await call.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"model":')
    call.reset()
    raise ConnectionResetError


async def garbage(call: Call) -> None:
    await call.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await call.gone()
    raise ConnectionResetError


async def fail_first(gateway: RunningGateway, script: Script) -> list[ScriptedReplica]:
    """Whichever replica is asked first plays ``script``; returns the replicas in the order they were asked."""
    asked: list[ScriptedReplica] = []

    def answer_of(replica: ScriptedReplica) -> Script:
        async def answer(call: Call) -> None:
            asked.append(replica)
            await (script if len(asked) == 1 else say_hello)(call)

        return answer

    for replica in gateway.replicas:
        replica.answer = answer_of(replica)
    return asked


@pytest.mark.parametrize("script", [busy, crashed, reset, head_then_reset, half_a_json_answer, garbage])
@pytest.mark.parametrize("body", [CHAT, CHAT_WHOLE])
async def test_before_the_first_byte_another_replica_answers(start: Start, script: Script, body: bytes) -> None:
    gateway = await start(2)
    asked = await fail_first(gateway, script)
    status, headers, _ = await gateway.ask(post("/api/chat", body))
    assert status == 200
    assert len(asked) == 2
    assert asked[0] is not asked[1]
    assert headers["x-corral-replica"] == f"r{gateway.replicas.index(asked[1])}"
    gateway.assert_nothing_held()


async def test_each_replica_is_tried_at_most_once_and_the_last_real_answer_is_told(start: Start) -> None:
    gateway = await start(3)
    for replica in gateway.replicas:
        replica.answer = busy
    status, headers, body = await gateway.ask(post("/api/chat", CHAT))
    assert status == 503
    assert json.loads(body) == {"error": "server busy, please try again.  maximum pending requests exceeded"}
    assert sorted(len(replica.calls) for replica in gateway.replicas) == [1, 1, 1]
    assert int(headers["content-length"]) == len(body)
    assert headers["retry-after"] == "1"
    gateway.assert_nothing_held()


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/api/chat", lambda body: isinstance(body["error"], str)),
        ("/v1/chat/completions", lambda body: body["error"]["type"] == "api_error" and "message" in body["error"]),
        ("/v1/messages", lambda body: body["type"] == "error" and body["error"]["type"] == "api_error"),
    ],
)
async def test_when_every_replica_breaks_the_client_gets_502_in_its_dialect(
    start: Start, path: str, shape: Callable[[dict[str, object]], bool]
) -> None:
    gateway = await start(2)
    for replica in gateway.replicas:
        replica.answer = reset
    status, _, body = await gateway.ask(post(path, CHAT))
    assert status == 502
    assert shape(json.loads(body))
    assert b"127.0.0.1" not in body  # no replica address
    gateway.assert_nothing_held()


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "500 Internal Server Error"])
async def test_an_answer_that_is_about_the_request_is_not_retried(start: Start, status: str) -> None:
    async def answer(call: Call) -> None:
        await call.json({"error": 'option "num_ctx" must be of type integer'}, status)

    gateway = await start(2)
    for replica in gateway.replicas:
        replica.answer = answer
    got, _, _ = await gateway.ask(post("/api/chat", CHAT))
    assert got == int(status[:3])
    assert sum(len(replica.calls) for replica in gateway.replicas) == 1


async def test_a_closed_idle_connection_costs_nothing(start: Start) -> None:
    gateway = await start(1)
    gateway.gateway.pool.rest_s = 0.0  # so that the second request meets the same connection

    async def answer_and_leave(call: Call) -> None:
        await call.json({"done": True})
        await call.reader.readuntil(b"\r\n\r\n")  # the next request comes in, and the connection is gone
        call.reset()
        raise ConnectionResetError

    gateway.replicas[0].answer = answer_and_leave
    assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
    gateway.replicas[0].answer = say_hello
    assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
    assert gateway.states[0].health.value == "up"
    gateway.assert_nothing_held()


@pytest.mark.alone
async def test_what_comes_behind_an_answer_is_never_taken_for_the_next(start: Start) -> None:
    async def too_much(call: Call) -> None:
        await call.json({"done": True})
        await asyncio.sleep(0)  # what follows is a read of its own
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nunasked")

    gateway = await start(1, slots=1)  # the next waits, and is sent in the moment the last one ends
    gateway.replicas[0].answer = too_much
    asked = [gateway.ask(post("/api/chat", CHAT_WHOLE)) for _ in range(20)]
    assert [json.loads(body) for _, _, body in await asyncio.gather(*asked)] == [{"done": True}] * 20
    gateway.assert_nothing_held()


async def test_what_changes_the_store_is_sent_at_most_once(start: Start) -> None:
    gateway = await start(2)
    for replica in gateway.replicas:
        replica.answer = reset
    body = json.dumps({"model": MODEL}).encode()
    request = b"DELETE /api/delete HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    status, _, answer = await gateway.ask(request)
    assert status == 502
    assert b"may or may not" in answer
    deletions = [call for replica in gateway.replicas for call in replica.calls if call.line.startswith("DELETE")]
    assert len(deletions) == 1


# ---- after the first byte

STREAMS = {
    "/api/chat": (b"application/x-ndjson", b'{"message":{"content":"hi"},"done":false}\n'),
    "/api/generate": (b"application/x-ndjson", b'{"response":"hi","done":false}\n'),
    "/v1/chat/completions": (b"text/event-stream", b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'),
    "/v1/completions": (b"text/event-stream", b'data: {"choices":[{"text":"hi"}]}\n\n'),
    "/v1/responses": (b"text/event-stream", b'event: response.created\ndata: {"type":"response.created"}\n\n'),
    "/v1/messages": (b"text/event-stream", b'event: message_start\ndata: {"type":"message_start"}\n\n'),
}


def assert_said_in_dialect(path: str, text: bytes) -> None:
    if path.startswith("/api/"):
        assert isinstance(json.loads(text.splitlines()[-1])["error"], str)
        assert b'"done":true' not in text
        return
    event = text.strip().split(b"\n\n")[-1]
    data = json.loads(event.rpartition(b"data: ")[2])
    assert b"[DONE]" not in text
    if path == "/v1/messages":
        assert event.startswith(b"event: error\n")
        assert data["type"] == "error"
        assert isinstance(data["error"]["message"], str)
    else:
        assert isinstance(data["error"]["message"], str)


def breaks(how: str) -> Callable[[bytes, bytes], Script]:
    def make(content_type: bytes, line: bytes) -> Script:
        async def answer(call: Call) -> None:
            await call.start_stream(content_type.decode())
            await call.chunk(line)
            await call.chunk(line)
            if how == "reset in a chunk":
                await call.write(b"%x\r\n%b" % (len(line), line[: len(line) // 2]))
                call.reset()
            elif how == "reset between chunks":
                call.reset()
            elif how == "close":
                call.writer.close()
            elif how == "clean end without terminator":
                await call.end()
                return
            elif how == "bad chunk":
                await call.write(b"zz\r\n")
                await call.gone()
            raise ConnectionResetError

        return answer

    return make


@pytest.mark.parametrize("path", list(STREAMS))
@pytest.mark.parametrize(
    "how", ["reset in a chunk", "reset between chunks", "close", "clean end without terminator", "bad chunk"]
)
async def test_a_broken_stream_ends_in_its_dialects_error(start: Start, path: str, how: str) -> None:
    content_type, line = STREAMS[path]
    gateway = await start(2)
    for replica in gateway.replicas:
        replica.answer = breaks(how)(content_type, line)
    status, _, text = await gateway.ask(post(path, CHAT))
    assert status == 200
    assert text.startswith(line * 2)
    assert_said_in_dialect(path, text)
    assert sum(len(replica.calls) for replica in gateway.replicas) == 1  # nothing is retried after the first byte
    await until(lambda: gateway.scheduler.inflight == 0)
    gateway.assert_nothing_held()


async def test_after_a_broken_stream_the_connection_serves_on(start: Start) -> None:
    gateway = await start(1)
    gateway.replicas[0].answer = breaks("reset between chunks")(*STREAMS["/api/chat"])
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT))
    assert_said_in_dialect("/api/chat", (await client.answer())[2])
    gateway.replicas[0].answer = say_hello
    await client.send(post("/api/chat", CHAT))
    assert (await client.answer())[0] == 200
    gateway.assert_nothing_held()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_a_replicas_own_error_line_is_passed_on_and_not_doubled(start: Start, path: str) -> None:
    content_type, line = STREAMS[path]
    error = b'{"error":"an error was encountered"}\n'
    if content_type == b"text/event-stream":
        error = b'event: error\ndata: {"type":"error","error":{"message":"x"}}\n\n'

    async def answer(call: Call) -> None:
        await call.start_stream(content_type.decode())
        await call.chunk(line)
        await call.chunk(error)
        await call.end()

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    assert (await gateway.ask(post(path, CHAT)))[2] == line + error


async def test_a_whole_answer_that_is_cut_stays_visibly_cut(start: Start) -> None:
    async def answer(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300000\r\n\r\n" + b"x" * 150000
        )
        await asyncio.sleep(0.05)
        call.reset()
        raise ConnectionResetError

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    await client.send(post("/api/embed", CHAT))
    status, headers = await client.head()
    assert (status, headers["content-length"]) == (200, "300000")
    assert len(await client.rest()) < 300000


async def test_a_close_delimited_stream_that_breaks_resets_an_http_1_0_client(start: Start) -> None:
    async def answer(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await call.chunk(b"x" * 100)
        await asyncio.sleep(0.05)
        call.reset()
        raise ConnectionResetError

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    await client.send(b"GET /file HTTP/1.0\r\n\r\n")
    assert (await client.head())[0] == 200
    with pytest.raises(ConnectionResetError):
        await client.rest()


async def test_a_frozen_replica_is_left_and_its_waiting_requests_go_elsewhere(start: Start) -> None:
    gateway = await start(2)
    frozen = gateway.replicas[0]

    async def never(call: Call) -> None:
        await asyncio.Event().wait()

    frozen.answer = never
    gateway.app.gateway.set_enabled("r1", False)
    waiting = [asyncio.create_task(gateway.ask(post("/api/chat", CHAT))) for _ in range(3)]
    await until(lambda: len(frozen.calls) == 3)
    frozen.version = None  # type: ignore[assignment]  # from here on its probe gets nonsense
    gateway.app.gateway.set_enabled("r1", True)
    answers = await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert [(status, headers["x-corral-replica"]) for status, headers, _ in answers] == [(200, "r1")] * 3
    assert gateway.states[0].health.value == "down"


async def test_a_silent_stream_of_a_dead_replica_is_ended_with_an_error(start: Start) -> None:
    gateway = await start(1, "timeouts: {stall_s: 0.5}\n")
    replica = gateway.replicas[0]

    async def then_silence(call: Call) -> None:
        await call.start_stream()
        await call.line_of(done=False)
        await asyncio.Event().wait()

    replica.answer = then_silence
    asked = asyncio.create_task(gateway.ask(post("/api/chat", CHAT)))
    await until(lambda: gateway.scheduler.inflight)
    replica.version = None  # type: ignore[assignment]
    _, _, text = await asyncio.wait_for(asked, 15)
    assert_said_in_dialect("/api/chat", text)
    gateway.assert_nothing_held()


async def test_a_stream_of_a_held_replica_that_hangs_is_ended_too(start: Start) -> None:
    """Its process may hang in a driver, where not even SIGKILL ends it and its connections."""
    gateway = await start(1, "timeouts: {stall_s: 0.5}\n")
    replica = gateway.replicas[0]

    async def then_silence(call: Call) -> None:
        await call.start_stream()
        await call.line_of(done=False)
        await asyncio.Event().wait()

    replica.answer = then_silence
    asked = asyncio.create_task(gateway.ask(post("/api/chat", CHAT)))
    await until(lambda: replica.calls and gateway.states[0].health.value == "up")
    gateway.gateway.set_hold("r0", Hold("stopping: its GPU is lost", coming=False))
    assert gateway.gateway.ready() == (False, "no replica is up and enabled; r0 is stopping: its GPU is lost")
    replica.version = None  # type: ignore[assignment]
    _, _, text = await asyncio.wait_for(asked, 15)
    assert_said_in_dialect("/api/chat", text)
    gateway.assert_nothing_held()
