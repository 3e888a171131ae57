"""The gateway's own pages as clients get them, in front of replicas that change, stall and freeze."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from corral.gateway.config import parse_config
from corral.gateway.serve.part import PAGE_WAIT_S
from corral.gateway.wire.routes import Duty
from tests.gateway.serve.emulated import CHAT, EMBEDDER, EmulatedOllama, emulated_ollama
from tests.gateway.wire.conftest import Start, start
from tests.gateway.wire.harness import CHAT_WHOLE, RunningGateway, post, until
from tests.gateway.wire.replica import MODEL, Call, say_hello
from tests.probes.fake_ollama import LOADED, TAG, FakeOllama, document, fake_ollama, held, page

__all__ = ["start"]

RARELY = "probes: {ollama_interval_s: 3600}\n"
"""Nothing is read but at the start, and for a page that needs it."""
PAGES = ("/", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/v1/models/llama3.1:8b")


@asynccontextmanager
async def in_front_of(*ports: int, extra: str = RARELY, options: str = "") -> AsyncIterator[RunningGateway]:
    """A gateway in front of replicas r0, r1, … whose every page was read once."""
    listed = "".join(
        f'  - {{id: r{i}, url: "http://127.0.0.1:{port}", slots: 4{options}}}\n' for i, port in enumerate(ports)
    )
    config = parse_config(f"listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n{listed}{extra}", "test")
    gateway = RunningGateway(config, [])
    await gateway.start()
    poller = gateway.app.poller
    try:
        await until(lambda: all(poller.pages(f"r{i}").ps is not None for i in range(len(ports))))
        yield gateway
    finally:
        await gateway.stop()


@asynccontextmanager
async def fakes(count: int, extra: str = RARELY) -> AsyncIterator[tuple[RunningGateway, list[FakeOllama]]]:
    async with AsyncExitStack() as stack:
        ollamas = [await stack.enter_async_context(fake_ollama()) for _ in range(count)]
        yield await stack.enter_async_context(in_front_of(*(each.port for each in ollamas), extra=extra)), ollamas


@asynccontextmanager
async def emulators(
    count: int, *, load_s: float = 0.02, options: str = ""
) -> AsyncIterator[tuple[RunningGateway, list[EmulatedOllama]]]:
    async with AsyncExitStack() as stack:
        ollamas = [await stack.enter_async_context(emulated_ollama(load_s)) for _ in range(count)]
        ports = [each.port for each in ollamas]
        yield await stack.enter_async_context(in_front_of(*ports, options=options)), ollamas


async def get(gateway: RunningGateway, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    client = await gateway.connect()
    await client.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    if method != "HEAD":
        return await client.answer()
    status, headers = await client.head()
    client.close()
    return status, headers, b""


async def models(gateway: RunningGateway, path: str) -> list[dict[str, Any]]:
    status, _, body = await get(gateway, path)
    assert status == 200
    found: list[dict[str, Any]] = json.loads(body)["models"]
    return found


async def in_memory(gateway: RunningGateway) -> list[str]:
    return [model["name"] for model in await models(gateway, "/api/ps")]


# -- from what was read


async def test_a_quiet_box_answers_every_page_without_asking_anybody() -> None:
    async with fakes(2) as (gateway, ollamas):
        before = [dict(ollama.asked) for ollama in ollamas]
        for path in PAGES:
            assert (await get(gateway, path))[0] == 200, path
        assert [dict(ollama.asked) for ollama in ollamas] == before


async def test_pages_are_as_the_replicas_wrote_them() -> None:
    async with fakes(1) as (gateway, _):
        assert await models(gateway, "/api/tags") == [TAG]
        assert await models(gateway, "/api/ps") == [LOADED]
        assert (await get(gateway, "/api/version"))[2] == b'{"version":"0.32.15"}'
        status, headers, body = await get(gateway, "/v1/models")
        assert (status, headers["content-type"]) == (200, "application/json")
        assert [model["id"] for model in json.loads(body)["data"]] == ["llama3.1:8b"]


async def test_a_frozen_replica_holds_up_no_page() -> None:
    async with fakes(2) as (gateway, (_, frozen)):
        frozen.answers = dict.fromkeys(frozen.answers, held(asyncio.Event(), page(b"")))
        began_s = time.monotonic()
        for _ in range(20):
            gateway.app.poller.recent.touched.update(("r0", "r1"))
            for path in PAGES:
                assert (await get(gateway, path))[0] == 200, path
        # a hundred and twenty pages, of which the first few may have waited for what they could not know
        assert time.monotonic() - began_s < 10 * PAGE_WAIT_S
        assert frozen.now["/api/ps"] == 1
        assert await models(gateway, "/api/ps") == [LOADED, LOADED]


async def test_a_replica_that_was_never_read_is_waited_for_once() -> None:
    gate = asyncio.Event()
    async with fakes(2) as (gateway, (_, late)):
        late.answers["/api/tags"] = held(gate, document({"models": [TAG | {"name": "late"}]}))
        gateway.app.poller.anew("r1")
        page = asyncio.create_task(models(gateway, "/api/tags"))
        await until(lambda: late.now["/api/tags"] == 1)
        gate.set()
        assert {model["name"] for model in await page} == {"llama3.1:8b", "late"}


@pytest.mark.parametrize("knows", [True, False])
async def test_a_model_that_nobody_is_known_to_have_is_asked_for_once(knows: bool) -> None:
    async with fakes(2) as (gateway, ollamas):
        if knows:
            ollamas[1].answers["/api/tags"] = document({"models": [TAG | {"name": "new:latest"}]})
        before = [ollama.asked["/api/tags"] for ollama in ollamas]
        status, headers, body = await get(gateway, "/v1/models/New")
        assert headers["content-type"] == "application/json"
        if knows:
            assert (status, json.loads(body)["id"]) == (200, "New")
        else:
            error = {"message": "model 'New' not found", "type": "not_found_error", "param": None, "code": None}
            assert (status, json.loads(body)) == (404, {"error": error})
        assert [ollama.asked["/api/tags"] for ollama in ollamas] == [count + 1 for count in before]


async def test_without_any_replica_pages_say_so_in_their_dialect() -> None:
    async with fakes(1) as (gateway, _):
        gateway.gateway.set_enabled("r0", False)
        message = "no replica can serve this request now: all are down, drained or starting"
        for path in ("/api/tags", "/api/ps", "/api/version"):
            assert json.loads((await get(gateway, path))[2]) == {"error": message}
        status, _, body = await get(gateway, "/v1/models")
        assert (status, json.loads(body)["error"]["message"]) == (503, message)
        assert (await get(gateway, "/"))[2] == b"Ollama is running"


# -- what the gateway itself has just caused


async def test_a_model_that_answered_is_in_memory_at_once_and_one_that_was_stopped_is_not() -> None:
    async with emulators(2) as (gateway, _):
        assert await in_memory(gateway) == []
        for _ in range(2):
            body = {"model": CHAT, "prompt": "hi", "stream": False, "options": {"num_predict": 1}}
            assert (await gateway.ask(post("/api/generate", json.dumps(body).encode())))[0] == 200
            assert await in_memory(gateway) == [CHAT]
            stop = json.dumps({"model": CHAT, "keep_alive": 0}).encode()
            assert (await gateway.ask(post("/api/generate", stop)))[0] == 200
            assert await in_memory(gateway) == []


async def test_a_model_is_in_memory_as_soon_as_its_answer_begins() -> None:
    async with emulators(1) as (gateway, _):
        client = await gateway.connect()
        chat = {"model": CHAT, "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 2000}}
        await client.send(post("/api/chat", json.dumps(chat).encode()))
        while not await in_memory(gateway):
            assert not client.reader._buffer, "it answered before it was in memory"  # type: ignore[attr-defined]
        await client.head()
        assert await in_memory(gateway) == [CHAT]


async def test_a_model_that_is_loaded_by_an_empty_prompt_is_listed_and_every_copy_is_stopped() -> None:
    async with emulators(2, options=f', pin: ["{EMBEDDER}"]') as (gateway, ollamas):
        await until(lambda: all(ollama.loaded == [EMBEDDER] for ollama in ollamas))
        assert await in_memory(gateway) == [EMBEDDER, EMBEDDER], "each copy once"
        assert (await gateway.ask(post("/api/generate", json.dumps({"model": CHAT}).encode())))[0] == 200
        assert sorted(await in_memory(gateway)) == sorted([CHAT, EMBEDDER, EMBEDDER])


async def test_a_copy_that_was_let_go_of_is_not_listed_though_its_replica_has_frozen_since() -> None:
    async with fakes(2) as (gateway, (_, frozen)):
        frozen.answers["/api/ps"] = held(asyncio.Event(), page(b""))
        gateway.app.poller.recent.let_go("r1", "llama3.1:8b")
        assert [model["x-corral-replica"] for model in await models(gateway, "/api/ps?corral=1")] == ["r0"]


UNLOAD = json.dumps({"model": MODEL, "keep_alive": 0, "stream": False}).encode()
HELD: dict[str, object] = {"models": [LOADED]}


async def scripted(start: Start, count: int) -> RunningGateway:
    """Replicas that go on to list the model whatever they are asked."""
    running = await start(count, RARELY)
    for replica in running.replicas:
        replica.ps = HELD
    await running.app.poller.catch_up_ps([f"r{i}" for i in range(count)], lambda replica_id: True)
    assert await in_memory(running) == [MODEL] * count
    return running


async def test_a_model_that_a_client_let_go_of_is_not_listed_though_it_takes_a_moment_to_leave(start: Start) -> None:
    running = await scripted(start, 2)
    assert (await running.ask(post("/api/generate", UNLOAD)))[0] == 200
    assert await in_memory(running) == []
    await until(lambda: [len(replica.calls) for replica in running.replicas] == [1, 1])
    assert await in_memory(running) == []


async def test_a_model_that_was_to_stay_no_longer_than_its_answer_took_is_not_listed_after_it(start: Start) -> None:
    running = await scripted(start, 1)
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "keep_alive": 0})
    assert (await running.ask(post("/api/chat", body.encode())))[0] == 200
    assert await in_memory(running) == []
    assert (await running.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
    assert await in_memory(running) == [MODEL]


async def test_a_model_that_a_replica_refused_to_let_go_of_is_listed(start: Start) -> None:
    running = await scripted(start, 1)

    async def refuse(call: Call) -> None:
        await call.json({"error": "no"}, "400 Bad Request")

    running.replicas[0].answer = refuse
    assert (await running.ask(post("/api/generate", UNLOAD)))[0] == 400
    assert await in_memory(running) == [MODEL]


@pytest.mark.parametrize("before", [True, False])
async def test_a_model_that_is_in_use_is_listed_whoever_let_go_of_it(start: Start, before: bool) -> None:
    running = await scripted(start, 1)
    gate = asyncio.Event()

    async def answer(call: Call) -> None:
        if b"keep_alive" not in call.body:
            await gate.wait()
        await say_hello(call)

    running.replicas[0].answer = answer
    unload, chat = post("/api/generate", UNLOAD), post("/api/chat", CHAT_WHOLE)
    if not before:
        assert (await running.ask(unload))[0] == 200
    chatting = asyncio.create_task(running.ask(chat))
    await until(lambda: running.scheduler.inflight == 1)
    if before:
        assert (await running.ask(unload))[0] == 200
    assert await in_memory(running) == [MODEL]
    gate.set()
    assert (await chatting)[0] == 200


async def test_a_store_that_was_changed_through_the_gateway_is_listed_anew_at_once(start: Start) -> None:
    running = await start(2, RARELY)
    running.gateway.answerers.pop(Duty.STORE, None)  # by the data path

    async def done(call: Call) -> None:
        for replica in running.replicas:
            replica.tags = {"models": [TAG | {"name": "copy:latest"}]}
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    running.replicas[0].answer = done
    assert [model["name"] for model in await models(running, "/api/tags")] == [MODEL]
    body = json.dumps({"source": MODEL, "destination": "copy"}).encode()
    assert (await running.ask(post("/api/copy", body)))[0] == 200
    assert [model["name"] for model in await models(running, "/api/tags")] == ["copy:latest"]


# -- what the gateway can add


async def test_notes_come_only_where_they_are_asked_for() -> None:
    async with emulators(2, options=f', pin: ["{EMBEDDER}"]') as (gateway, ollamas):
        await until(lambda: all(ollama.loaded == [EMBEDDER] for ollama in ollamas))
        embed = json.dumps({"model": EMBEDDER, "input": "hi"}).encode()
        assert (await gateway.ask(post("/api/embed", embed)))[0] == 200
        for path in ("/api/ps", "/api/tags", "/api/ps?corral=0", "/api/tags?xcorral=1", "/api/ps?corral=11"):
            assert b"x-corral" not in (await get(gateway, path))[2]
        copies = await models(gateway, "/api/ps?a=b&corral=1")
        assert sorted(copy["x-corral-replica"] for copy in copies) == ["r0", "r1"]
        assert {copy["x-corral-slots"] for copy in copies} == {4}
        assert {copy["x-corral-pinned"] for copy in copies} == {True}
        assert {copy["x-corral-in-flight"] for copy in copies} == {0}
        assert [copy["x-corral-idle-s"] is None for copy in copies].count(False) == 1
        assert all(0 <= copy["x-corral-age-s"] < 60 for copy in copies)
        tags = {model["name"]: model for model in await models(gateway, "/api/tags?corral=1")}
        assert tags[EMBEDDER]["x-corral-replicas"] == tags[EMBEDDER]["x-corral-loaded"] == ["r0", "r1"]
        assert tags[EMBEDDER]["x-corral-stores"] == ["shared"]
        assert tags[CHAT]["x-corral-loaded"] == tags[CHAT]["x-corral-outdated"] == []


async def test_heads_are_those_of_the_pages_and_ps_has_none_as_with_ollama() -> None:
    async with emulators(1) as (gateway, _):
        for path in ("/", "/api/version", "/api/tags", "/api/tags?corral=1"):
            status, headers, body = await get(gateway, path)
            head_status, head_headers, _ = await get(gateway, path, "HEAD")
            assert status == head_status == 200
            assert head_headers["content-length"] == headers["content-length"] == str(len(body))
            assert head_headers["content-type"] == headers["content-type"]
        status, headers, _ = await get(gateway, "/api/ps", "HEAD")
        assert (status, headers["allow"]) == (405, "GET")


async def test_stores_that_are_none_are_told_of_in_the_status() -> None:
    async with fakes(2) as (gateway, (_, other)):
        other.answers["/api/tags"] = document({"models": [TAG | {"name": "other"}]})
        for replica_id in ("r1", "r0", "r1", "r0", "r1"):
            await gateway.app.poller.catch_up_tags([replica_id], anew=True)
        (advice,) = gateway.gateway.snapshot().advice
        assert advice.startswith("r0 and r1 are said to share the store 'shared' but list different models")
