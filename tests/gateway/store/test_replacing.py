"""Models that are removed or replaced leave every memory at once, on emulated Ollamas that share a store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest_asyncio

from corral.gateway.store.names import is_ours
from tests.emulator.inloop import InLoop, emulated
from tests.gateway.serve.emulated import CHAT
from tests.gateway.store.stage import Stage, configuration
from tests.gateway.wire.harness import RunningGateway, until

OTHER = "smollm2:135m"


class Ranch(Stage):
    """A gateway in front of emulators."""

    def __init__(self, running: RunningGateway, ollamas: list[InLoop]) -> None:
        super().__init__(running, [])
        self.ollamas = ollamas

    def publish(self, model: str, version: int) -> None:
        """From now on a pull gets this."""
        for each in self.ollamas:
            each.app.registry.publish({"model": model, "version": version})

    async def loaded_everywhere(self, model: str) -> None:
        for each in self.ollamas:
            await each.load(model)
        await self.running.app.poller.refresh(tags=True, ps=True, deadline_s=5)

    async def digest(self, model: str = CHAT) -> str:
        found: str = {each["name"]: each["digest"] for each in (await self.get("/api/tags"))["models"]}[model]
        return found

    async def in_memory(self) -> list[set[str]]:
        """Digests, of each emulator."""
        return [set(await each.ps()) for each in self.ollamas]

    async def names(self) -> list[str]:
        """What the first store holds, in truth."""
        return sorted(await self.ollamas[0].tags())

    async def whole(self) -> None:
        """Nothing of the gateway's own is left, and the stores verify."""
        await self.at_rest()
        shelf = self.ollamas[0].app.store.shelf
        await until(lambda: not any(is_ours(each.name) for each in shelf.entries()))
        await self.at_rest()
        assert [each.app.store.shelf.report().problems for each in self.ollamas] == [()] * len(self.ollamas)


Build = Callable[..., Awaitable[Ranch]]


@pytest_asyncio.fixture
async def build(tmp_path: Path) -> AsyncIterator[Build]:
    """``await build(2)``: a gateway in front of two emulators with one store; ``apart``: with one each."""
    async with AsyncExitStack() as stack:

        async def builder(count: int = 2, *, apart: bool = False, **settings: Any) -> Ranch:
            ollamas = [
                await stack.enter_async_context(
                    emulated(CHAT, id=f"r{n}", store=tmp_path / (str(n) if apart else "s"), load_s=0.05, **settings)
                )
                for n in range(count)
            ]
            places = [(int(each.url.rpartition(":")[2]), f"s{n}" if apart else "s") for n, each in enumerate(ollamas)]
            running = RunningGateway(configuration(places, "placement: {enabled: true}\n"), [])
            stack.push_async_callback(running.stop)
            await running.start()
            return Ranch(running, ollamas)

        yield builder


async def test_a_pull_of_another_version_has_the_old_one_leave_everywhere(build: Build) -> None:
    ranch = await build()
    await ranch.loaded_everywhere(CHAT)
    old = await ranch.digest()
    assert await ranch.in_memory() == [{old}, {old}]
    ranch.publish(CHAT, 2)
    status, lines = await ranch.ask("/api/pull", model=CHAT)
    assert (status, lines[-1]) == (200, {"status": "success"})
    new = await ranch.digest()
    assert new != old
    assert [state.loaded for state in ranch.running.states] == [(), ()]
    assert await ranch.get("/api/ps") == {"models": []}
    async with asyncio.timeout(5):
        while await ranch.in_memory() != [set(), set()]:
            await asyncio.sleep(0.01)
    assert (await ranch.ask("/api/generate", model=CHAT, prompt="", stream=False))[0] == 200
    assert set().union(*await ranch.in_memory()) == {new}
    await ranch.whole()


async def test_a_pull_of_the_same_version_lets_it_stay_in_memory(build: Build) -> None:
    ranch = await build()
    await ranch.loaded_everywhere(CHAT)
    old = await ranch.digest()
    assert (await ranch.ask("/api/pull", model=CHAT))[1][-1] == {"status": "success"}
    assert await ranch.in_memory() == [{old}, {old}]
    assert await ranch.names() == [CHAT]  # what was kept is gone before success is told
    await ranch.whole()


async def test_requests_that_use_the_old_version_end_well(build: Build) -> None:
    ranch = await build(1, fixed_tok_s=200.0, speed=1.0)
    asked = await ranch.send("/api/generate", model=CHAT, prompt="tell me", options={"num_predict": 100})
    assert (await asked.client.head())[0] == 200
    assert not (await asked.line())["done"]
    old = await ranch.digest()
    ranch.publish(CHAT, 2)
    assert (await ranch.ask("/api/pull", model=CHAT, stream=False))[0] == 200
    assert (await asked.lines())[-1]["done"]
    async with asyncio.timeout(5):
        while old in (await ranch.in_memory())[0]:
            await asyncio.sleep(0.01)
    await ranch.whole()


