"""The demo's made-up clients: they ask, in all the ways that move something, and none is left behind."""

from __future__ import annotations

import asyncio
import json
import signal
from random import Random

import aiohttp
import psutil
import pytest

from corral.gateway.cli.demo import MODELS
from corral.gateway.cli.demo_load import TENANTS, request
from corral.gateway.cli.entry import run
from tests.gateway.cli.shell import Running, running

DEMO = ("demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--speed", "50", "--load", "40")


def clients(demo: Running) -> list[psutil.Process]:
    """The process that asks."""
    children = psutil.Process(demo.process.pid).children()
    return [child for child in children if "corral.gateway.cli.demo_load" in child.cmdline()]


async def answered(demo: Running) -> str:
    """Wait until some of their requests are over; the admin address."""
    admin = (await demo.until("  admin ")).split()[1]
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{admin}/requests?n=500") as answer:
                done = json.loads(await answer.read())["requests"]
            if len(done) >= 20:
                assert {each["status"] for each in done} == {200}
                return admin
            await asyncio.sleep(0.05)


async def test_they_ask_until_the_demo_ends_and_end_with_it() -> None:
    async with running(*DEMO) as demo:
        await answered(demo)
        asking = clients(demo)
        assert len(asking) == 1
        for _ in range(2):  # the second one does not wait for what may be running
            demo.process.send_signal(signal.SIGINT)
        assert await demo.ended() == 0
        assert not [process for process in asking if process.is_running()]


async def test_a_killed_demo_leaves_none_behind() -> None:
    async with running(*DEMO) as demo:
        await demo.until("Ctrl-C ends the demo")
        asking = clients(demo)
        assert len(asking) == 1
        demo.process.kill()
        _, left = await asyncio.to_thread(psutil.wait_procs, asking, 10)
        assert left == []


def test_the_requests_are_of_many_kinds_and_the_same_for_one_seed() -> None:
    made = [request(MODELS, rng) for rng in [Random(7)] for _ in range(400)]
    assert made == [request(MODELS, rng) for rng in [Random(7)] for _ in range(400)]
    assert {body["model"] for _, body, _ in made} == set(MODELS)
    assert {tenant for _, _, tenant in made} == set(TENANTS)
    chats = [body for path, body, _ in made if path == "/api/chat"]
    lengths = [body["options"]["num_predict"] for body in chats]
    assert min(lengths) < 20 < 300 < max(lengths) <= 600
    embeds = [body for path, body, _ in made if path == "/api/embed"]
    assert {body["model"] for body in embeds} == {"all-minilm"}
    assert len(chats) > len(embeds) > 0


@pytest.mark.parametrize("rate", ["nan", "0", "fast"])
def test_a_rate_that_is_none_is_refused(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--load", rate]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "'--load'" in err
