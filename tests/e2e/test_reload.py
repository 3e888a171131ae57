"""A reload, by signal or by request: the new configuration applies, a bad one changes nothing, no request notices."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.fleets import Fleet, fleet
from tests.e2e.processes import Emulator, ask, emulators, gateway, until, write_config
from tests.e2e.shapes import CHAT, GENERATE, STREAMS, Verdict
from tests.e2e.streaming import MODEL, SLOW, WHOLE_AND_SAID, load_everywhere, streams
from tests.e2e.traffic import Client, once

RELOADS = 20


async def reload(
    running: Fleet, replicas: Sequence[Emulator], slots: int = 8, more: str = "", *, asks: bool = False
) -> None:
    """Write a configuration, signal or ask, and wait until it is in force."""
    front = running.gateway
    before = front.said().count("reloaded changes=")
    write_config(front.config, replicas, slots, more)
    if asks:
        status, page = await ask(front.admin_port, "POST", "/reload")
        assert (status, page["used"]) == (200, True), page
        return
    front.signal(signal.SIGHUP)
    await until(lambda: front.said().count("reloaded changes=") > before, 10, "the reload")


async def replicas_met(running: Fleet, requests: int) -> set[str]:
    answers = await asyncio.gather(*(once(running.gateway.port, CHAT, MODEL, tokens=3) for _ in range(requests)))
    assert {answer.verdict for answer in answers} == {Verdict.COMPLETE}
    return {answer.header("x-corral-replica") for answer in answers}


async def test_a_new_replica_takes_traffic_and_a_removed_one_finishes_what_it_does(tmp_path: Path) -> None:
    async with (
        emulators(tmp_path, 3, *SLOW) as (r0, r1, r2),
        gateway(write_config(tmp_path / "corral.yaml", [r0, r1], 8)) as front,
    ):
        running = Fleet(front, [r0, r1])
        await load_everywhere(running)
        begun = await streams(front.port, 80)
        assert {each.replica for each in begun} == {"r0", "r1"}
        await reload(running, [r1, r2], slots=4)
        assert [each["id"] for each in (await front.snapshot())["replicas"]] == ["r1", "r2"]
        assert await replicas_met(running, 6) == {"r1", "r2"}
        assert (await front.requests())[0] == 4  # those of the removed replica count too
        assert [await each.end() for each in begun] == [WHOLE_AND_SAID] * 4
        await front.until_idle()


async def test_slots_weight_and_policy_apply_at_once_also_to_who_waits(tmp_path: Path) -> None:
    async with fleet(tmp_path, 1, *SLOW, slots=1) as running:
        front = running.gateway
        asked = [asyncio.create_task(once(front.port, CHAT, MODEL, tokens=60)) for _ in range(4)]
        await front.until(lambda page: page["requests"]["queued"] == 3, 5, "a queue")
        more = "policy: {name: round-robin}\n"
        write_config(front.config, running.emulators, "4, weight: 2.5", more)
        front.signal(signal.SIGHUP)
        await front.until(lambda page: page["requests"]["queued"] == 0, 5, "the end of the queue")
        page = await front.snapshot()
        assert page["policy"] == "round-robin"
        assert (page["replicas"][0]["weight"], page["replicas"][0]["slots"]) == (2.5, 4)
        assert page["requests"]["in_flight"] == 4
        assert {answer.verdict for answer in await asyncio.gather(*asked)} == {Verdict.COMPLETE}


async def test_a_bad_file_keeps_the_old_configuration_and_says_where_it_is_wrong(tmp_path: Path) -> None:
    async with fleet(tmp_path, 1, *SLOW) as running:
        front = running.gateway
        begun = await streams(front.port, 40)
        before = await front.snapshot()
        write_config(front.config, running.emulators, 4, "queue: {max_request: 3}\n")
        front.signal(signal.SIGHUP)
        line = await front.says("reload_refused")
        assert f"{front.config}:5:9" in line
        assert "queue" in line
        assert "did you mean 'max_requests'" in line
        after = await front.snapshot()
        assert (after["policy"], after["replicas"][0]["slots"]) == (before["policy"], before["replicas"][0]["slots"])
        assert await replicas_met(running, 1) == {"r0"}
        assert [await each.end() for each in begun] == [WHOLE_AND_SAID] * 4


async def test_twenty_reloads_refuse_reset_and_cut_nothing(tmp_path: Path) -> None:
    """Under fifty new connections a second and five long streams; replicas, slots and policy change each time."""
    async with (
        emulators(tmp_path, 3, *SLOW) as replicas,
        gateway(write_config(tmp_path / "corral.yaml", replicas, 8)) as front,
    ):
        running = Fleet(front, replicas)
        await load_everywhere(running)
        begun = await streams(front.port, 320, (*STREAMS, GENERATE))
        outcomes: Counter[str] = Counter()
        stop = asyncio.Event()

        async def one() -> None:
            client = Client(front.port)
            try:
                answer = await client.ask(CHAT, MODEL, tokens=2)
                outcomes[answer.verdict.name] += 1
            except OSError as error:
                outcomes[type(error).__name__] += 1
            finally:
                client.close()

        async def arrive() -> None:
            async with asyncio.TaskGroup() as group:
                while not stop.is_set():
                    group.create_task(one())
                    await asyncio.sleep(0.02)

        arriving = asyncio.create_task(arrive())
        for number in range(RELOADS):
            kept = [each for index, each in enumerate(replicas) if index != number % 4]
            policy = ("round-robin", "weighted-least-load", "random")[number % 3]
            await reload(running, kept, 6 + number % 3, f"policy: {{name: {policy}}}\n", asks=number % 2 == 1)
            answered = outcomes.total()
            await until(lambda answered=answered: outcomes.total() >= answered + 12, 10, "answers")  # type: ignore[misc]
        stop.set()
        await arriving
        assert [await each.end() for each in begun] == [WHOLE_AND_SAID] * 5
        print(f"\n{RELOADS} reloads: {dict(outcomes)}")  # noqa: T201
        assert set(outcomes) == {"COMPLETE"}
        await front.until_idle()
        assert "Traceback" not in front.said()
