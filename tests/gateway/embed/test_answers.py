"""Batches in parts, before replicas whose every answer is a script's: what goes to them, and what comes back."""

from __future__ import annotations

import asyncio
import json

import pytest

from corral.errors import Fault
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import RunningGateway, post, until
from tests.gateway.wire.replica import MODEL, Answer, Call

LOADED: dict[str, object] = {
    "models": [
        {"name": MODEL, "digest": "46e0", "size": 1, "size_vram": 1, "expires_at": "2026-08-21T18:48:11Z"},
    ]
}
TEXTS = [f"text {number} " + "word " * 100 for number in range(48)]


def body(**fields: object) -> bytes:
    return json.dumps({"model": MODEL, "input": TEXTS, **fields}).encode()


async def embed(call: Call) -> None:
    """One vector for each text: its number."""
    vectors = [[int(text.split()[1])] for text in json.loads(call.body)["input"]]
    await call.json({"model": MODEL, "embeddings": vectors, "prompt_eval_count": len(vectors)})


async def embedders(start: Start, answer: Answer = embed, extra: str = "", *, count: int = 3) -> RunningGateway:
    """A gateway before replicas that hold the model."""
    running = await start(count, f"probes: {{ollama_interval_s: 0.05}}\n{extra}", 2)
    for replica in running.replicas:
        replica.answer, replica.ps = answer, LOADED
    await until(lambda: all(MODEL in (state.loaded or ()) for state in running.states))
    return running


def calls(running: RunningGateway) -> list[Call]:
    return [call for replica in running.replicas for call in replica.calls]


async def test_each_text_goes_to_one_replica_once_with_all_that_the_client_said(start: Start) -> None:
    running = await embedders(start)
    content = json.dumps(
        {"truncate": False, "model": MODEL, "input": TEXTS, "options": {"seed": 1}, "new": 1.50}
    ).encode()
    status, headers, answer = await running.ask(post("/api/embed", content))
    assert (status, json.loads(answer)["embeddings"]) == (200, [[number] for number in range(48)])
    sent = [json.loads(call.body) for call in calls(running)]
    assert len(sent) == int(headers["x-corral-parts"]) > 3
    assert sorted(text for each in sent for text in each.pop("input")) == sorted(TEXTS)
    assert all(each == sent[0] for each in sent)
    assert all(call.body.startswith(b'{"truncate": false, "model": ') for call in calls(running))
    assert all(call.body.endswith(b', "options": {"seed": 1}, "new": 1.5}') for call in calls(running))


async def test_the_client_s_headers_go_with_each_part(start: Start) -> None:
    running = await embedders(start)
    lines = (
        "Authorization: Bearer secret",
        "Content-Type: application/json; charset=UTF-8",
        "X-Trace: 17",
        "X-Trace: 18",
        "Accept-Encoding: gzip",
        "User-Agent: somebody/1.0",
        "Connection: keep-alive, X-Hop",
        "X-Hop: no",
        "Origin: http://localhost",
    )
    status, headers, _ = await running.ask(post("/api/embed", body(), *lines))
    assert (status, int(headers["x-corral-parts"])) == (200, len(calls(running)))
    for call in calls(running):
        assert call.line == "POST /api/embed HTTP/1.1"
        assert call.header("authorization") == "Bearer secret"
        assert call.header("content-type") == "application/json; charset=UTF-8"
        assert call.head.lower().count(b"\r\nx-trace: ") == 2
        assert call.header("accept-encoding") == "identity"
        assert call.header("user-agent") == "somebody/1.0"
        assert call.header("x-hop") is None
        assert call.header("origin") is None
        assert call.header("host") == f"127.0.0.1:{call.writer.get_extra_info('sockname')[1]}"


async def test_all_parts_get_the_one_context_length(start: Start) -> None:
    running = await embedders(start, extra="placement: {enabled: false, canonicalise: {num_ctx: 512}}\n")
    _, headers, _ = await running.ask(post("/api/embed", body(options={"num_ctx": 2048, "seed": 3})))
    assert "x-corral-parts" in headers
    assert {json.dumps(json.loads(call.body)["options"]) for call in calls(running)} == {'{"num_ctx": 512, "seed": 3}'}


