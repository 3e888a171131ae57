"""``corral up``: what a fresh clone does."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from corral.gateway.cli.options import config_file
from corral.gateway.cli.up import advice, look_around
from corral.gateway.config import Config, ReplicaUrl, parse_config
from tests.emulator.ollama_binary import make_ollama
from tests.gateway.cli.shell import Running, corral, environment
from tests.probes.fake_ollama import fake_ollama


def test_a_named_configuration_goes_before_the_one_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "corral.yaml").touch()
    assert config_file({"CORRAL_CONFIG": "/etc/c.yaml"}, tmp_path) == Path("/etc/c.yaml")
    assert config_file({}, tmp_path) == tmp_path / "corral.yaml"
    assert config_file({}, tmp_path / "elsewhere") is None


async def test_the_configuration_of_the_folder_is_served(tmp_path: Path) -> None:
    (tmp_path / "corral.yaml").write_text("replicas: []\n")
    ended = await corral("up", cwd=tmp_path)
    assert ended.code == 78
    assert ended.err.startswith("error: corral.yaml:1:11: replicas: is empty")


async def test_a_named_configuration_that_is_missing_is_an_error_and_not_a_demo(tmp_path: Path) -> None:
    ended = await corral("up", cwd=tmp_path, CORRAL_CONFIG="gone.yaml")
    assert ended.code == 78
    assert ended.err.startswith("error: gone.yaml: no such file")


def test_a_gpu_without_the_program_is_said_with_what_to_get() -> None:
    text = advice("/dev/nvidia0")
    assert text.startswith("A GPU is here (/dev/nvidia0), but no program `ollama`")
    assert "https://ollama.com/download" in text
    example = next(line for line in text.splitlines() if line.startswith("ollama: "))
    assert parse_config(example, "corral.yaml").ollama.binary == "/opt/ollama/bin/ollama"


def shown(text: str) -> Config:
    """The configuration to copy, which must be valid."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("listen:"))
    return parse_config("\n".join(lines[first : first + 3]), "corral.yaml")


AS_ON_THIS_PORT = """
import sys
from corral.gateway.cli import up
from corral.gateway.cli.entry import main
from corral.gateway.config import ReplicaUrl
up.OLLAMA, up.PORT, up.FRONT_PORT, up.ADMIN_PORT = ReplicaUrl("127.0.0.1", int(sys.argv.pop())), 0, 0, 0
main()
"""


async def test_a_running_ollama_is_served_in_front_of_and_said_how_to_change_places(tmp_path: Path) -> None:
    async with fake_ollama() as ollama:
        port = ollama.replica().port
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", AS_ON_THIS_PORT, "up", str(port)),
            cwd=tmp_path,
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        up = Running(child)
        try:
            await up.until(f"An Ollama (version 0.32.15) answers on 127.0.0.1:{port}: Corral goes in front of it.")
            url = (await up.until("  clients ")).split()[1]
            await up.until('  - {id: a, url: "http://127.0.0.1:21001"}')
            said = "\n".join(up.said)
            assert f"who asks {url} comes through Corral" in said
            assert "stop that Ollama" in said
            assert "restart it with OLLAMA_HOST=127.0.0.1:21001" in said
            assert str(shown(said).listen) == f"127.0.0.1:{port}"
            with await asyncio.to_thread(urllib.request.urlopen, f"{url}/api/version", timeout=10) as answer:
                assert answer.status == 200
            child.send_signal(signal.SIGTERM)
            assert await up.ended() == 0
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()


@asynccontextmanager
async def where_ollama_is_installed(folder: Path, script: str, **env: str) -> AsyncIterator[Running]:
    """``corral up`` on a machine with the program and without a GPU."""
    path = f"{make_ollama(folder / 'bin').parent}:{os.environ['PATH']}"
    homes = {"HOME": str(folder), "XDG_STATE_HOME": str(folder), "CORRAL_NVML_LIBRARY": "/nowhere.so"}
    up = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, "up", "1"),
        cwd=folder,
        env=environment(PATH=path, **homes, **env),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Running(up)
    try:
        yield running
    finally:
        if up.returncode is None:
            up.terminate()
            assert await running.ended() == 0


async def test_where_the_program_is_installed_up_runs_it(tmp_path: Path) -> None:
    async with where_ollama_is_installed(tmp_path, AS_ON_THIS_PORT) as running:
        line = await running.until("Corral runs it, as `corral serve` does.")
        assert str(tmp_path / "bin" / "ollama") in line
        await running.until("replica_started replica=cpu")


async def test_a_port_that_is_taken_is_replaced_by_the_next_free_one_and_that_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        script = AS_ON_THIS_PORT.replace("0, 0, 0", f"{port}, 0, 0")
        async with where_ollama_is_installed(tmp_path, script) as running:
            moved = await running.until(f"port {port} is taken on this machine: Corral uses")
            assert (await running.until("  clients ")).split()[1] == f"http://127.0.0.1:{moved.split()[-2]}"


async def test_an_address_that_the_environment_names_is_not_moved(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with where_ollama_is_installed(tmp_path, AS_ON_THIS_PORT, OLLAMA_HOST=address) as running:
            await running.until(f"error: {address} is taken by another program")
            assert await running.ended() == 1


async def test_where_a_corral_serves_already_up_says_so_and_starts_nothing(tmp_path: Path) -> None:
    async def version(request: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.15"}, headers={"X-Request-Id": "1"})

    app = web.Application()
    app.add_routes([web.get("/api/version", version)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    up = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AS_ON_THIS_PORT, "up", str(port)),
        cwd=tmp_path,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Running(up)
    assert await running.ended() == 0
    assert running.said[0] == f"A Corral serves 127.0.0.1:{port} already."
    await runner.cleanup()


def test_a_gpu_is_known_by_its_device_file(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    found = look_around([str(tmp_path / "none"), str(tmp_path / "nvidia0")], ReplicaUrl("127.0.0.1", 1))
    assert found.gpu == str(tmp_path / "nvidia0")
