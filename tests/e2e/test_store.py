"""One store and several Ollamas that share it, all of them real processes: what dies, hangs or leaves in the middle of
downloads costs nobody a truthful end, and the store nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.fleets import Fleet, fleet
from tests.e2e.processes import ask

pytestmark = pytest.mark.e2e

HAVE = "llama3.2:1b"
WANTED = "wanted:latest"
OTHERS = [f"other{number}:latest" for number in range(20)]
SUCCESS = {"status": "success"}
PULL_S = 2.0
LATE_S = 60.0


@asynccontextmanager
async def shared(folder: Path, count: int, pull_s: float = PULL_S) -> AsyncIterator[Fleet]:
    """Emulators with one store, and models that can be pulled into it."""
    options = ("--model", HAVE, "--store", str(folder / "store"), "--pull-seconds", str(pull_s), "--noprune")
    async with fleet(folder, count, *options, more="probes: {ollama_interval_s: 0.3}\n") as running:
        for name in (WANTED, *OTHERS):
            publication = {"model": name, "version": 1, "size_gb": 0.5}
            assert (await ask(running.ports[0], "POST", "/emulator/publish", publication))[0] == 200
        yield running


class Puller:
    """One client that pulls."""

    def __init__(self, port: int, model: str, *, stream: bool = True) -> None:
        self._port = port
        self._body = json.dumps({"model": model, "stream": stream}).encode()
        self.is_begun = asyncio.Event()
        self.lines: list[Any] = []

    async def pull(self) -> Any:
        """The last line, or the only object."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            head = f"POST /api/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(self._body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + self._body)
            while line := await reader.readline():
                if line.startswith(b"{"):
                    self.lines.append(json.loads(line))
                    self.is_begun.set()
        finally:
            writer.close()
        return self.lines[-1]


async def read(port: int, path: str) -> Any:
    """A page that may be long."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return await answer.json()


async def ends(tasks: Sequence[asyncio.Task[Any]]) -> list[Any]:
    async with asyncio.timeout(LATE_S):
        return list(await asyncio.gather(*tasks))


async def assert_whole(running: Fleet, port: int, *models: str) -> None:
    """No two Ollamas were at one download, what is there is what it is called, and clients see all of it."""
    assert (await read(port, "/emulator/stats"))["races"] == 0
    report = await read(port, "/emulator/verify")
    assert report["problems"] == []
    assert report["partials"] == []
    listed = (await read(running.gateway.port, "/api/tags"))["models"]
    assert {each["name"] for each in listed} == {HAVE, *models}
    assert (await running.gateway.requests()) == (0, 0)


async def test_seventy_clients_pull_while_the_leader_is_killed_and_one_of_them_leaves(tmp_path: Path) -> None:
    async with shared(tmp_path, 4) as running:
        port = running.gateway.port
        alike = [Puller(port, WANTED, stream=number % 5 != 0) for number in range(50)]
        apart = [Puller(port, name) for name in OTHERS]
        tasks = [asyncio.create_task(each.pull()) for each in (*alike, *apart)]
        async with asyncio.timeout(LATE_S):
            for each in (alike[1], *apart):
                await each.is_begun.wait()
            while len((await read(running.ports[0], "/emulator/stats"))["downloads"]) <= len(OTHERS):
                await asyncio.sleep(0.02)
        leaving = tasks.pop(1)
        leaving.cancel()
        assert not any(task.done() for task in tasks)
        running["r0"].kill()
        assert await ends(tasks) == [SUCCESS] * 69
        survivors = [each for each in running.emulators if each.name != "r0"]
        downloads: Counter[str] = Counter()
        for survivor in survivors:
            downloads.update((await read(survivor.port, "/emulator/stats"))["downloads"])
        assert set(downloads.values()) == {1}
        assert len(downloads) > len(OTHERS)
        await assert_whole(running, survivors[0].port, WANTED, *OTHERS)


async def test_a_frozen_leader_is_named_and_nothing_is_done_beside_it_until_it_goes_on(tmp_path: Path) -> None:
    async with shared(tmp_path, 2) as running:
        port = running.gateway.port
        pullers = [Puller(port, name) for name in (WANTED, WANTED, OTHERS[0])]
        tasks = [asyncio.create_task(each.pull()) for each in pullers]
        async with asyncio.timeout(LATE_S):
            for each in pullers:
                await each.is_begun.wait()
        running["r0"].freeze()
        for end in await ends(tasks):
            assert "replica r0 stopped answering in the middle of the pull" in end["error"]
        status, answer = await ask(port, "POST", "/api/pull", {"model": WANTED, "stream": False})
        assert (status, "replica r0 stopped answering" in answer["error"]) == (503, True)
        assert sum((await running["r1"].stats())["downloads"].values()) == 0
        running["r0"].thaw()
        until_s = time.monotonic() + LATE_S
        while (await ask(port, "POST", "/api/pull", {"model": OTHERS[1], "stream": False}, LATE_S))[0] != 200:
            assert time.monotonic() < until_s
            await asyncio.sleep(0.1)
        again = [asyncio.create_task(Puller(port, name).pull()) for name in (WANTED, OTHERS[0])]
        assert await ends(again) == [SUCCESS] * 2
        await assert_whole(running, running.ports[1], WANTED, OTHERS[0], OTHERS[1])


async def test_a_gateway_that_was_killed_leaves_nothing_behind_for_long(tmp_path: Path) -> None:
    async with shared(tmp_path, 2) as running:
        assert (await ask(running.ports[0], "POST", "/emulator/publish", {"model": HAVE, "version": 2}))[0] == 200
        puller = Puller(running.gateway.port, HAVE)
        pulling = asyncio.create_task(puller.pull())
        await asyncio.wait_for(puller.is_begun.wait(), LATE_S)
        running.gateway.process.kill()
        await asyncio.gather(pulling, return_exceptions=True)
        names = {each["name"] for each in (await ask(running.ports[0], "GET", "/api/tags"))[1]["models"]}
        assert len(names) == 2  # the version that was to be replaced has another name, too
        running.gateway.end()
        running.gateway.log.write_text("")
        running.gateway.process = running.gateway._start()
        await running.gateway.ready()
        listed = (await ask(running.gateway.port, "GET", "/api/tags"))[1]["models"]
        assert [each["name"] for each in listed] in ([], [HAVE])
        until_s = time.monotonic() + LATE_S
        while len((await ask(running.ports[0], "GET", "/api/tags"))[1]["models"]) != 1:
            assert time.monotonic() < until_s
            await asyncio.sleep(0.05)