async def test_a_deleted_model_leaves_every_memory_and_every_list(build: Build) -> None:
    ranch = await build()
    await ranch.loaded_everywhere(CHAT)
    assert await ranch.delete(CHAT.upper()) == (200, None)
    assert (await ranch.get("/api/tags"))["models"] == []
    assert [state.loaded for state in ranch.running.states] == [(), ()]
    assert await ranch.get("/api/ps") == {"models": []}
    async with asyncio.timeout(5):
        while await ranch.in_memory() != [set(), set()]:
            await asyncio.sleep(0.01)
    status, answer = await ranch.ask("/api/chat", model=CHAT, messages=[{"role": "user", "content": "hi"}])
    assert (status, answer) == (404, {"error": f"model '{CHAT}' not found"})
    assert await ranch.delete(CHAT) == (404, {"error": f"model '{CHAT}' not found"})
    await ranch.whole()


async def test_an_alias_that_is_deleted_while_it_is_loaded_leaves_when_it_is_there(build: Build) -> None:
    ranch = await build(1, speed=1.0)
    names = ranch.running.scheduler.names_of
    assert (await ranch.ask("/api/copy", source=CHAT, destination="zebra"))[0] == 200
    await until(lambda: len(names("zebra:latest")) == 2)
    asked = await ranch.send("/api/generate", model="zebra", prompt="hi", options={"num_predict": 2})
    machine = ranch.ollamas[0].app.rig.machine
    await until(lambda: machine.loading)
    assert await ranch.delete("zebra") == (200, None)
    assert (await asked.client.answer())[0] in (200, 404)
    await until(lambda: not machine.loading)
    async with asyncio.timeout(5):
        while await ranch.in_memory() != [set()]:
            await asyncio.sleep(0.01)
    await ranch.whole()


async def test_a_deleted_model_is_back_when_it_was_pulled(build: Build) -> None:
    ranch = await build()
    old = await ranch.digest()
    assert await ranch.delete(CHAT) == (200, None)
    ranch.publish(CHAT, 3)
    assert (await ranch.ask("/api/pull", model=CHAT, stream=False))[0] == 200
    assert await ranch.digest() != old
    assert (await ranch.ask("/api/generate", model=CHAT, prompt="", stream=False))[0] == 200
    await ranch.whole()


async def test_a_copy_or_a_new_model_over_another_has_that_one_leave(build: Build) -> None:
    for path, body in (
        ("/api/copy", {"source": OTHER, "destination": CHAT}),
        ("/api/create", {"model": CHAT, "from": OTHER, "system": "Be brief."}),
    ):
        ranch = await build()
        assert (await ranch.ask("/api/pull", model=OTHER, stream=False))[0] == 200
        if path == "/api/create":
            assert (await ranch.ask("/api/pull", model=CHAT, stream=False))[0] == 200
        await ranch.loaded_everywhere(CHAT)
        old = await ranch.digest()
        assert (await ranch.ask(path, **body))[0] == 200
        assert await ranch.digest() != old
        async with asyncio.timeout(5):
            while any(old in held for held in await ranch.in_memory()):
                await asyncio.sleep(0.01)
        await ranch.whole()


async def test_requests_wait_while_a_model_is_being_removed_and_others_do_not(build: Build) -> None:
    ranch = await build()
    await ranch.loaded_everywhere(CHAT)
    assert (await ranch.ask("/api/pull", model=OTHER, stream=False))[0] == 200
    chats = [ranch.ask("/api/generate", model=CHAT, prompt="hi", stream=False) for _ in range(20)]
    others = [ranch.ask("/api/generate", model=OTHER, prompt="hi", stream=False) for _ in range(20)]
    deletion = ranch.delete(CHAT)
    *answers, deleted = await asyncio.gather(*chats, *others, deletion)
    assert deleted == (200, None)
    for status, answer in answers[:20]:
        assert status == 200 or (status, answer) == (404, {"error": f"model '{CHAT}' not found"})
    assert [status for status, _ in answers[20:]] == [200] * 20
    await ranch.whole()


async def test_stores_of_their_own_are_each_changed_and_listed_as_one(build: Build) -> None:
    ranch = await build(apart=True)
    _, lines = await ranch.ask("/api/pull", model=OTHER)
    statuses = [line["status"] for line in lines]
    assert statuses[0] == "pulling manifest"
    assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    done: dict[str, list[int]] = {}
    for line in lines:
        if "digest" in line:
            done.setdefault(line["digest"], []).append(line.get("completed", 0))
    assert all(parts == sorted(parts) for parts in done.values())
    assert [sorted(await each.tags()) for each in ranch.ollamas] == [[CHAT, OTHER]] * 2
    assert await ranch.ask("/api/copy", source=OTHER, destination="copied") == (200, None)
    assert await ranch.delete(OTHER) == (200, None)
    assert [sorted(await each.tags()) for each in ranch.ollamas] == [["copied:latest", CHAT]] * 2
    assert json.dumps(await ranch.get("/api/tags")).count('"copied:latest"') == 2  # name and model, once
    await ranch.whole()


async def test_without_noprune_what_a_pull_takes_away_costs_no_other_pull_its_layers(build: Build) -> None:
    """The old version's layers go when the gateway lets go of it, and then every pull beside it is repeated."""
    ranch = await build(noprune=False, pull_s=0.4)
    ranch.publish(CHAT, 2)
    pulls = [ranch.ask("/api/pull", model=name, stream=False) for name in (CHAT, OTHER, "llama3.1:8b")]
    assert [status for status, _ in await asyncio.gather(*pulls)] == [200, 200, 200]
    await ranch.whole()
