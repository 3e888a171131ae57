"""``corral status``, ``drain`` and ``resume`` against a real admin port."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from corral.gateway.serve.admin import make_admin, make_runner
from tests.gateway.cli.shell import corral, running
from tests.gateway.serve import history
from tests.gateway.serve.test_admin import Gateway


@pytest_asyncio.fixture
async def admin() -> AsyncIterator[str]:
    runner = make_runner(make_admin(Gateway(), history.metrics()))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_status_is_a_table_of_replicas_and_a_line_about_the_queue(admin: str) -> None:
    ended = await corral("status", "--admin", admin)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        "Corral 1.2.3: ready\n"
        "policy weighted-least-load\n"
        "requests: 3 in flight, 2 waiting (the oldest for 1 s: llama3.1:8b 2)\n"
        "\n"
        "REPLICA  STATE          IN FLIGHT  SLOTS  WEIGHT  OLLAMA   LOADED       WHY\n"
        "a        up             1          4      2.5     0.32.15  llama3.1:8b  answers its probe\n"
        "b        down, drained  1          4      2.5     0.32.15  llama3.1:8b  connection refused\n"
        "c        backing off    1          ?      2.5     ?        ?            backing off: exit code 1\n"
        "\n"
        "GPU  STATE    REPLICA  BUSY  MEMORY    TEMP  POWER      NAME      WHY\n"
        "0    ok       a        75%   6/24 GiB  61°C  310/450 W  RTX 4090  power cap, software thermal slowdown\n"
        "1    lost     c        ?     ?         ?     ?          RTX 3060  fell off the bus\n"
        "2    unknown  -        ?     ?         ?     ?          T4        not read yet\n"
        "\n"
        "advice: big:70b runs partly on the CPU\n"
    )


async def test_restart_takes_one_replica_or_all(admin: str) -> None:
    ended = await corral("restart", "a", "--admin", admin)
    assert (ended.code, ended.out) == (0, "a: restarts; `corral status` shows it\n")
    assert (await corral("restart", "--all", "--admin", admin)).out == "restarting one after the other: a c\n"
    for wrong in ((), ("a", "--all")):
        ended = await corral("restart", *wrong, "--admin", admin)
        assert (ended.code, ended.err.splitlines()[0]) == (2, "error: name one replica, or say --all")
    ended = await corral("stop", "a", "--admin", admin)
    assert (ended.code, ended.out) == (0, "a: stops when it has finished what it is doing; `corral status` shows it\n")
    assert (await corral("start", "a", "--admin", admin)).out == "a: starts; `corral status` shows it\n"
    ended = await corral("restart", "b", "--admin", admin)
    assert (ended.code, ended.err) == (1, "error: b is not run by Corral\n")


async def test_status_as_json_is_the_snapshot(admin: str) -> None:
    page = json.loads((await corral("status", "--json", CORRAL_ADMIN=admin)).out)
    assert page["schema"] == 1
    assert page["requests"]["queued"] == 2


async def test_a_watched_status_comes_again_until_ctrl_c_and_in_a_pipe_each_as_a_line_of_json(admin: str) -> None:
    async with running("status", "--watch", "0.2", "--json", "--admin", admin) as watching:
        for _ in range(2):
            assert json.loads(await watching.until('"schema"'))["requests"]["queued"] == 2
        watching.process.send_signal(signal.SIGINT)
        assert await watching.ended() == 0
    assert not [line for line in watching.said if not line.startswith("{")]


async def test_a_watched_status_ends_when_the_gateway_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = await corral("status", "--watch", "--admin", f"127.0.0.1:{port}")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: no gateway answers on")


async def test_a_replica_is_drained_and_resumed(admin: str) -> None:
    ended = await corral("drain", "a", "--admin", admin)
    assert (ended.code, ended.out) == (0, "a: drained; gets no new requests, 1 still running\n")
    assert "a        up, drained" in (await corral("status", "--admin", admin)).out
    ended = await corral("resume", "a", "--admin", admin.removeprefix("http://"))
    assert (ended.code, ended.out) == (0, "a: takes requests again\n")
    assert json.loads((await corral("drain", "a", "--admin", admin, "--json")).out)["enabled"] is False


@pytest.mark.parametrize("name", ["z", "a b", "../x", "ä"])
async def test_an_unknown_replica_is_an_error_that_names_the_known_ones(admin: str, name: str) -> None:
    ended = await corral("drain", name, "--admin", admin)
    assert ended.code == 1
    assert ended.err == f"error: no replica {name!r}; known: a, b, c\n"


async def test_no_gateway_there_is_said_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ended = await corral("status", "--admin", f"http://127.0.0.1:{port}")
    assert ended.code == 1
    assert ended.err.startswith(f"error: no gateway answers on http://127.0.0.1:{port} (Connection refused)\n")
    assert "corral serve --config FILE" in ended.err


@pytest.mark.parametrize("address", ["https://x:1", "http://", "http://x:port", "http://[::1"])
async def test_what_is_no_address_is_refused(address: str) -> None:
    ended = await corral("status", "--admin", address)
    assert ended.code == 1
    assert ended.err.startswith(f"error: --admin {address!r} is not an address")


async def test_another_server_is_not_taken_for_an_admin_port() -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.15"})

    app = web.Application()
    app.router.add_get("/snapshot", hello)
    runner = make_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ended = await corral("status", "--admin", f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()
    assert ended.code == 1
    assert "is not the admin port of a Corral" in ended.err
