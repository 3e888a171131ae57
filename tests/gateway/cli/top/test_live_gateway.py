"""``corral top`` and its neighbours with a real gateway, emulated replicas and emulated GPUs."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
import pytest_asyncio

from corral.gateway.cli.top.app import Top
from corral.gateway.cli.top.marks import DARK, Look
from tests.gateway.cli.shell import corral, running
from tests.gateway.cli.top.test_app import Watched

QUESTION = {
    "model": "llama3.1:8b",
    "messages": [{"role": "user", "content": "a secret"}],
    "options": {"num_predict": 20},
}


class Demo(NamedTuple):
    url: str
    admin: str


@pytest_asyncio.fixture
async def demo() -> AsyncIterator[Demo]:
    listens = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    async with running("demo", *listens, "--speed", "50") as child:
        url = (await child.until("  clients ")).split()[1]
        admin = (await child.until("  admin ")).split()[1]
        await child.until("Ctrl-C ends the demo")
        yield Demo(url, admin)
        child.process.send_signal(signal.SIGINT)
        assert await child.ended() == 0


async def ask(demo: Demo, id: str) -> None:
    headers = {"x-request-id": id}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{demo.url}/api/chat", json=QUESTION) as answer,
    ):
        assert answer.status == 200
        await answer.read()


async def test_what_a_real_gateway_does_is_seen_listed_and_explained(demo: Demo) -> None:
    app = Top(demo.admin, Look(palette=DARK))
    async with app.run_test(size=(160, 50)) as pilot:
        top = Watched(app, pilot)
        await top.until(lambda: "live" in top.lines[0] and any("rtx-4090" in line for line in top.part("replicas")))
        await ask(demo, "first-one")
        await top.until(lambda: "first-one" in top.part("requests")[1])
        assert top.part("requests")[1].endswith("ok")
        await top.press("down", "d", "y")
        await top.until(lambda: "up, drained" in top.part("replicas")[2])
        await top.until(lambda: any("replica_drained replica=rtx-4090" in line for line in top.part("log")))
        assert not any("secret" in line for line in top.lines)
    explained = json.loads((await corral("explain", "first-one", "--json", "--admin", demo.admin)).out)
    assert explained["request"]["outcome"] == "ok"
    assert _places(explained) == [explained["request"]["replica"]]
    listed = await corral("requests", "--admin", demo.admin)
    assert "first-one" in listed.out
    assert "replica_drained replica=rtx-4090" in (await corral("logs", "--admin", demo.admin)).out
    assert "not run by Corral" in (await corral("logs", "rtx-4090", "--admin", demo.admin)).err
    assert '"version": "0.' in (await corral("info", "--json", "--admin", demo.admin)).out


def _places(explained: dict[str, Any]) -> list[str]:
    return [decision["replica"] for decision in explained["decisions"]]
