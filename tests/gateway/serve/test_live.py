"""What happens, as a stream, and what happened lately."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from msgspec.structs import replace

from corral.gateway.ended import Ended
from corral.gateway.serve.admin import make_runner
from corral.gateway.serve.lately import Journal, Ring
from corral.gateway.serve.live import MAX_READERS, LiveRoutes

log = logging.getLogger("tests.journal")


class Live:
    """The routes over real sockets."""

    def __init__(self) -> None:
        self.requests: Ring[Ended] = Ring()
        self.journal = Journal()
        self.pages = 0
        self.routes = LiveRoutes(self.page, self.requests, self.journal, asyncio.get_running_loop().time)
        self.session = aiohttp.ClientSession()
        app = web.Application()
        app.add_routes(self.routes.routes())
        self.runner = make_runner(app)

    def page(self) -> dict[str, Any]:
        self.pages += 1
        return {"page": self.pages}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as answer:
            return answer.status, await answer.json() if answer.ok else answer.reason


@pytest_asyncio.fixture
async def live() -> AsyncIterator[Live]:
    made = Live()
    log.addHandler(made.journal)
    log.setLevel(logging.INFO)
    await made.runner.setup()
    await web.TCPSite(made.runner, "127.0.0.1", 0).start()
    yield made
    log.removeHandler(made.journal)
    made.routes.close()
    await made.session.close()
    await made.runner.cleanup()


def ended(id: str) -> Ended:
    return Ended(id=id, at=1.0, kind="chat", method="POST", path="/api/chat", outcome="ok", status=200, total_s=2.0)


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    kind = ""
    async for raw in answer.content:
        name, _, value = raw.decode().strip().partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


async def test_the_stream_begins_with_the_last_and_goes_on_with_what_comes(live: Live) -> None:
    for n in range(3):
        live.requests.add(ended(f"r-{n}"))
    log.warning("replica_health replica=%s", "a")
    async with asyncio.timeout(5), live.session.get(live.url + "/live?n=2") as answer:
        assert answer.content_type == "text/event-stream"
        stream = events(answer)
        assert (await anext(stream))[0] == "snapshot"
        assert [(await anext(stream))[1]["id"] for _ in range(2)] == ["r-1", "r-2"]
        kind, line = await anext(stream)
        assert (kind, line["level"], line["text"]) == ("log", "warning", "replica_health replica=a")
        live.requests.add(ended("r-3"))
        later = [await anext(stream), await anext(stream)]
        assert [kind for kind, _ in later] == ["snapshot", "request"]
        assert later[1][1]["number"] == 4


async def test_readers_of_one_moment_share_one_snapshot(live: Live) -> None:
    async with asyncio.timeout(5):
        answers = [await live.session.get(live.url + "/live") for _ in range(8)]
        pages = [(await anext(events(answer)))[1]["page"] for answer in answers]
        for answer in answers:
            answer.close()
    assert len(set(pages)) < 8


async def test_the_stream_ends_with_the_gateway(live: Live) -> None:
    async with asyncio.timeout(5), live.session.get(live.url + "/live") as answer:
        live.routes.close()
        assert b"snapshot" in await answer.content.read()


async def test_one_reader_too_many_is_told_so_and_a_place_becomes_free_again(live: Live) -> None:
    async with asyncio.timeout(20):
        answers = [await live.session.get(live.url + "/live") for _ in range(MAX_READERS)]
        assert (await live.get("/live"))[0] == 503
        answers[0].close()
        while (answer := await live.session.get(live.url + "/live")).status != 200:
            answer.close()
            await asyncio.sleep(0.05)
        for one in (*answers, answer):
            one.close()


async def test_the_last_requests_and_lines(live: Live) -> None:
    for n in range(700):
        live.requests.add(ended(f"r-{n}"))
    log.info("reloaded changes=%d", 2)
    status, page = await live.get("/requests?n=2")
    assert status == 200
    assert [(one["number"], one["id"]) for one in page["requests"]] == [(699, "r-698"), (700, "r-699")]
    assert len((await live.get("/requests?n=500"))[1]["requests"]) == 500
    assert (await live.get("/log"))[1]["lines"][0]["text"] == "reloaded changes=2"


async def test_half_a_character_in_a_clients_words_does_not_end_the_stream(live: Live) -> None:
    live.requests.add(replace(ended("a"), model="m\ud800:latest"))
    live.requests.add(ended("b"))
    async with asyncio.timeout(5), live.session.get(live.url + "/live") as answer:
        stream = events(answer)
        assert (await anext(stream))[0] == "snapshot"
        assert [(await anext(stream))[1]["model"] for _ in range(2)] == ["m\ud800:latest", None]


def test_a_line_that_cannot_be_made_harms_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal()
    journal.handle(logging.LogRecord("corral", logging.INFO, __file__, 1, "requests=%d", ("many",), None))
    assert journal.lines.last == 0
    assert "requests=%d" in capsys.readouterr().err


async def test_a_reader_that_wants_it_less_often_gets_it_less_often(live: Live) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10), live.session.get(live.url + "/live?every=1.5") as answer:
        stream = events(answer)
        await anext(stream)
        began_s = loop.time()
        live.requests.add(ended("r-0"))
        assert [(await anext(stream))[0], (await anext(stream))[1]["id"]] == ["snapshot", "r-0"]
        assert loop.time() - began_s > 1.2


@pytest.mark.parametrize("every", ["0.1", "61", "nan", "x", "-1", "inf"])
async def test_a_wrong_pace_is_refused(live: Live, every: str) -> None:
    status, reason = await live.get(f"/live?every={every}")
    assert status == 400
    assert "seconds, from 0.5 to 60" in reason


@pytest.mark.parametrize("n", ["-1", "501", "x", "", "1" * 5000])
async def test_a_wrong_number_is_refused(live: Live, n: str) -> None:
    status, reason = await live.get(f"/requests?n={n}")
    assert status == 400
    assert "whole number from 0 to 500" in reason


async def test_a_reader_that_takes_nothing_is_let_go(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.gateway.serve.live.UNREAD_S", 0.2)
    monkeypatch.setattr(live.routes, "_page", lambda: {"page": "x" * (8 << 20)})
    _, writer = await asyncio.open_connection("127.0.0.1", live.runner.addresses[0][1], limit=1)
    writer.write(b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert live.runner.server is not None
    async with asyncio.timeout(10):
        while not live.runner.server.connections:
            await asyncio.sleep(0.01)
        while live.runner.server.connections:
            await asyncio.sleep(0.05)
    writer.close()
