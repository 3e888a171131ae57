"""Models in the memory of emulated Ollamas behind a gateway, all in one loop: names that share weights, and how long
clients want a model kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from hashlib import sha256
from math import inf
from typing import Any

import pytest
import pytest_asyncio

from corral.emulator.app import App
from corral.emulator.catalog import gpu_named, model_given
from corral.emulator.runner import Runner
from corral.emulator.settings import Settings
from corral.gateway.config import parse_config
from corral.gateway.serve import weights
from tests.gateway.wire.harness import RunningGateway, post, until

MODEL, OTHER = "llama3.2:1b", "llama3.2:3b"
KEPT_S = 300.0
SPEED = 50.0


class Stage:
    """The Ollamas, and the gateway."""

    def __init__(self, ollamas: Sequence[App], running: RunningGateway) -> None:
        self.ollamas = ollamas
        self.running = running

    async def ask(self, path: str, **fields: object) -> tuple[int, dict[str, Any]]:
        """The last object of the answer."""
        status, _, body = await self.running.ask(post(path, json.dumps(fields).encode()))
        lines = body.splitlines()
        return status, json.loads(lines[-1]) if lines else {}

    async def page(self, path: str) -> list[dict[str, Any]]:
        _, _, body = await self.running.ask(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        models: list[dict[str, Any]] = json.loads(body)["models"]
        return models

    async def chat(self, model: str, **fields: object) -> None:
        options = {"num_predict": 3, **fields.pop("options", {})}  # type: ignore[dict-item]
        content = [{"role": "user", "content": "hi"}]
        status, last = await self.ask("/api/chat", model=model, messages=content, options=options, **fields)
        assert (status, last["model"], last["done"]) == (200, model, True)

    async def copy(self, name: str = "copy") -> str:
        status, _ = await self.ask("/api/copy", source=MODEL, destination=name)
        assert status == 200
        await until(lambda: self.running.scheduler.names_of(MODEL) == tuple(sorted((MODEL, f"{name}:latest"))))
        return name

    async def make(self, name: str = "made", **fields: object) -> str:
        """From :data:`MODEL`, with another system prompt and more."""
        status, last = await self.ask("/api/create", model=name, **{"from": MODEL}, system="Be brief.", **fields)
        assert (status, last["status"]) == (200, "success")
        await until(lambda: f"{name}:latest" in self.running.scheduler.names_of(MODEL))
        return name

    def runners(self, number: int = 0) -> list[Runner]:
        return list(self.ollamas[number].rig.machine.runners.values())

    def loaded(self) -> list[tuple[str, ...] | None]:
        """What the scheduler thinks is in memory."""
        return [state.loaded for state in self.running.states]

    @property
    def loads(self) -> list[int]:
        return [ollama.rig.machine.loads for ollama in self.ollamas]

    @property
    def unloads(self) -> list[int]:
        return [ollama.rig.machine.unloads for ollama in self.ollamas]

    @property
    def asked_loads(self) -> int:
        """Of the gateway."""
        return sum(self.running.app.metrics.loads.values())


Open = Callable[..., Awaitable[Stage]]


@pytest_asyncio.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """``await stage(n, settings of a replica in YAML)`` → a gateway in front of n Ollamas with stores of their own."""
    monkeypatch.setattr(weights, "PAUSE_S", 0.0)
    async with AsyncExitStack() as stack:

        async def build(count: int = 1, replica: str = "slots: 2", **options: Any) -> Stage:
            apps, listed = [], ""
            for number in range(count):
                models = (model_given(MODEL), model_given(OTHER))
                settings = {"parallel": 2, "load_s": 1.0, "keep_alive_s": KEPT_S, "speed": SPEED, **options}
                app = App(Settings(f"r{number}", gpu_named("RTX 4090"), models, **settings))
                server = await asyncio.get_running_loop().create_server(app.connection, "127.0.0.1", 0)
                stack.callback(server.close)
                stack.callback(app.close)
                apps.append(app)
                port = server.sockets[0].getsockname()[1]
                listed += f'  - {{id: r{number}, url: "http://127.0.0.1:{port}", store: s{number}, {replica}}}\n'
            text = "listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nprobes: {ollama_interval_s: 0.05}\n"
            running = RunningGateway(parse_config(f"{text}replicas:\n{listed}", "test"), [])
            await running.start()
            stack.push_async_callback(running.stop)
            await until(lambda: all(state.loaded is not None for state in running.states))
            return Stage(apps, running)

        yield build


# ---- names of one model


@pytest.mark.parametrize("how", ["copy", "make"])
async def test_an_alias_is_served_by_the_runner_of_its_original(stage: Open, how: str) -> None:
    on = await stage(replica="slots: 2, max_loaded: 1", max_loaded=1)
    name = await (on.copy() if how == "copy" else on.make())
    for _ in range(3):
        await on.chat(MODEL)
        await on.chat(name)
    assert (on.loads, on.unloads, on.asked_loads) == ([1], [0], 1)
    assert [entry["name"] for entry in await on.page("/api/ps")] == [MODEL]
    assert {entry["name"] for entry in await on.page("/api/tags")} == {MODEL, OTHER, f"{name}:latest"}


async def test_whichever_name_is_asked_for_first_one_entry_is_listed(stage: Open) -> None:
    on = await stage()
    name = await on.make()
    await on.chat(name)
    await on.chat(MODEL)
    assert on.loads == [1]
    assert len(await on.page("/api/ps")) == 1


async def test_requests_are_counted_under_the_name_that_the_client_used(stage: Open) -> None:
    on = await stage()
    name = await on.copy()
    await on.chat(name)
    assert {model for _, model in on.running.app.metrics.series} & {MODEL, "copy:latest"} == {"copy:latest"}


async def test_an_option_in_an_aliass_file_is_an_option_of_its_requests(stage: Open) -> None:
    on = await stage()
    name = await on.make(parameters={"num_ctx": 2048})
    await on.chat(name)
    await on.chat(MODEL, options={"num_ctx": 2048})
    await on.chat(name)
    assert (on.loads, on.asked_loads) == ([1], 1)
    assert [runner.context_tokens for runner in on.runners()] == [2048]
    await on.chat(name, options={"num_ctx": 1024})
    assert (on.loads, on.asked_loads) == ([2], 2)
    assert [runner.context_tokens for runner in on.runners()] == [1024]


async def test_another_adapter_is_another_model(stage: Open) -> None:
    on = await stage()
    blob = b"an adapter"
    digest = f"sha256:{sha256(blob).hexdigest()}"
    await on.running.ask(post(f"/api/blobs/{digest}", blob))
    await on.ask("/api/create", model="made", **{"from": MODEL}, adapters={"a.gguf": digest})
    await until(lambda: all("made:latest" in (state.installed or ()) for state in on.running.states))
    await until(lambda: not on.running.scheduler.unknown_weights)
    assert on.running.scheduler.names_of("made:latest") == ("made:latest",)


async def test_letting_go_of_an_alias_lets_go_of_the_runner(stage: Open) -> None:
    on = await stage(2)
    name = await on.make()
    await on.chat(MODEL)
    status, last = await on.ask("/api/generate", model=name, keep_alive=0)
    assert (status, last["done_reason"]) == (200, "unload")
    assert on.loaded() == [(), ()]
    await until(lambda: not on.runners())


async def test_a_runner_that_is_listed_under_its_alias_leaves_for_another_model(stage: Open) -> None:
    on = await stage(replica="slots: 2, max_loaded: 1", max_loaded=1)
    name = await on.make()
    await on.chat(name)
    await on.chat(OTHER)
    await on.chat(name)
    assert (on.loads, on.asked_loads) == ([3], 3)
    assert on.running.app.metrics.unloads == {("r0", MODEL, "ok"): 1, ("r0", OTHER, "ok"): 1}


async def test_an_alias_that_is_deleted_takes_nothing_from_its_original(stage: Open) -> None:
    on = await stage()
    name = await on.make()
    await on.chat(MODEL)
    body = json.dumps({"model": name}).encode()
    status, _, _ = await on.running.ask(post("/api/delete", body).replace(b"POST", b"DELETE", 1))
    assert status == 200
    await until(lambda: on.running.scheduler.names_of(MODEL) == (MODEL,))
    await on.chat(MODEL)
    status, _ = await on.ask("/api/chat", model=name, messages=[{"role": "user", "content": "hi"}])
    assert status == 404


# ---- how long it is kept


@pytest.mark.parametrize(("keep_alive", "kept_s"), [("1h", 3600.0), (-1, inf), (7.5, 7.5), (None, KEPT_S)])
async def test_a_load_by_a_client_is_kept_as_it_asks_and_so_are_further_copies(
    stage: Open, keep_alive: object, kept_s: float
) -> None:
    on = await stage(2, "slots: 1", parallel=1, fixed_tok_s=10.0)
    await on.ask("/api/generate", model=MODEL, **({} if keep_alive is None else {"keep_alive": keep_alive}))
    assert (on.asked_loads, sum(on.loads)) == (1, 1), "by the gateway, where placement wants it"
    assert {runner.session_s for number in (0, 1) for runner in on.runners(number)} == {kept_s}
    clients = [await on.running.connect() for _ in range(6)]
    for client in clients:
        long = {"model": MODEL, "prompt": "on and on", "options": {"num_predict": 50}}
        await client.send(post("/api/generate", json.dumps(long).encode()))
    await until(lambda: all(on.runners(number) for number in (0, 1)), 10)
    assert [runner.session_s for number in (0, 1) for runner in on.runners(number)] == [kept_s, kept_s]
    assert on.asked_loads <= 2


async def test_a_load_by_a_client_goes_where_placement_wants_it(stage: Open) -> None:
    on = await stage(2, replica="slots: 2, max_loaded: 1", max_loaded=1)
    for _ in range(5):
        await on.chat(OTHER)
    before = on.loads
    status, last = await on.ask("/api/generate", model=MODEL, keep_alive="1h")
    assert (status, last["done_reason"]) == (200, "load")
    assert sum(on.unloads) == 0, "not where another model is in use"
    assert [runner.session_s for number in (0, 1) for runner in on.runners(number) if runner.job.name == MODEL] == [
        3600
    ]
    assert sum(on.loads) == sum(before) + 1
    status, last = await on.ask("/api/chat", model=MODEL, messages=[], keep_alive=-1)
    assert (status, last["done_reason"]) == (200, "load")
    assert [runner.session_s for number in (0, 1) for runner in on.runners(number) if runner.job.name == MODEL] == [inf]
    assert sum(on.loads) == sum(before) + 1


async def test_after_a_request_that_keeps_nothing_the_model_leaves_every_replica_at_once(stage: Open) -> None:
    on = await stage(2)
    for number in (0, 1):
        on.running.gateway.set_enabled(f"r{1 - number}", False)
        await on.chat(MODEL)
        on.running.gateway.set_enabled(f"r{1 - number}", True)
    assert on.loaded() == [(MODEL,), (MODEL,)]
    await on.chat(MODEL, keep_alive=0)
    assert on.loaded() == [(), ()]
    assert await on.page("/api/ps") == []
    await until(lambda: not on.runners(0) and not on.runners(1))
    await on.chat(MODEL)
    assert (sum(on.loads), on.asked_loads) == (3, 3)


async def test_where_it_is_pinned_it_is_loaded_again(stage: Open) -> None:
    on = await stage(2, f'slots: 2, pin: ["{MODEL}"]')
    await until(lambda: on.loaded() == [(MODEL,), (MODEL,)])
    before = on.loads
    await on.chat(MODEL, keep_alive=0)
    await until(lambda: sum(on.loads) == sum(before) + 1)
    await until(lambda: on.loaded() == [(MODEL,), (MODEL,)])
    assert sum(on.unloads) == 1


async def test_a_model_that_is_used_leaves_when_its_last_request_has_ended(stage: Open) -> None:
    on = await stage(1, fixed_tok_s=1.0)
    await on.chat(MODEL)
    client = await on.running.connect()
    long = {"model": MODEL, "prompt": "on and on", "options": {"num_predict": 20}}
    await client.send(post("/api/generate", json.dumps(long).encode()))
    await client.head()
    await on.chat(MODEL, keep_alive=0, options={"num_predict": 1})
    assert on.loaded() == [(MODEL,)]
    pieces = [piece async for piece in client.chunks()]
    assert b'"done":true' in pieces[-1]
    assert on.loaded() == [()]
    await until(lambda: not on.runners())
