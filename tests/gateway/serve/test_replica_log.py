"""The log of a replica's Ollama over the admin port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from corral.gateway.run.logs import rotate
from corral.gateway.serve.admin import make_admin, make_runner
from corral.gateway.serve.replica_log import MAX_READERS, ReplicaLogRoutes
from corral.model import Snapshot
from tests.gateway.serve import history
from tests.gateway.serve.test_admin import Gateway


class Box:
    """An admin port; Corral runs replicas ``a`` and ``c``, and the log of ``a`` is :attr:`log`."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "a.log"
        self.routes = ReplicaLogRoutes(self.snapshot)
        self.session = aiohttp.ClientSession()
        self.runner = make_runner(make_admin(Gateway(), history.metrics(), more=self.routes.routes()))

    def snapshot(self) -> Snapshot:
        found = history.snapshot()
        return replace(found, processes=(replace(found.processes[0], log=str(self.log)), *found.processes[1:]))

    def write(self, *lines: str) -> None:
        with self.log.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}{path}"

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.session.get(self.url(path), headers=headers) as answer:
            return answer.status, await answer.json()


@pytest_asyncio.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    made = Box(tmp_path)
    await made.runner.setup()
    await web.TCPSite(made.runner, "127.0.0.1", 0).start()
    yield made
    made.routes.close()
    await made.session.close()
    await made.runner.cleanup()


async def told(answer: aiohttp.ClientResponse) -> str:
    text: str = json.loads(await answer.content.readline())["text"]
    return text


async def test_the_last_lines_are_a_page(box: Box) -> None:
    box.write("one", "two", "three")
    assert await box.get("/replicas/a/log?n=2") == (200, {"schema": 1, "id": "a", "lines": ["two", "three"]})
    assert len((await box.get("/replicas/a/log"))[1]["lines"]) == 3


async def test_a_log_that_is_not_there_yet_has_no_lines(box: Box) -> None:
    assert (await box.get("/replicas/a/log"))[1]["lines"] == []


async def test_following_goes_on_through_a_rotation(box: Box) -> None:
    box.write("one", "two")
    async with asyncio.timeout(10), box.session.get(box.url("/replicas/a/log?n=1&follow=1")) as answer:
        assert answer.content_type == "application/x-ndjson"
        assert await told(answer) == "two"
        box.write("three")
        rotate(box.log, 0, 2)
        box.write("four")
        assert [await told(answer), await told(answer)] == ["three", "four"]


async def test_following_ends_with_the_gateway(box: Box) -> None:
    async with asyncio.timeout(10), box.session.get(box.url("/replicas/a/log?follow=1")) as answer:
        box.routes.close()
        assert await answer.content.read() == b""


async def test_a_place_becomes_free_when_a_reader_of_a_silent_log_leaves(box: Box) -> None:
    async with asyncio.timeout(20):
        path = box.url("/replicas/a/log?follow=1")
        readers = [await box.session.get(path) for _ in range(MAX_READERS)]
        assert (await box.session.get(path)).status == 503
        readers[0].close()
        while (answer := await box.session.get(path)).status != 200:
            answer.close()
            await asyncio.sleep(0.05)
        for reader in (*readers, answer):
            reader.close()


async def test_only_replicas_that_corral_runs_have_one(box: Box) -> None:
    status, page = await box.get("/replicas/b/log")
    assert (status, page) == (409, {"error": "b is not run by Corral: its log is where whoever runs it has it"})
    status, page = await box.get("/replicas/%0Az/log")
    assert (status, page) == (404, {"error": "no replica '\\nz'; known: a, b, c"})


@pytest.mark.parametrize("query", ["n=-1", "n=5001", "n=x", "n=", "n=%C2%B2", "follow=yes"])
async def test_a_wrong_number_or_word_is_refused(box: Box, query: str) -> None:
    status, page = await box.get(f"/replicas/a/log?{query}")
    assert status == 400
    assert "expected" in page["error"]


async def test_passwords_in_addresses_are_masked(box: Box) -> None:
    box.write('msg="server config" env="map[HTTPS_PROXY:http://me:hunter2@proxy:3128 OLLAMA_DEBUG:INFO]"')
    text = (await box.get("/replicas/a/log"))[1]["lines"][0]
    assert "hunter2" not in text
    assert "http://***@proxy:3128" in text


async def test_foreign_web_pages_are_kept_out(box: Box) -> None:
    box.write("secret")
    assert (await box.get("/replicas/a/log", Origin="http://evil.example"))[0] == 403
    assert (await box.get("/replicas/a/log", Host="evil.example"))[0] == 403
