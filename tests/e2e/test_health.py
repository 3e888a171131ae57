"""Health as promised in seconds: dead, frozen, odd, slow and failing replicas, with real processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.fleets import fleet
from tests.e2e.processes import ask, until
from tests.e2e.shapes import CHAT, STREAMS, WHOLE, Shape, Verdict
from tests.e2e.streaming import load_everywhere
from tests.e2e.traffic import Answer, Client, once

MODEL = "llama3.2:1b"
FAST = ("--model", MODEL, "--speed", "50", "--parallel", "4")
DEAD_WHEN_MET_S = 1.0
DEAD_WHEN_IDLE_S = 3.0
FROZEN_S = 6.0
BACK_S = 5.0


class Load:
    """Clients that ask one request after the other until told to stop."""

    def __init__(self, port: int, shape: Shape = CHAT, tokens: int = 8) -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._shape = shape
        self._tokens = tokens
        self._stop = False

    async def work(self) -> None:
        client = Client(self._port)
        while not self._stop:
            self.answers.append(await self.ask(client))
        client.close()

    async def ask(self, client: Client) -> Answer:
        return await client.ask(self._shape, MODEL, tokens=self._tokens)

    async def answered(self, more: int, within_s: float = 10.0) -> list[Answer]:
        """So many further answers."""
        before = len(self.answers)
        await until(lambda: len(self.answers) >= before + more, within_s, f"{more} answers")
        return self.answers[before:]

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[Load]:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self.work())
            try:
                yield self
            finally:
                self._stop = True


def replicas_of(answers: list[Answer]) -> set[str]:
    return {answer.header("x-corral-replica") for answer in answers}


async def test_a_dead_replica_that_requests_meet_is_out_within_a_second_and_back_within_five(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, *FAST) as running, Load(running.gateway.port).running(8) as load:
        assert replicas_of(await load.answered(40)) == {"r0", "r1"}
        running["r0"].kill()
        out_s = await running.gateway.until_health("r0", "down", within_s=DEAD_WHEN_MET_S)
        await running["r0"].restart()
        back_s = await running.gateway.until_health("r0", "up", within_s=BACK_S)
        while "r0" not in replicas_of(await load.answered(10)):
            pass
        print(f"\nout after {out_s:.2f} s, back after {back_s:.2f} s, {len(load.answers)} answers")  # noqa: T201
    assert {answer.verdict for answer in load.answers} <= {Verdict.COMPLETE, Verdict.ERROR}


async def test_a_dead_replica_that_nobody_meets_is_out_within_three_seconds(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, *FAST) as running:
        for name in ("r0", "r1"):
            running[name].kill()
            out_s = await running.gateway.until_health(name, "down", within_s=DEAD_WHEN_IDLE_S)
            print(f"\n{name} out after {out_s:.2f} s")  # noqa: T201
            status, page = await ask(running.gateway.admin_port, "GET", "/readyz")
            assert (status, page["ready"]) == ((200, True) if name == "r0" else (503, False))
        assert (await once(running.gateway.port, CHAT, MODEL)).status == 503


async def test_a_frozen_replicas_requests_are_answered_by_others_and_it_comes_back(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, *FAST) as running:
        gateway, frozen = running.gateway, running["r0"]
        await load_everywhere(running)
        frozen.freeze()
        clients = [Client(gateway.port) for _ in range(8)]
        asked = [asyncio.create_task(client.ask(CHAT, MODEL)) for client in clients]
        await gateway.until(lambda page: page["replicas"][0]["in_flight"] > 0, 2, "requests on the frozen one")
        out_s = await gateway.until_health("r0", "down", within_s=FROZEN_S)
        answers = await asyncio.gather(*asked)
        assert [answer.verdict for answer in answers] == [Verdict.COMPLETE] * 8
        assert replicas_of(answers) == {"r1"}
        frozen.thaw()
        back_s = await gateway.until_health("r0", "up", within_s=BACK_S)
        print(f"\nout after {out_s:.2f} s, back after {back_s:.2f} s")  # noqa: T201
        again = await asyncio.gather(*(client.ask(CHAT, MODEL) for client in clients))
        assert replicas_of(list(again)) == {"r0", "r1"}
        for client in clients:
            client.close()


@pytest.mark.parametrize("count", [1, 4])
async def test_streams_of_a_replica_that_freezes_end_in_their_dialects_error(tmp_path: Path, count: int) -> None:
    options = ("--model", MODEL, "--rate", "20", "--parallel", "4")
    async with fleet(tmp_path, 1, *options, more="timeouts: {stall_s: 1}\n") as running:
        clients = [Client(running.gateway.port) for _ in range(count)]
        heads = []
        for client, shape in zip(clients, STREAMS, strict=False):
            await client.send(shape.path, shape.body(MODEL, "hi", 1000))
            heads.append(await client.head())
        running["r0"].freeze()
        took_s = await running.gateway.until_health("r0", "down", within_s=FROZEN_S)
        for client, shape, (status, headers) in zip(clients, STREAMS, heads, strict=False):
            body, ended = await asyncio.wait_for(client.rest(headers), 5)
            assert (status, ended, shape.read(body)[1]) == (200, True, Verdict.ERROR)
            client.close()
        await running.gateway.until_idle()
        print(f"\n{count} streams: down after {took_s:.2f} s")  # noqa: T201


async def test_a_replica_whose_ps_is_nonsense_or_stalls_keeps_serving(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, *FAST) as running:
        gateway = running.gateway
        await running["r0"].fault("nonsense-ps", count=None)
        await running["r1"].fault("slow-ps", count=None, seconds=30)
        await gateway.says("probe_failed replica=r0 part=ps")
        await gateway.says("probe_failed replica=r1 part=ps")  # five seconds: what a page may take
        assert await gateway.health() == {"r0": "up", "r1": "up"}
        async with Load(gateway.port).running(8) as load:
            answers = await load.answered(40)
        assert replicas_of(answers) == {"r0", "r1"}
        assert {answer.verdict for answer in load.answers} == {Verdict.COMPLETE}
        assert "replica_health replica=r0 before=up" not in gateway.said()
        assert "replica_health replica=r1 before=up" not in gateway.said()


async def test_a_replica_that_loads_a_model_for_seconds_is_not_taken_for_dead(tmp_path: Path) -> None:
    async with fleet(tmp_path, 1, "--model", MODEL, "--load-seconds", "5", "--stall-ps") as running:
        answer = await once(running.gateway.port, WHOLE, MODEL, tokens=2)
        assert answer.verdict is Verdict.COMPLETE
        assert answer.first_byte_s > DEAD_WHEN_IDLE_S
        assert running.gateway.said().count("replica_health") == 1  # unknown to up, at the start


@pytest.mark.parametrize("kind", ["busy", "crash-runner", "reset"])
async def test_a_replica_that_fails_fast_does_not_attract_traffic(tmp_path: Path, kind: str) -> None:
    async with fleet(tmp_path, 3, *FAST) as running:
        failing = running["r0"]
        await load_everywhere(running)
        await failing.fault(kind, count=None, after=0)
        async with Load(running.gateway.port).running(6) as load:
            await running.gateway.until_health("r0", "ejected", within_s=5)
            met_before = (await failing.faults())[0]["hits"]
            answers = await load.answered(200, within_s=20)
            met = (await failing.faults())[0]["hits"] - met_before
        print(f"\n{met_before} requests met it, then {met} of {len(answers)}")  # noqa: T201
        assert met <= len(answers) / 10
        assert {answer.verdict for answer in load.answers} == {Verdict.COMPLETE}
        assert "r0" not in replicas_of(answers)


async def test_the_only_replica_is_tried_however_often_it_fails(tmp_path: Path) -> None:
    async with fleet(tmp_path, 1, *FAST) as running:
        await load_everywhere(running)
        await running["r0"].fault("busy", count=20)
        client = Client(running.gateway.port)
        statuses = [(await client.ask(CHAT, MODEL)).status for _ in range(21)]
        assert statuses == [503] * 20 + [200]
        client.close()


async def test_a_kill_under_load_loses_no_request_without_a_byte(tmp_path: Path) -> None:
    """What waited for the dead replica is answered by the others."""
    options = ("--model", MODEL, "--load-seconds", "2", "--parallel", "4")
    async with fleet(tmp_path, 3, *options) as running:
        clients = [Client(running.gateway.port) for _ in range(20)]
        asked = [asyncio.create_task(client.ask(CHAT, MODEL, tokens=4)) for client in clients]
        for each in running.emulators:
            while not (await each.stats())["loads"]:
                await asyncio.sleep(0.01)
        running["r0"].kill()  # like the others it still loads: no request has had a byte
        answers = await asyncio.gather(*asked)
        assert [answer.verdict for answer in answers] == [Verdict.COMPLETE] * 20
        assert replicas_of(answers) <= {"r1", "r2"}
        for client in clients:
            client.close()
