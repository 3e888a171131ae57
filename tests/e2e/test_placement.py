"""What is in memory where, with real processes: the gateway alone loads and unloads, and nobody waits for nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleets import Fleet, fleet
from tests.e2e.processes import ask, emulators, gateway
from tests.e2e.shapes import CHAT, GENERATE, OPENAI, WHOLE, Shape, Verdict
from tests.e2e.traffic import Answer, Client, once
from tests.gateway.cli.shell import corral

SMALL, LARGE, OTHER = "llama3.2:1b", "llama3.2:3b", "smollm2:135m"
FAST = ("--speed", "50", "--parallel", "4", "--context-length", "4096")
QUICK_LOADS = (*FAST, "--load-seconds", "5")
"""A tenth of a second each: the clock of the emulator is fast, too."""
TOO_BIG = "model requires more system memory"


def has(*models: str) -> tuple[str, ...]:
    return tuple(option for model in models for option in ("--model", model))


async def loads(running: Fleet) -> int:
    """How many the replicas made."""
    return sum([(await each.stats())["loads"] for each in running.emulators])


async def loads_asked_for(running: Fleet) -> int:
    """How many of them the gateway asked for."""
    _, page = await ask(running.gateway.admin_port, "GET", "/metrics")
    return sum(int(count) for count in re.findall(r'corral_model_loads_total\{[^}]*outcome="ok"[^}]*\} (\d+)', page))


async def until_loading(running: Fleet, name: str) -> None:
    while not (await running[name].stats())["loads"]:
        await asyncio.sleep(0.01)


def with_context(shape: Shape, model: str, tokens: int, num_ctx: int) -> dict[str, Any]:
    body = shape.body(model, "hi", tokens)
    return {**body, "options": {**body["options"], "num_ctx": num_ctx}}


async def asked_in_turn(port: int, bodies: Iterable[tuple[Shape, dict[str, Any]]], clients: int = 1) -> list[Answer]:
    """The answers that some clients get, each of which asks all of this, one after the other."""
    requests = list(bodies)

    async def work() -> list[Answer]:
        client = Client(port)
        answers = [await client.post(shape.path, body, shape.read) for shape, body in requests]
        client.close()
        return answers

    return [answer for answers in await asyncio.gather(*(work() for _ in range(clients))) for answer in answers]


def all_complete(answers: Sequence[Answer]) -> bool:
    return {answer.verdict for answer in answers} == {Verdict.COMPLETE}


async def test_more_models_than_fit_take_turns_and_ollama_never_loads_by_itself(tmp_path: Path) -> None:
    models = (SMALL, LARGE, OTHER)
    options = (*has(*models), *QUICK_LOADS, "--max-loaded", "1")
    async with fleet(tmp_path, 2, *options, slots="4, max_loaded: 1") as running:
        turns = [(shape, shape.body(model, "hi", 4)) for shape in (CHAT, OPENAI) for model in models]
        assert all_complete(await asked_in_turn(running.gateway.port, turns, clients=8))
        made = await loads(running)
        assert made == await loads_asked_for(running)
        assert 3 <= made <= 2 * len(turns)
        assert "failed" not in running.gateway.said()


async def test_a_client_that_leaves_while_its_model_is_loaded_takes_nothing_from_the_others(tmp_path: Path) -> None:
    async with fleet(tmp_path, 1, *has(SMALL), *FAST, "--load-seconds", "40") as running:
        port = running.gateway.port
        first = Client(port)
        await first.send(CHAT.path, CHAT.body(SMALL, "hi", 4))
        others = [asyncio.create_task(once(port, shape, SMALL, tokens=4)) for shape in (CHAT, WHOLE, OPENAI)]
        await until_loading(running, "r0")
        first.reset()
        assert all_complete(await asyncio.gather(*others))
        assert (await loads(running), await loads_asked_for(running)) == (1, 1)
        assert (await running["r0"].stats())["aborted"] == 0


async def test_two_clients_with_context_lengths_of_their_own_have_a_replica_each(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, *has(SMALL), *QUICK_LOADS) as running:
        port = running.gateway.port
        asked = [[(CHAT, with_context(CHAT, SMALL, 4, num_ctx))] * 20 for num_ctx in (1024, 2048)]
        answers = await asyncio.gather(*(asked_in_turn(port, each) for each in asked))
        assert all(map(all_complete, answers))
        assert await loads(running) == await loads_asked_for(running) <= 4


async def test_a_pinned_model_is_loaded_before_anyone_asks_and_none_where_it_is_kept_off(tmp_path: Path) -> None:
    async with emulators(tmp_path, 2, *has(SMALL, LARGE), *QUICK_LOADS) as replicas:
        config = tmp_path / "corral.yaml"
        urls = [f'url: "http://127.0.0.1:{each.port}", slots: 1' for each in replicas]
        config.write_text(
            "listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n"
            f"  - {{id: r0, {urls[0]}, keep_off: [{SMALL}]}}\n  - {{id: r1, {urls[1]}, pin: [{LARGE}]}}\n"
        )
        async with gateway(config) as front:
            await front.until(lambda page: page["replicas"][1]["loaded"] == [LARGE], 10, "the pinned model")
            running = Fleet(front, replicas)
            assert (await loads(running), await loads_asked_for(running)) == (1, 1)
            answers = await asked_in_turn(front.port, [(CHAT, CHAT.body(SMALL, "hi", 4))] * 2, clients=6)
            assert all_complete(answers)
            assert {answer.header("x-corral-replica") for answer in answers} == {"r1"}
            assert (await replicas[0].stats())["loads"] == 0


async def test_a_model_that_cannot_be_loaded_is_told_in_ollamas_own_words_at_once(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, *has(SMALL), *QUICK_LOADS) as running:
        port = running.gateway.port
        await running["r0"].fault("load-fails", count=None)
        answer = await once(port, CHAT, SMALL)
        assert (answer.verdict, answer.header("x-corral-replica")) == (Verdict.COMPLETE, "r1")
        await ask(running["r1"].port, "POST", "/api/generate", {"model": SMALL, "keep_alive": 0})
        await running["r1"].fault("load-fails", count=None)
        await running.gateway.until(lambda page: not page["replicas"][1]["loaded"], 5, "an empty memory")
        for shape in (CHAT, OPENAI, GENERATE, WHOLE):
            refused = await once(port, shape, SMALL)
            assert refused.status == 500
            assert TOO_BIG.encode() in refused.body
            assert refused.seconds < 2
        await running["r0"].clear_faults()
        await running["r1"].clear_faults()
        assert (await once(port, CHAT, SMALL)).verdict is Verdict.COMPLETE


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_when_a_replica_is_lost_while_it_loads_another_one_loads(tmp_path: Path, how: str) -> None:
    async with fleet(tmp_path, 2, *has(SMALL), *FAST, "--load-seconds", "25") as running:
        asked = [asyncio.create_task(once(running.gateway.port, shape, SMALL)) for shape in (CHAT, OPENAI, WHOLE)]
        await until_loading(running, "r0")
        if how == "kill":
            running["r0"].kill()
        else:
            running["r0"].freeze()
        answers = await asyncio.gather(*asked)
        assert all_complete(answers)
        assert {answer.header("x-corral-replica") for answer in answers} == {"r1"}
        if how == "freeze":
            running["r0"].thaw()


async def test_whoever_names_the_context_length_that_a_model_has_anyway_shares_it_with_who_names_none(
    tmp_path: Path,
) -> None:
    """``/v1`` has no place for options; native clients often name the default: they must not take turns."""
    async with fleet(tmp_path, 1, *has(SMALL), *QUICK_LOADS) as running:
        turns = [(CHAT, with_context(CHAT, SMALL, 4, 4096)), (OPENAI, OPENAI.body(SMALL, "hi", 4))] * 5
        assert all_complete(await asked_in_turn(running.gateway.port, turns))
        assert await loads(running) == await loads_asked_for(running) <= 2


@pytest.mark.parametrize("more", ["", "placement: {canonicalise: {num_ctx: 4096}}\n"])
async def test_clients_of_all_dialects_and_options_share_one_replica(tmp_path: Path, more: str) -> None:
    async with fleet(tmp_path, 1, *has(SMALL), *QUICK_LOADS, more=more) as running:
        bodies = [(CHAT, with_context(CHAT, SMALL, 4, num_ctx)) for num_ctx in (1024, 2048)]
        bodies += [(OPENAI, OPENAI.body(SMALL, "hi", 4)), (GENERATE, GENERATE.body(SMALL, "hi", 4))]
        answers = await asyncio.gather(*(asked_in_turn(running.gateway.port, [each] * 5) for each in bodies))
        assert all(map(all_complete, answers))
        assert await loads(running) == await loads_asked_for(running) <= (2 if more else 6)


async def test_after_a_few_requests_it_is_told_in_seconds_why(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, *has(SMALL), *QUICK_LOADS) as running:
        asked = [(CHAT, CHAT.body(SMALL, "hi there", 20))] * 8
        answers = await asked_in_turn(running.gateway.port, asked, clients=2)
        while not re.search(r"; \d+\.\d\d s: .*decode \d", answers[-1].header("x-corral-reason")):
            assert len(answers) < 80  # where others have the cores the first answers may teach nothing
            answers += await asked_in_turn(running.gateway.port, asked, clients=2)
        shown = (await corral("explain", "-n", "1", "--admin", f"127.0.0.1:{running.gateway.admin_port}")).out
        assert "PREFILL" in shown
        assert answers[-1].header("x-corral-replica") in shown


async def test_without_placement_every_replica_loads_what_it_is_sent(tmp_path: Path) -> None:
    more = "placement: {enabled: false}\n"
    async with fleet(tmp_path, 2, *has(SMALL), *QUICK_LOADS, slots=1, more=more) as running:
        answers = await asyncio.gather(*(once(running.gateway.port, CHAT, SMALL, tokens=4) for _ in range(2)))
        assert all_complete(answers)
        assert {answer.header("x-corral-replica") for answer in answers} == {"r0", "r1"}
        assert (await loads(running), await loads_asked_for(running)) == (2, 0)


async def test_letting_go_of_a_model_loads_none(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, *has(SMALL, LARGE), *QUICK_LOADS) as running:
        port = running.gateway.port
        status, page = await ask(port, "POST", "/api/generate", {"model": SMALL, "keep_alive": 0})
        assert (status, page["done_reason"]) == (200, "unload")
        assert await loads(running) == 0
        assert (await once(port, CHAT, SMALL)).verdict is Verdict.COMPLETE
        for path in ("/api/chat", "/api/generate"):
            status, page = await ask(port, "POST", path, {"model": SMALL, "keep_alive": "0s"})
            assert (status, page["done_reason"]) == (200, "unload")
        assert await loads(running) == 1
        assert (await once(port, CHAT, SMALL)).verdict is Verdict.COMPLETE
        assert (await loads(running), await loads_asked_for(running)) == (2, 2)


async def test_letting_go_of_a_model_goes_to_all_that_hold_it(tmp_path: Path) -> None:
    async with fleet(tmp_path, 3, *has(SMALL, LARGE), *QUICK_LOADS) as running:
        for name, model in (("r0", SMALL), ("r1", SMALL), ("r2", LARGE)):
            await once(running[name].port, CHAT, model, tokens=1)
        await running.gateway.until(lambda page: all(each["loaded"] for each in page["replicas"]), 5, "loaded models")
        status, _ = await ask(running.gateway.port, "POST", "/api/generate", {"model": SMALL, "keep_alive": 0})
        assert status == 200
        assert [each["loaded"] for each in (await running.gateway.snapshot())["replicas"]] == [[], [], [LARGE]]
        while [(await each.stats())["unloads"] for each in running.emulators] != [1, 1, 0]:
            await asyncio.sleep(0.01)
