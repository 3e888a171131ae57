"""Which models are made of the same weights: what is asked of whom, and what is believed."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pytest
import pytest_asyncio

from corral.gateway.schedule.aliases import Weights
from corral.gateway.serve import watch, weights
from corral.gateway.serve.weights import weights_of
from tests.gateway.wire.conftest import Start, start
from tests.gateway.wire.harness import RunningGateway, until
from tests.gateway.wire.replica import Call, ScriptedReplica, say_hello

__all__ = ["start"]

QUICK = "probes: {ollama_interval_s: 0.05}\n"
HEX = {name: letter * 64 for name, letter in zip("abcdef", "abcdef", strict=True)}
FIRST, MADE, OTHER = "Llama:1b", "made:latest", "other:latest"
GIB = 1 << 30
MODIFIED = "2026-08-21T18:48:11.123456789+02:00"

Script = Callable[[Call, str], Awaitable[None]]


def tags(*models: tuple[str, str, int]) -> dict[str, object]:
    """Name, digest, size."""
    return {
        "models": [
            {"name": name, "model": name, "modified_at": MODIFIED, "size": size, "digest": HEX[digest], "details": {}}
            for name, digest, size in models
        ]
    }


ALIKE = tags((FIRST, "a", GIB), (MADE, "b", GIB + 100), (OTHER, "c", 2 * GIB))


def shown(blob: str = "f", parameters: str = "", modified: str = MODIFIED) -> dict[str, object]:
    modelfile = f"# Modelfile\n# FROM x\n\nFROM /models/blobs/sha256-{HEX[blob]}\nTEMPLATE x\n"
    return {"modelfile": modelfile, "parameters": parameters, "modified_at": modified}


async def show(call: Call, name: str) -> None:
    await call.json(shown())


class Asked:
    """What the gateway wanted to be shown, by any replica, in order."""

    def __init__(self, script: Script = show) -> None:
        self.names: list[str] = []
        self.replicas: list[str] = []
        self.at_once = self.most_at_once = 0
        self.script = script

    def at(self, id: str) -> Callable[[Call], Awaitable[None]]:
        async def answer(call: Call) -> None:
            if call.path != "/api/show":
                await say_hello(call)
                return
            name = json.loads(call.body)["model"]
            self.names.append(name)
            self.replicas.append(id)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                await self.script(call, name)
            finally:
                self.at_once -= 1

        return answer


class Stage:
    """Some scripted replicas that list the same, and what they are asked."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self.asked = Asked()
        self.running: RunningGateway

    async def open(
        self, count: int = 1, listed: dict[str, object] = ALIKE, script: Script = show, extra: str = ""
    ) -> Stage:
        self.asked.script = script
        self.running = await self._start(count, QUICK + extra)
        for number, replica in enumerate(self.running.replicas):
            replica.answer = self.asked.at(f"r{number}")
        self.list(listed)
        return self

    def list(self, listed: dict[str, object]) -> None:
        for replica in self.replicas:
            replica.tags = listed

    @property
    def replicas(self) -> Sequence[ScriptedReplica]:
        return self.running.replicas

    def names_of(self, model: str) -> tuple[str, ...]:
        return self.running.scheduler.names_of(model)

    async def until_one(self) -> None:
        await until(lambda: self.names_of(MADE) == ("llama:1b", MADE))


Open = Callable[..., Awaitable[Stage]]


