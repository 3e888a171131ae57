"""``corral models load`` and ``unload``: what they ask of the gateway, and what they say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from corral.gateway.cli.client_side import met_at
from corral.gateway.serve.admin import make_runner
from tests.gateway.cli.shell import Ended, corral


class Gateway:
    """Both addresses of one; what clients ask is kept."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.listen = ""
        self.admin = ""

    async def config(self, request: web.Request) -> web.Response:
        return web.json_response({"schema": 1, "keys": [{"key": "listen", "value": self.listen}]})

    async def client(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append((request.path, body))
        if body["model"] == "gone":
            return web.json_response({"error": "model 'gone' not found"}, status=404)
        if body["model"] == "embeds" and request.path == "/api/generate" and "keep_alive" not in body:
            return web.json_response({"error": '"embeds" does not support generate'}, status=400)
        return web.json_response({"done": True}, headers={"X-Corral-Replica": "gpu1"})


@pytest_asyncio.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    admin, client = web.Application(), web.Application()
    admin.add_routes([web.get("/config", made.config)])
    client.add_routes([web.post("/api/{rest}", made.client)])
    runners = [make_runner(admin), make_runner(client)]
    for runner in runners:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.admin, made.listen = (f"127.0.0.1:{runner.addresses[0][1]}" for runner in runners)
    yield made
    for runner in runners:
        await runner.cleanup()


async def models(gateway: Gateway, *args: str) -> Ended:
    return await corral("models", *args, "--admin", gateway.admin)


async def test_load_says_where_the_model_is(gateway: Gateway) -> None:
    ended = await models(gateway, "load", "m:1")
    assert (ended.code, ended.out, ended.err) == (0, "m:1 is in memory at gpu1\n", "")
    assert gateway.asked == [("/api/generate", {"model": "m:1", "stream": False})]
    assert json.loads((await models(gateway, "load", "m:1", "--json")).out) == {
        **{"schema": 1, "loaded": "m:1"},
        "replica": "gpu1",
    }


async def test_a_model_that_only_embeds_is_loaded_as_such(gateway: Gateway) -> None:
    assert (await models(gateway, "load", "embeds")).code == 0
    assert gateway.asked[-1] == ("/api/embed", {"model": "embeds", "input": []})


async def test_unload_asks_for_the_model_to_leave_every_memory(gateway: Gateway) -> None:
    ended = await models(gateway, "unload", "m:1")
    assert (ended.code, ended.out) == (0, "m:1 leaves memory; `corral models place` shows it\n")
    assert gateway.asked == [("/api/generate", {"model": "m:1", "keep_alive": 0, "stream": False})]
    assert json.loads((await models(gateway, "unload", "m:1", "--json")).out) == {"schema": 1, "unloaded": "m:1"}


async def test_what_the_gateway_refuses_is_said_in_its_words(gateway: Gateway) -> None:
    for verb in ("load", "unload"):
        ended = await models(gateway, verb, "gone")
        assert (ended.code, ended.out, ended.err) == (1, "", "error: gone: model 'gone' not found\n")


async def test_where_clients_connect_must_be_known(gateway: Gateway) -> None:
    gateway.listen = "127.0.0.1:0"
    ended = await models(gateway, "unload", "m:1")
    assert (ended.code, ended.err.strip()) == (
        1,
        f"error: the gateway on {gateway.admin} does not say where clients connect",
    )


@pytest.mark.parametrize(
    ("listen", "admin_host", "url"),
    [
        ("127.0.0.1:11434", "127.0.0.1", "http://127.0.0.1:11434"),
        ("0.0.0.0:11434", "localhost", "http://127.0.0.1:11434"),
        ("[::]:11434", "::1", "http://[::1]:11434"),
        ("0.0.0.0:11434", "gpu-box", "http://gpu-box:11434"),
        ("[::]:11434", "fd00::2", "http://[fd00::2]:11434"),
        ("10.0.0.2:11434", "gpu-box", "http://10.0.0.2:11434"),
        ("127.0.0.1:11434", "gpu-box", None),
        ("127.0.0.1:0", "127.0.0.1", None),
        ("", "127.0.0.1", None),
    ],
)
def test_a_gateway_is_met_where_its_admin_port_was(listen: str, admin_host: str, url: str | None) -> None:
    assert met_at(listen, admin_host) == url