async def test_what_one_part_is_refused_for_is_said_of_the_whole_and_ends_the_others(start: Start) -> None:
    error = b'{"error":"the input length exceeds the context length"}'
    waiting = asyncio.Event()
    gone = 0

    async def refuse_the_last(call: Call) -> None:
        nonlocal gone
        if TEXTS[-1] in json.loads(call.body)["input"]:
            await waiting.wait()
            kind = b"Content-Type: application/json; charset=utf-8"
            await call.write(
                b"HTTP/1.1 400 Bad Request\r\n%b\r\nContent-Length: %d\r\n\r\n" % (kind, len(error)) + error
            )
        elif len(calls(running)) <= 6:
            await embed(call)
        else:
            waiting.set()
            await call.gone()
            gone += 1

    running = await embedders(start, refuse_the_last)
    status, headers, answer = await running.ask(post("/api/embed", body()))
    assert (status, answer) == (400, error)
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert headers["x-corral-replica"] in ("r0", "r1", "r2")
    await until(lambda: gone == int(headers["x-corral-parts"]) - 7)
    running.assert_nothing_held()
    assert running.app.metrics.series["embed", MODEL].outcomes == {"error_4xx": 1}
    assert not sum(running.app.metrics.retries.values())


async def test_an_error_of_the_replica_s_own_is_passed_on_and_not_retried(start: Start) -> None:
    async def fail(call: Call) -> None:
        await call.json({"error": "no such luck"}, "500 Internal Server Error")

    running = await embedders(start, fail)
    status, _, answer = await running.ask(post("/api/embed", body()))
    assert (status, answer) == (500, b'{"error": "no such luck"}')
    assert not sum(running.app.metrics.retries.values())
    running.assert_nothing_held()


async def test_answers_nobody_can_join_make_it_one_request_again_and_for_a_while(start: Start) -> None:
    async def strange(call: Call) -> None:
        await call.json({"vectors": len(json.loads(call.body)["input"])})

    running = await embedders(start, strange)
    status, headers, answer = await running.ask(post("/api/embed", body()))
    assert (status, answer) == (200, b'{"vectors": 48}')
    assert int(headers["x-corral-parts"]) > 1
    status, headers, answer = await running.ask(post("/api/embed", body()))
    assert (status, answer) == (200, b'{"vectors": 48}')
    assert "x-corral-parts" not in headers
    running.assert_nothing_held()
    assert running.app.metrics.series["embed", MODEL].outcomes == {"ok": 2}


async def test_an_answer_without_an_end_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.gateway.embed.work.MOST_VECTOR_BYTES", 0)

    async def endless(call: Call) -> None:
        await call.start_stream("application/json")
        try:
            while True:
                await call.chunk(b"1" * 65536)
        except ConnectionError:
            call.reset()

    running = await embedders(start, endless)
    running.replicas[2].answer = embed
    status, headers, answer = await running.ask(post("/api/embed", body()))
    assert (status, json.loads(answer)["embeddings"]) == (200, [[number] for number in range(48)])
    assert headers["x-corral-replica"] == "r2"


async def test_a_part_whose_answer_breaks_off_is_worked_off_elsewhere(start: Start) -> None:
    async def break_off(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
        call.reset()

    running = await embedders(start, embed)
    running.replicas[0].answer = break_off
    status, headers, answer = await running.ask(post("/api/embed", body()))
    assert (status, json.loads(answer)["embeddings"]) == (200, [[number] for number in range(48)])
    assert sorted(headers["x-corral-replica"].split(",")) == ["r1", "r2"]
    assert running.app.metrics.retries[Fault.RESET] >= 1
    running.assert_nothing_held()


async def test_a_type_and_an_end_of_line_are_the_replica_s(start: Start) -> None:
    async def answer_as_another(call: Call) -> None:
        vectors = [[1]] * len(json.loads(call.body)["input"])
        text = json.dumps({"embeddings": vectors}).encode() + b" \r\n"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text)
        await call.write(head + text)

    running = await embedders(start, answer_as_another)
    _, headers, answer = await running.ask(post("/api/embed", body()))
    assert headers["content-type"] == "application/json"
    assert answer.endswith(b"]} \r\n")
    assert "x-corral-parts" in headers


async def test_idle_connections_that_were_closed_are_nobody_s_fault(start: Start) -> None:
    async def once(call: Call) -> None:
        await embed(call)
        call.writer.close()

    running = await embedders(start, once)
    for _ in range(3):
        status, headers, _ = await running.ask(post("/api/embed", body()))
        assert (status, "x-corral-parts" in headers) == (200, True)
    assert not sum(state.health.value != "up" for state in running.states)
    running.assert_nothing_held()
