"""``corral serve`` as a process: the card, the signals, an address in use."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tests.gateway.cli.shell import Running, corral, running


class Ollama:
    """A replica whose chats last until ``release`` is set."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.asked = asyncio.Event()
        self.port = 0

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.15"})

    async def tags(self, request: web.Request) -> web.Response:
        entry = {
            "name": "m:latest",
            "model": "m:latest",
            "digest": "0" * 64,
            "size": 1,
            "modified_at": "2026-01-01T00:00:00Z",
        }
        return web.json_response({"models": [entry]})

    async def ps(self, request: web.Request) -> web.Response:
        return web.json_response({"models": []})

    async def chat(self, request: web.Request) -> web.Response:
        self.asked.set()
        await self.release.wait()
        return web.json_response({"model": "m", "done": True})


@pytest_asyncio.fixture
async def ollama() -> AsyncIterator[Ollama]:
    replica = Ollama()
    app = web.Application()
    app.add_routes(
        [
            web.get("/api/version", replica.version),
            web.get("/api/tags", replica.tags),
            web.get("/api/ps", replica.ps),
            web.post("/api/chat", replica.chat),
        ]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    replica.port = runner.addresses[0][1]
    yield replica
    await runner.cleanup()


def config_file(folder: Path, ollama: Ollama, more: str = "") -> Path:
    path = folder / "corral.yaml"
    path.write_text(
        "listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\n"
        f'replicas:\n  - {{id: a, url: "http://127.0.0.1:{ollama.port}"}}\n{more}'
    )
    return path


async def urls(gateway: Running) -> tuple[str, str]:
    """The client and the admin address from the start-up card."""
    client = (await gateway.until("  clients ")).split()[1]
    admin = (await gateway.until("  admin ")).split()[1]
    return client, admin


async def test_the_card_says_where_to_connect_and_what_to_do_next(tmp_path: Path, ollama: Ollama) -> None:
    async with running("serve", "--config", str(config_file(tmp_path, ollama))) as gateway:
        client, admin = await urls(gateway)
        await gateway.until(f"corral status --admin {admin}")
        card = "\n".join(gateway.said)
        assert re.search(r"Corral \S+ is ready after \d+\.\d s", card)
        assert f"replicas  a  http://127.0.0.1:{ollama.port}  weight 1  slots not known yet" in card
        assert f"next: OLLAMA_HOST={client.removeprefix('http://')} ollama run" in card
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0


async def test_ctrl_c_says_what_it_waits_for_and_lets_it_finish(tmp_path: Path, ollama: Ollama) -> None:
    async with (
        running("serve", "--config", str(config_file(tmp_path, ollama))) as gateway,
        aiohttp.ClientSession() as session,
    ):
        client, _ = await urls(gateway)
        chat = asyncio.create_task(ask(session, client))
        await ollama.asked.wait()
        gateway.process.send_signal(signal.SIGINT)
        await gateway.until("stopping: waiting for 1 running request, up to 300 s; again (Ctrl-C) stops now")
        ollama.release.set()
        assert await chat == 200
        assert await gateway.ended() == 0


async def test_a_second_ctrl_c_stops_now(tmp_path: Path, ollama: Ollama) -> None:
    async with (
        running("serve", "--config", str(config_file(tmp_path, ollama))) as gateway,
        aiohttp.ClientSession() as session,
    ):
        client, _ = await urls(gateway)
        chat = asyncio.create_task(ask(session, client))
        await ollama.asked.wait()
        gateway.process.send_signal(signal.SIGINT)
        await gateway.until("stopping: waiting for 1 running request")
        gateway.process.send_signal(signal.SIGINT)
        assert await gateway.ended() == 0
        await asyncio.wait([chat])
        assert chat.exception() is not None or chat.result() >= 500


async def ask(session: aiohttp.ClientSession, client: str) -> int:
    async with session.post(f"{client}/api/chat", json={"model": "m", "messages": [], "stream": False}) as answer:
        await answer.read()
        return answer.status


async def test_hup_reads_the_file_again_and_a_bad_one_changes_nothing(tmp_path: Path, ollama: Ollama) -> None:
    path = config_file(tmp_path, ollama)
    async with running("serve", "--config", str(path)) as gateway:
        _, admin = await urls(gateway)
        config_file(tmp_path, ollama, "queue: {max_request: 3}\n")
        gateway.process.send_signal(signal.SIGHUP)
        line = await gateway.until("reload_refused")
        assert "did you mean 'max_requests'" in line
        config_file(tmp_path, ollama, "policy: {name: random}\n")
        gateway.process.send_signal(signal.SIGHUP)
        await gateway.until("policy: weighted-least-load → random")
        assert "policy random" in (await corral("status", "--admin", admin)).out
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0


@pytest.mark.parametrize("key", ["listen", "admin_listen"])
async def test_an_address_in_use_is_one_clear_error(tmp_path: Path, ollama: Ollama, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path = config_file(tmp_path, ollama)
        path.write_text(re.sub(rf"^{key}: .*$", f"{key}: {address}", path.read_text(), flags=re.MULTILINE))
        ended = await corral("serve", "--config", str(path))
    assert ended.code == 1
    assert ended.err.startswith(f"error: {address} is taken by another program")
    assert "Traceback" not in ended.err


async def test_a_bad_file_is_refused_before_anything_listens(tmp_path: Path) -> None:
    path = tmp_path / "corral.yaml"
    path.write_text("replica: []\n")
    ended = await corral("serve", "--config", str(path))
    assert ended.code == 78
    assert "did you mean 'replicas'?" in ended.err
