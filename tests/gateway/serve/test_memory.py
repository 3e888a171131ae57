"""The gateway's own loads and unloads, on emulated Ollamas behind real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf

import aiohttp
import pytest

from corral.gateway.run.own_requests import load_fields
from corral.gateway.schedule.effects import Load, Unload
from corral.gateway.serve import memory
from corral.gateway.serve.memory import MemoryKeeper
from corral.gateway.serve.metrics import Metrics
from corral.gateway.wire.fields import route_request
from corral.gateway.wire.routes import find_route
from corral.model import Replica, normalise_model
from corral.probes.ollama import probe_session
from tests.gateway.serve.emulated import CHAT, EMBEDDER, KEEP_ALIVE_S, EmulatedOllama, emulated_ollama

PATIENCE_S = 10.0


class RecordingFeed:
    """Keeps how each ended, in order, and whose memory was to be read."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str, int, bool]] = []
        self.read: list[str] = []
        self._told = asyncio.Event()

    def load_ended(self, replica_id: str, number: int, *, ok: bool) -> None:
        self._tell(("load", replica_id, number, ok))

    def unload_ended(self, replica_id: str, number: int, *, ok: bool) -> None:
        self._tell(("unload", replica_id, number, ok))

    def spelled(self, replica_id: str, model: str) -> str:
        return model

    def read_memory(self, replica_id: str) -> None:
        self.read.append(replica_id)

    def _tell(self, end: tuple[str, str, int, bool]) -> None:
        self.ended.append(end)
        self._told.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.ended) < count:
                self._told.clear()
                await self._told.wait()


class Stage:
    """One keeper and one emulated Ollama."""

    def __init__(self, ollama: EmulatedOllama, keeper: MemoryKeeper, feed: RecordingFeed, metrics: Metrics) -> None:
        self.ollama = ollama
        self.replica = Replica("a", "127.0.0.1", ollama.port)
        self.keeper = keeper
        self.feed = feed
        self.metrics = metrics

    async def load(self, model: str = CHAT, signature: str = "") -> bool:
        return await self._do(Load(self.replica, model, signature, len(self.feed.ended)))

    async def unload(self, model: str = CHAT) -> bool:
        return await self._do(Unload(self.replica, model, len(self.feed.ended)))

    async def _do(self, effect: Load | Unload) -> bool:
        before = len(self.feed.ended)
        self.keeper.change(effect)
        await self.feed.until(before + 1)
        what, replica_id, number, ok = self.feed.ended[-1]
        assert (what, replica_id, number) == (type(effect).__name__.lower(), "a", before)
        return ok


