"""Batches in parts, before emulated Ollamas: their answers are those to the whole, whatever becomes of the replicas."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from corral.gateway.embed import splitter
from tests.gateway.embed.stage import MODEL, NATIVE, OPENAI, Build, Stage, blanked, body
from tests.gateway.wire.harness import post, until


async def assert_same(made: Stage, path: str, content: bytes, number: int = 0) -> dict[str, str]:
    """The gateway answers as the Ollama by itself does; returns the headers."""
    status, headers, answer = await made.ask(path, content)
    expected_status, expected_headers, expected = await made.direct(path, content, number)
    assert (status, blanked(answer)) == (expected_status, blanked(expected))
    for name in ("content-type", "transfer-encoding"):
        assert headers.get(name) == expected_headers.get(name)
    assert ("content-length" in headers) == ("content-length" in expected_headers)
    made.running.assert_nothing_held()
    return headers


@pytest.mark.parametrize("path", [NATIVE, OPENAI])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dimensions": 5},
        {"dimensions": 1},  # short enough for an answer with a length
        {"encoding_format": "base64"},
        {"truncate": False, "keep_alive": 60, "options": {"seed": 1}},
    ],
    ids=lambda fields: "+".join(fields) or "plain",
)
async def test_the_answer_is_the_one_to_the_whole(stage: Build, path: str, fields: dict[str, object]) -> None:
    made = await stage()
    headers = await assert_same(made, path, body(64, **fields))
    assert int(headers["x-corral-parts"]) >= 4
    assert sorted(headers["x-corral-replica"].split(",")) == ["r0", "r1", "r2", "r3"]
    assert float(headers["x-corral-queue-s"]) < 1
    assert headers["x-request-id"]


async def test_parts_of_replicas_that_are_not_equally_fast_are_joined_in_order(stage: Build) -> None:
    made = await stage(3, speeds=(5.0, 80.0, 20.0))
    for _ in range(3):
        await assert_same(made, NATIVE, body(96), number=1)
    assert made.embedded(1) > made.embedded(0)  # the quick one took more of them


async def test_a_batch_takes_about_as_long_as_its_share(stage: Build) -> None:
    made = await stage(speed=1.0, load_s=0.05)
    content = body(48, dimensions=2)
    took_s = [await _seconds(made, content) for _ in range(2)]
    assert min(took_s) < 0.5 * 48 * 0.015


async def _seconds(made: Stage, content: bytes) -> float:
    began_s = time.monotonic()
    status, _, _ = await made.ask(NATIVE, content)
    assert status == 200
    return time.monotonic() - began_s


async def test_a_connection_serves_on_after_a_batch_and_http_1_0_gets_the_bare_answer(stage: Build) -> None:
    made = await stage(2)
    client = await made.running.connect()
    for _ in range(2):
        await client.send(post(NATIVE, body(96)))
        status, headers, answer = await client.answer()
        assert (status, len(json.loads(answer)["embeddings"])) == (200, 96)
        assert "x-corral-parts" in headers
    content = body(96)
    await client.send(
        b"POST /api/embed HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    )
    status, headers = await client.head()
    assert "transfer-encoding" not in headers
    assert len(json.loads(await client.rest())["embeddings"]) == 96


# -- replicas that fail


@pytest.mark.parametrize(
    "kind",
    ["reset", "busy", "nonsense-head", "double-content-length", "oversized-head", "crash-runner", "reset-mid-stream"],
)
@pytest.mark.parametrize("path", [NATIVE, OPENAI])
async def test_a_part_that_fails_is_worked_off_elsewhere(stage: Build, path: str, kind: str) -> None:
    made = await stage(2)
    made.fault(0, kind, count=None, path="*" if kind == "reset" else None)
    headers = await assert_same(made, path, body(64), number=1)
    assert int(headers["x-corral-parts"]) > 1
    assert headers["x-corral-replica"] == "r1"
    assert made.ollamas[0].faults.ordered[0].hits
    assert sum(made.running.app.metrics.retries.values()) >= 1


async def test_a_replica_that_dies_in_the_middle_of_its_part_is_not_missed(stage: Build) -> None:
    made = await stage(3, speed=2.0)
    content = body(96, dimensions=3)
    asking = asyncio.create_task(made.ask(NATIVE, content))
    await until(lambda: made.ollamas[1].control.stats()["slots_held"])
    made.kill(1)
    status, headers, answer = await asking
    assert (status, blanked(answer)) == (200, blanked((await made.direct(NATIVE, content))[2]))
    assert "r1" not in headers["x-corral-replica"]
    made.running.assert_nothing_held()


async def test_where_all_are_busy_the_client_is_told_so_in_ollama_s_words(stage: Build) -> None:
    made = await stage(2)
    for number in range(2):
        made.fault(number, "busy", count=None)
    status, headers, answer = await made.ask(NATIVE, body(64))
    assert (status, answer) == (503, b'{"error":"server busy, please try again.  maximum pending requests exceeded"}')
    assert headers["retry-after"] == "1"
    made.running.assert_nothing_held()


async def test_where_every_replica_s_answer_is_lost_the_client_is_told(stage: Build) -> None:
    made = await stage(2)
    for number in range(2):
        made.fault(number, "nonsense-head", count=None)
    status, _, answer = await made.ask(OPENAI, body(64))
    assert status == 502
    assert json.loads(answer)["error"]["type"] == "api_error"
    made.running.assert_nothing_held()
    assert made.counted("openai_embeddings") == {"error_5xx": 1}
    assert sum(made.running.app.metrics.refusals.values()) == 1


async def test_parts_that_wait_are_refused_when_the_gateway_stops(stage: Build) -> None:
    made = await stage(2, speed=0.5)
    client = await made.running.connect()
    await client.send(post(NATIVE, body(96)))
    await until(lambda: made.running.scheduler.queued)
    gateway = made.running.gateway
    gateway.carrier.apply(made.running.scheduler.stop(gateway.clock()))
    status, _, answer = await client.answer()
    assert (status, answer) == (503, b'{"error":"the gateway is shutting down"}')
    made.running.assert_nothing_held()


# -- clients that leave


@pytest.mark.parametrize("way", ["reset", "close"])
async def test_a_client_that_leaves_ends_all_parts_at_once(stage: Build, way: str) -> None:
    made = await stage(speed=0.1)
    client = await made.running.connect()
    await client.send(post(NATIVE, body(96)))
    await until(lambda: all(ollama.control.stats()["slots_held"] for ollama in made.ollamas))
    assert made.running.scheduler.queued
    client.reset() if way == "reset" else client.close()
    await until(lambda: made.running.scheduler.inflight == 0)
    await until(lambda: not any(ollama.control.stats()["slots_held"] for ollama in made.ollamas))
    made.running.assert_nothing_held()
    assert made.counted("embed") == {"client_gone": 1}


async def test_a_client_that_left_before_its_batch_began_leaves_nothing_behind(stage: Build) -> None:
    made = await stage(2)
    client = await made.running.connect()
    await client.send(post(NATIVE, body(64)))
    client.reset()
    await until(lambda: not made.running.gateway.connections)
    await until(lambda: made.running.scheduler.inflight == 0)
    made.running.assert_nothing_held()
    assert int((await made.ask(NATIVE, body(64)))[1]["x-corral-parts"]) > 1


# -- where the model is


async def test_where_one_replica_alone_holds_the_model_no_part_waits_for_a_load(stage: Build) -> None:
    """Loads are thought to be quick, and then take for ever."""
    made = await stage(load=(0,), speed=1.0, loads_s=(0.05, 600.0, 600.0, 600.0))
    await made.teach(load_s=0.01)
    whole_s = await _seconds(made, body(48, dimensions=2, keep_alive="48h0m"))  # this one is not cut
    began_s = time.monotonic()
    status, headers, _ = await made.ask(NATIVE, body(48, dimensions=2))
    assert int(headers["x-corral-parts"]) > 1
    assert (status, headers["x-corral-replica"]) == (200, "r0")
    assert time.monotonic() - began_s < 1.3 * whole_s


async def test_where_loads_are_known_to_be_long_the_holder_gets_the_whole(stage: Build) -> None:
    made = await stage(load=(0,), loads_s=(0.05, 600.0, 600.0, 600.0))
    await made.teach(load_s=600.0)
    headers = await assert_same(made, NATIVE, body(64))
    assert headers["x-corral-replica"] == "r0"
    assert "x-corral-parts" not in headers
    assert not any(state.changing for state in made.running.states)


# -- what is not cut


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (NATIVE, json.dumps({"model": MODEL, "input": "one text " * 500})),
        (NATIVE, json.dumps({"model": MODEL, "input": []})),
        (NATIVE, json.dumps({"model": MODEL, "input": ["x" * 5000] * 3})),
        (NATIVE, json.dumps({"model": MODEL, "input": ["x"] * 20})),
        (NATIVE, json.dumps({"model": MODEL, "Input": ["x" * 100] * 64})),
        (NATIVE, json.dumps({"model": MODEL, "input": ["x" * 100] * 64, "keep_alive": 0})),
        (NATIVE, json.dumps({"model": MODEL, "input": [["x" * 100]] * 64})),
        (NATIVE, json.dumps({"model": "cow", "input": ["x" * 100] * 64})),
        (NATIVE, json.dumps({"input": ["x" * 100] * 64})),
        (NATIVE + "?x=1", json.dumps({"model": MODEL, "input": ["x" * 100] * 64})),
        ("/api/embeddings", json.dumps({"model": MODEL, "prompt": "x" * 9000})),
        (OPENAI, json.dumps({"model": MODEL, "input": [17] * 5000})),
        (OPENAI, json.dumps({"model": MODEL, "input": [["x"] * 100] * 64})),
        (OPENAI, json.dumps({"model": MODEL, "input": ["x" * 100] * 64})[:-1]),
    ],
)
async def test_all_else_is_one_replica_s_to_answer(stage: Build, path: str, content: str) -> None:
    made = await stage(2)
    headers = await assert_same(made, path, content.encode())
    assert "x-corral-parts" not in headers


async def test_a_switch_turns_it_off(stage: Build) -> None:
    made = await stage(2, "embeddings: {split: false}\n")
    assert "x-corral-parts" not in await assert_same(made, NATIVE, body(64))


async def test_compressed_bodies_are_left_alone(stage: Build) -> None:
    made = await stage(2)
    _, headers, _ = await made.ask(NATIVE, body(64), "Content-Encoding: zstd")
    assert "x-corral-parts" not in headers


async def test_answers_that_would_take_too_much_memory_are_passed_on_as_they_come(
    stage: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await stage(2, speed=5.0)
    monkeypatch.setattr(splitter, "_MOST_HELD", 64 * 12_000)
    assert "x-corral-parts" not in await assert_same(made, NATIVE, body(64))
    assert "x-corral-parts" in await assert_same(made, NATIVE, body(31))
    assert "x-corral-parts" in await assert_same(made, NATIVE, body(64))  # now it is known how short its vectors are


# -- what others see of it


async def test_a_batch_counts_as_one_request(stage: Build) -> None:
    made = await stage()
    _, headers, answer = await made.ask(NATIVE, body(96))
    _, others, second = await made.ask(OPENAI, body(96))
    assert (made.counted("embed"), made.counted("openai_embeddings")) == ({"ok": 1}, {"ok": 1})
    timings = made.running.app.metrics.timings[MODEL, "normal"]
    tokens = json.loads(answer)["prompt_eval_count"] + json.loads(second)["usage"]["prompt_tokens"]
    assert timings.prompt_tokens == tokens
    assert sum(timings.total["ok"].counts) == 2
    parts = [int(each["x-corral-parts"]) for each in (headers, others)]
    assert sum(made.running.app.metrics.decisions.values()) == sum(parts)


async def test_the_scheduler_learns_from_parts(stage: Build) -> None:
    made = await stage()
    await made.ask(NATIVE, body(64))
    assert made.running.gateway.explain()[0].decision.predicted is None
    await made.ask(NATIVE, body(64))
    assert made.running.gateway.explain()[-1].decision.predicted is not None


async def test_every_part_is_explained_under_the_request_of_its_batch(stage: Build) -> None:
    made = await stage()
    _, headers, _ = await made.ask(NATIVE, body(96))
    choices = made.running.gateway.explain()
    assert len(choices) == int(headers["x-corral-parts"])
    assert {choice.id for choice in choices} == {headers["x-request-id"]}


async def test_many_batches_at_once_do_not_fill_the_queue(stage: Build) -> None:
    made = await stage(2, "queue: {max_requests: 48}\n", speed=50.0)
    clients = [await made.running.connect() for _ in range(24)]
    for client in clients:
        client.writer.write(post(NATIVE, body(64, dimensions=2)))  # no turn for the gateway in between
    answers = await asyncio.gather(*(client.answer() for client in clients))
    assert [status for status, _, _ in answers] == [200] * 24
    assert any("x-corral-parts" in headers for _, headers, _ in answers)
    made.running.assert_nothing_held()


async def test_other_requests_get_their_turn_between_parts(stage: Build) -> None:
    """By their class: the parts of a batch have that of the whole."""
    made = await stage(2, speed=2.0)
    batch = asyncio.create_task(made.ask(NATIVE, body(96, dimensions=2), "X-Corral-Class: batch"))
    await until(lambda: made.running.scheduler.queued)
    single = json.dumps({"model": MODEL, "input": "urgent"}).encode()
    assert (await made.ask(NATIVE, single, "X-Corral-Class: interactive"))[0] == 200
    assert not batch.done()
    assert (await batch)[0] == 200
