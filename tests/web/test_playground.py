"""``POST /chat``: the web page's way to the client port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from corral.gateway.serve.admin import make_admin, make_runner
from corral.gateway.web.playground import Playground
from tests.gateway.serve import history
from tests.gateway.serve.test_admin import Gateway

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Place:
    """An admin port, and a client port that answers as :attr:`answer` does."""

    def __init__(self, admin: aiohttp.ClientSession, clients: web.TCPSite) -> None:
        self.admin = admin
        self.clients = clients
        self.answer: Answer
        self.asked: list[bytes] = []
        self.left = asyncio.Event()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.read())
        try:
            return await self.answer(request)
        except asyncio.CancelledError:
            self.left.set()
            raise


async def started(app: web.Application) -> tuple[web.AppRunner, web.TCPSite, str]:
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, site, f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest_asyncio.fixture
async def place() -> AsyncIterator[Place]:
    made: list[Place] = []
    app = web.Application()

    async def chat(request: web.Request) -> web.StreamResponse:
        return await made[0].chat(request)

    app.router.add_post("/api/chat", chat)
    clients, site, url = await started(app)
    async with aiohttp.ClientSession() as inner:
        admin = make_runner(make_admin(Gateway(), history.metrics(), more=Playground(inner, url).routes()))
        await admin.setup()
        await web.TCPSite(admin, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{admin.addresses[0][1]}") as session:
            made.append(Place(session, site))
            yield made[0]
        await admin.cleanup()
    await clients.cleanup()


async def test_the_answer_comes_piece_by_piece_with_what_corral_says_of_it(place: Place) -> None:
    go_on = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "application/x-ndjson", "x-corral-replica": "a", "Set-Cookie": "no=1"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(b'{"done":false}\n')
        await go_on.wait()
        await response.write(b'{"done":true}\n')
        return response

    place.answer = answer
    async with asyncio.timeout(5), place.admin.post("/chat", data=b'{"model":"m"}') as got:
        assert (got.status, got.content_type, got.headers["x-corral-replica"]) == (200, "application/x-ndjson", "a")
        assert "Set-Cookie" not in got.headers
        assert await got.content.readline() == b'{"done":false}\n', "before the rest is there"
        go_on.set()
        assert await got.content.read() == b'{"done":true}\n'
    assert place.asked == [b'{"model":"m"}']


async def test_an_error_is_the_client_ports_own(place: Place) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "model 'm' not found"}, status=404)

    place.answer = answer
    async with place.admin.post("/chat", data=b"{}") as got:
        assert (got.status, await got.json()) == (404, {"error": "model 'm' not found"})


async def asked(admin: aiohttp.ClientSession) -> aiohttp.ClientResponse:
    return await admin.post("/chat", data=b"{}")


@pytest.mark.parametrize("has_begun", [False, True])
async def test_who_leaves_ends_the_question(place: Place, has_begun: bool, caplog: pytest.LogCaptureFixture) -> None:
    waiting = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if has_begun:
            await web.StreamResponse().prepare(request)
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    place.answer = answer
    async with asyncio.timeout(5):
        asking = asyncio.create_task(asked(place.admin))
        await waiting.wait()
        if has_begun:
            (await asking).close()
        else:
            asking.cancel()
        await place.left.wait()
    assert caplog.records == []


async def test_an_answer_that_breaks_does_not_look_whole(place: Place) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    place.answer = answer
    async with asyncio.timeout(5), place.admin.post("/chat", data=b"{}") as got:
        with pytest.raises(aiohttp.ClientError):
            await got.read()


async def test_a_client_port_that_is_gone_is_said(place: Place) -> None:
    await place.clients.stop()
    async with place.admin.post("/chat", data=b"{}") as got:
        assert got.status == 502
        assert "the client port does not answer" in (await got.json())["error"]


async def test_no_other_page_may_ask(place: Place) -> None:
    async with place.admin.post("/chat", data=b"{}", headers={"Origin": "http://evil.example"}) as got:
        assert got.status == 403
    async with place.admin.post("/chat", data=b"x" * (65 << 10)) as got:
        assert got.status == 413
    assert place.asked == []