@asynccontextmanager
async def staged(load_s: float = 0.05) -> AsyncIterator[Stage]:
    feed, metrics = RecordingFeed(), Metrics()
    async with emulated_ollama(load_s) as ollama, probe_session() as session:
        keeper = MemoryKeeper(feed, feed, session, metrics, asyncio.get_running_loop().time)
        try:
            yield Stage(ollama, keeper, feed, metrics)
        finally:
            await keeper.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_model_is_loaded_for_as_long_as_the_replica_keeps_models(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with staged() as on:
        assert await on.load()
        assert on.ollama.loaded == [CHAT]
        assert on.ollama.runners[0].session_s == KEEP_ALIVE_S
        assert on.feed.read == ["a"]
        assert on.metrics.loads == {("a", "other", "ok"): 1}
        assert 0.05 <= on.metrics.load_seconds["a"].sum < PATIENCE_S
    assert [line.getMessage().rpartition("=")[0] for line in caplog.records] == [
        f"model_loaded replica=a model={CHAT} seconds"
    ]


async def test_a_model_is_loaded_with_the_options_of_the_requests_that_wait_for_it() -> None:
    body = b'{"model":"%b","shift":false,"options":{"num_ctx":2048,"use_mmap":false,"num_thread":3}}' % CHAT.encode()
    route = find_route(b"POST", "/api/generate")
    asked = route_request(route, body, b"application/json", "")
    async with staged() as on:
        assert await on.load(CHAT, asked.signature)
        runner = on.ollama.runners[0]
        assert runner.context_tokens == 2048
        signature = runner.job.signature
        assert (signature.use_mmap, signature.num_thread, signature.shift) == (False, 3, False)
        assert await on.load(CHAT, asked.signature)
        assert on.ollama.app.rig.machine.loads == 1
        assert await on.load(CHAT, "num_ctx=4096")
        assert on.ollama.app.rig.machine.loads == 2


@pytest.mark.parametrize(
    ("signature", "fields"),
    [
        ("", {}),
        ("num_ctx=4096", {"options": {"num_ctx": 4096}}),
        ("num_gpu=-1,use_mmap=1", {"options": {"num_gpu": -1, "use_mmap": True}}),
        ("num_ctx=0.5,use_mmap=0,shift=1", {"options": {"num_ctx": 0.5, "use_mmap": False}, "shift": True}),
        ("shift=0", {"shift": False}),
    ],
)
def test_a_signature_becomes_the_options_that_it_was_made_of(signature: str, fields: dict[str, object]) -> None:
    assert repr(load_fields(signature)) == repr(fields)


@pytest.mark.parametrize("model", [CHAT, EMBEDDER])
@pytest.mark.parametrize("keep_alive_s", [3600.0, 0.25, inf])
async def test_a_model_is_kept_for_as_long_as_a_client_wants(model: str, keep_alive_s: float) -> None:
    async with staged() as on:
        on.keeper.change(Load(on.replica, model, "", 1, keep_alive_s))
        await on.feed.until(1)
        assert on.feed.ended == [("load", "a", 1, True)]
        assert [runner.session_s for runner in on.ollama.runners] == [keep_alive_s]


async def test_a_model_that_only_embeds_is_loaded_too() -> None:
    async with staged() as on:
        assert await on.load(EMBEDDER, "num_ctx=128,shift=0")
        assert on.ollama.loaded == [EMBEDDER]
        assert on.ollama.runners[0].context_tokens == 128
        assert await on.unload(EMBEDDER)
        assert on.ollama.loaded == []


async def test_a_model_that_the_replica_lacks_fails_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with staged() as on:
        assert not await on.load("missing:latest", "num_ctx=64")
        assert on.metrics.loads == {("a", "other", "failed"): 1}
        assert on.metrics.load_seconds == {}
        assert on.feed.read == ["a"]
    assert [line.getMessage() for line in caplog.records] == [
        'model_load_failed replica=a model=missing:latest options="num_ctx=64" '
        "error=\"model 'missing:latest' not found\""
    ]


async def test_an_idle_model_is_gone_when_its_unload_has_ended() -> None:
    async with staged() as on:
        assert await on.load()
        assert await on.unload()
        assert on.ollama.loaded == []
        assert await on.unload(), "what is not there is gone"
        assert on.metrics.unloads == {("a", "other", "ok"): 2}


async def test_a_model_that_stays_because_it_is_used_was_not_unloaded_but_leaves_afterwards(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "GONE_S", 0.2)
    async with staged() as on, aiohttp.ClientSession() as client:
        assert await on.load()
        url = f"http://127.0.0.1:{on.replica.port}/api/generate"
        long = {"model": CHAT, "prompt": "on and on", "options": {"num_predict": 50_000}}
        async with client.post(url, json=long) as response:
            await response.content.readline()
            assert not await on.unload()
            assert on.ollama.loaded == [CHAT]
        await until(lambda: not on.ollama.runners)
    assert on.metrics.unloads == {("a", "other", "failed"): 1}
    assert caplog.records[-1].getMessage().endswith('error="it is still in memory after 0.2 s"')


async def test_a_model_that_is_listed_under_another_of_its_names_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GONE_S", 0.2)
    async with staged() as on, aiohttp.ClientSession() as client:
        url = f"http://127.0.0.1:{on.replica.port}"
        async with client.post(f"{url}/api/copy", json={"source": CHAT, "destination": "copy"}) as copied:
            assert copied.status == 200
        on.keeper.names_of = lambda model: (CHAT, "copy:latest")
        long = {"model": "copy", "prompt": "on and on", "options": {"num_predict": 50_000}}
        async with client.post(f"{url}/api/generate", json=long) as response:
            await response.content.readline()
            assert on.ollama.loaded == ["copy:latest"]
            assert not await on.unload(CHAT)
        assert await on.unload(CHAT)
        assert on.ollama.loaded == []


async def test_a_dead_replica_fails_at_once() -> None:
    async with staged() as on:
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            on.replica = Replica("a", "127.0.0.1", nobody.getsockname()[1])
        assert not await on.load()
        assert not await on.unload()


async def test_a_replica_that_dies_while_it_loads_fails_the_load() -> None:
    async with staged(load_s=600.0) as on:
        on.keeper.change(Load(on.replica, CHAT, "", 1))
        await until(lambda: on.ollama.runners)
        on.ollama.app.close()
        await on.feed.until(1)
        assert on.feed.ended == [("load", "a", 1, False)]


async def test_several_are_under_way_at_once_and_each_end_is_told_with_its_number() -> None:
    async with staged() as on:
        for number, model in enumerate((CHAT, EMBEDDER, "missing:latest")):
            on.keeper.change(Load(on.replica, model, "", number))
        await on.feed.until(3)
        assert sorted(on.feed.ended) == [("load", "a", 0, True), ("load", "a", 1, True), ("load", "a", 2, False)]


@pytest.mark.parametrize("left", [(), (Replica("a", "127.0.0.2", 1),)], ids=["removed", "elsewhere"])
async def test_a_replica_that_is_removed_ends_its_loads_once(left: tuple[Replica, ...]) -> None:
    async with staged(load_s=600.0) as on:
        on.keeper.change(Load(on.replica, CHAT, "", 1))
        await until(lambda: on.ollama.runners)
        on.keeper.keep_only([on.replica])
        assert on.feed.ended == []
        on.keeper.keep_only(left)
        assert on.feed.ended == [("load", "a", 1, False)]
        await until(lambda: not on.ollama.runners)
        on.keeper.keep_only(left)
        assert on.feed.ended == [("load", "a", 1, False)]


async def test_the_end_of_the_gateway_gives_up_what_is_under_way_and_tells_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with staged(load_s=600.0) as on:
        on.keeper.change(Load(on.replica, CHAT, "", 1))
        await until(lambda: on.ollama.runners)
        await on.keeper.close()
        await until(lambda: not on.ollama.runners)
        on.keeper.change(Load(on.replica, CHAT, "", 2))
        assert on.feed.ended == []
    assert len(asyncio.all_tasks()) == 1
    assert caplog.records == []


async def test_a_bug_ends_the_load_and_is_reported() -> None:
    async with staged() as on:
        bugs: list[tuple[str, Exception]] = []
        on.keeper.report_bug = lambda where, error: bugs.append((where, error))
        assert not await on.load(CHAT, "num_ctx=what")
        assert [(where, type(error)) for where, error in bugs] == [("memory", ValueError)]


def test_the_names_used_here_are_normalised() -> None:
    assert [normalise_model(name) for name in (CHAT, EMBEDDER)] == [CHAT, EMBEDDER]