@pytest_asyncio.fixture
async def stage(start: Start, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setattr(weights, "PAUSE_S", 0.0)
    monkeypatch.setattr(weights, "AGAIN_S", 0.02)
    monkeypatch.setattr(watch, "TAGS_EVERY", 1)
    return Stage(start).open


async def test_models_of_one_size_are_asked_for_once_one_at_a_time_as_they_are_spelled(stage: Open) -> None:
    on = await stage(2)
    await on.until_one()
    await on.running.app.poller.refresh(tags=True, ps=False, deadline_s=5.0)
    assert (sorted(on.asked.names), on.asked.most_at_once) == ([FIRST, MADE], 1)
    assert on.names_of(OTHER) == (OTHER,)


async def test_copies_are_one_without_a_question(stage: Open) -> None:
    on = await stage(listed=tags((FIRST, "a", GIB), (MADE, "a", GIB), (OTHER, "c", 2 * GIB)))
    await on.until_one()
    assert on.asked.names == []


async def test_another_blob_is_another_model(stage: Open) -> None:
    async def script(call: Call, name: str) -> None:
        await call.json(shown("e" if name == MADE else "f"))

    on = await stage(script=script)
    await until(lambda: len(on.asked.names) == 2 and not on.running.scheduler.unknown_weights)
    assert on.names_of(MADE) == (MADE,)


async def test_what_is_pulled_later_is_asked_for_then(stage: Open) -> None:
    on = await stage()
    await on.until_one()
    on.list(tags((FIRST, "a", GIB), (MADE, "b", GIB + 100), (OTHER, "d", GIB + 1)))
    await until(lambda: on.names_of(OTHER) == ("llama:1b", MADE, OTHER))
    assert sorted(on.asked.names) == [FIRST, MADE, OTHER]


async def refused(call: Call) -> None:
    await call.json({"error": "model not found"}, "404 Not Found")


async def nonsense(call: Call) -> None:
    await call.json([1, 2])


async def cut(call: Call) -> None:
    call.reset()


async def redirected(call: Call) -> None:
    await call.write(b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")


async def endless(call: Call) -> None:
    await call.start_stream()
    while True:
        await call.chunk(b"x" * 65536)


async def silent(call: Call) -> None:
    await call.gone()


async def of_another_day(call: Call) -> None:
    await call.json(shown(modified="2026-08-21T18:49:11+02:00"))


@pytest.mark.parametrize("fails", [refused, nonsense, cut, redirected, endless, silent, of_another_day])
async def test_a_question_that_failed_is_put_again_and_holds_up_no_other(
    stage: Open,
    fails: Callable[[Call], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "corral.gateway")
    monkeypatch.setattr(weights, "ASK_S", 0.2)
    monkeypatch.setattr(weights, "MOST_ANSWER", 1 << 18)
    failures = 2

    async def script(call: Call, name: str) -> None:
        nonlocal failures
        if name == FIRST and failures:
            failures -= 1
            await fails(call)
        else:
            await call.json(shown())

    on = await stage(script=script)
    await on.until_one()
    assert on.asked.names.count(FIRST) == 3
    assert on.asked.names[:2] == [FIRST, MADE]
    said = [line.getMessage() for line in caplog.records if line.getMessage().startswith("weights_not_known")]
    assert len(said) == 1, "a failure is told once"


async def test_after_each_failure_it_waits_longer(stage: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "AGAIN_S", 15.0)

    async def script(call: Call, name: str) -> None:
        await refused(call)

    on = await stage(script=script)
    reader = on.running.app.weights

    async def until_asked(count: int) -> None:
        await until(lambda: len(on.asked.names) == count and reader._task is None)

    await until_asked(2)
    now_s = reader._clock()
    for count, wait_s in ((4, 15.0), (6, 30.0), (8, 60.0)):
        assert {round(again.due_s - now_s) for again in reader._again.values()} == {round(wait_s)}
        now_s += wait_s + 1.0
        monkeypatch.setattr(reader, "_clock", partial(float, now_s))
        await until_asked(count)
    assert len(reader._again) == 2


async def test_a_version_that_went_while_it_was_asked_for_is_not_taken_for_the_next(stage: Open) -> None:
    asked, told = asyncio.Event(), asyncio.Event()

    async def script(call: Call, name: str) -> None:
        if name == MADE and not asked.is_set():
            asked.set()
            await told.wait()
        await call.json(shown())

    on = await stage(script=script)
    await asked.wait()
    on.list(tags((FIRST, "a", GIB), (MADE, "d", GIB + 100)))
    await until(lambda: "d" * 64 in {unknown.digest for unknown in on.running.scheduler.unknown_weights})
    told.set()
    await on.until_one()
    assert on.asked.names.count(MADE) == 2


async def test_who_is_drained_or_busier_is_not_asked(stage: Open) -> None:
    on = await stage(3, listed=tags((FIRST, "a", GIB)))
    on.running.gateway.set_enabled("r0", False)
    held = asyncio.Event()

    async def hold(call: Call) -> None:
        await held.wait()
        await say_hello(call)

    on.replicas[1].answer = hold
    body = b'{"model":"llama:1b","messages":[]}'
    client = await on.running.connect()
    on.running.gateway.set_enabled("r2", False)
    await client.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await until(lambda: on.running.scheduler.inflight_on("r1") == 1)
    on.running.gateway.set_enabled("r2", True)
    on.list(ALIKE)
    await on.until_one()
    assert set(on.asked.replicas) == {"r2"}
    held.set()
    await client.answer()


async def test_the_end_of_the_gateway_ends_the_question(stage: Open) -> None:
    asked = asyncio.Event()

    async def script(call: Call, name: str) -> None:
        asked.set()
        await call.gone()

    on = await stage(script=script)
    await asked.wait()
    await on.running.app.weights.close()
    assert on.running.app.weights._task is None
    on.running.app.weights.look()
    assert on.running.app.weights._task is None


# ---- what is read

BLOB = "/root/.ollama/models/blobs/sha256-"


@pytest.mark.parametrize(
    ("modelfile", "blobs"),
    [
        (f"# FROM x\n\nFROM {BLOB}{HEX['a']}\nTEMPLATE x\n", [f"FROM {HEX['a']}"]),
        (f"FROM C:\\Users\\a b\\blobs\\sha256-{HEX['a']}\r\n", [f"FROM {HEX['a']}"]),
        (f"FROM {BLOB.replace('-', ':')}{HEX['a']}", [f"FROM {HEX['a']}"]),
        (
            f"FROM {BLOB}{HEX['a']}\nADAPTER {BLOB}{HEX['b']}\nFROM {BLOB}{HEX['c']}\nSYSTEM x",
            [f"FROM {HEX['a']}", f"ADAPTER {HEX['b']}", f"FROM {HEX['c']}"],
        ),
        # whatever somebody wrote into his model's texts names nobody else's weights
        (f'FROM {BLOB}{HEX["a"]}\nSYSTEM """\nFROM {BLOB}{HEX["b"]}\n"""', [f"FROM {HEX['a']}"]),
        (f'SYSTEM """\nFROM {BLOB}{HEX["b"]}\n"""', []),
        ("FROM llama3.2\n", []),
        ("FROM \n", []),
        (f"ADAPTER {BLOB}{HEX['b']}\n", []),
        (f"FROM {BLOB}{HEX['a'][1:]}\n", []),
        ("", []),
    ],
)
def test_a_model_is_made_of_what_its_file_names_at_its_beginning(modelfile: str, blobs: list[str]) -> None:
    assert weights_of(modelfile, "") == Weights(tuple(blobs))


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ("", ""),
        ('stop                           "<|eot_id|>"\ntemperature                    0.5', ""),
        ("num_ctx                        8192", "num_ctx=8192"),
        ("num_ctx 1.048576e+06", "num_ctx=1048576"),
        ("use_mmap false\nnum_gpu 99\nnum_predict 7\nnum_ctx 16", "num_ctx=16,num_gpu=99,use_mmap=0"),
    ],
)
def test_options_that_its_file_names_are_those_of_a_request(parameters: str, options: str) -> None:
    assert weights_of(f"FROM {BLOB}{HEX['a']}", parameters) == Weights((f"FROM {HEX['a']}",), options)


@pytest.mark.parametrize("parameters", ['num_ctx "many"', "num_ctx", "num_ctx NaN", "num_gpu [1]"])
def test_one_with_strange_options_is_like_nobody(parameters: str) -> None:
    assert weights_of(f"FROM {BLOB}{HEX['a']}", parameters) == Weights(())
