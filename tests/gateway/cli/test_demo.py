"""``corral demo`` from the outside: what it prints works, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from corral.gateway.cli.demo import emulated_replicas
from corral.gateway.cli.ports import next_free
from tests.gateway.cli.shell import Running, corral, environment, running

DEMO = ("demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--speed", "200")


def children(demo: Running) -> list[psutil.Process]:
    return psutil.Process(demo.process.pid).children()


async def shell(command: str) -> str:
    child = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment()
    )
    out, err = await asyncio.wait_for(child.communicate(), 30)
    assert child.returncode == 0, err.decode()
    return out.decode()


async def generate(url: str) -> None:
    """A long answer, read to its end."""
    question = {"model": "llama3.1:8b", "prompt": "x", "options": {"num_predict": 2000}}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/api/generate", json=question) as answer:
        assert answer.status == 200
        await answer.read()


async def commands(demo: Running) -> list[str]:
    """The commands to copy, each as one line."""
    await demo.until("Ctrl-C ends the demo")
    text = "\n".join(demo.said).partition("Copy one of these")[2].replace("\\\n", "")
    return [line.strip() for line in text.splitlines()[1:] if line.startswith("  ")]


async def test_the_three_commands_it_prints_work() -> None:
    async with running(*DEMO) as demo:
        native, openai, python = await commands(demo)
        assert "replicas behind the gateway are emulated" in demo.said[0]
        assert len(children(demo)) == 3
        assert (await shell(python)).strip()
        if shutil.which("curl"):
            assert '"done":true' in await shell(native)
            assert '"finish_reason":"stop"' in await shell(openai)
        processes = children(demo)
        demo.process.send_signal(signal.SIGINT)
        assert await demo.ended() == 0
        assert not [process for process in processes if process.is_running()]


async def test_status_shows_three_unequal_replicas_that_serve() -> None:
    async with running(*DEMO) as demo:
        admin = (await demo.until("  admin ")).split()[1]
        await demo.until("Ctrl-C ends the demo")
        shown = (await corral("status", "--admin", admin)).out
        for name in ("rtx-3060", "rtx-4090", "rtx-5090"):
            assert f"\n{name}" in shown
        demo.process.send_signal(signal.SIGTERM)
        assert await demo.ended() == 0


async def test_the_gpus_are_shown_and_their_load_moves() -> None:
    async with running(*DEMO[:-1], "1") as demo:
        url = (await demo.until("  clients ")).split()[1]
        admin = (await demo.until("  admin ")).split()[1]
        await demo.until("Ctrl-C ends the demo")

        async def gpus() -> list[dict[str, Any]]:
            page = json.loads((await corral("status", "--json", "--admin", admin)).out)
            found: list[dict[str, Any]] = page["gpus"]
            return found

        first = await gpus()
        assert [gpu["name"] for gpu in first] == [
            "NVIDIA GeForce RTX 3060",
            "NVIDIA GeForce RTX 4090",
            "NVIDIA GeForce RTX 5090",
        ]
        asking = asyncio.create_task(generate(url))
        busy: set[str] = set()
        async with asyncio.timeout(30):
            while not busy:
                for before, now in zip(first, await gpus(), strict=True):
                    sample = now["sample"]
                    if sample and sample["utilisation_ratio"] and sample["memory_used_bytes"]:
                        assert before["sample"] is None or sample["power_watts"] > before["sample"]["power_watts"]
                        busy.add(now["gpu"])
        asking.cancel()
        await asyncio.wait({asking})
        page = json.loads((await corral("status", "--json", "--admin", admin)).out)
        assert all(len(replica["gpus"]) == 1 for replica in page["replicas"])
        demo.process.send_signal(signal.SIGTERM)
        demo.process.send_signal(signal.SIGTERM)
        assert await demo.ended() == 0


async def test_without_a_compiler_the_demo_runs_and_says_what_it_cannot_show() -> None:
    async with running(*DEMO, PATH="/nowhere") as demo:
        assert "compiler" in await demo.until("The readings of the emulated GPUs are not shown")
        await demo.until("Ctrl-C ends the demo")
        demo.process.send_signal(signal.SIGTERM)
        assert await demo.ended() == 0


async def test_no_emulated_replica_survives_a_killed_gateway() -> None:
    async with running(*DEMO) as demo:
        await demo.until("Ctrl-C ends the demo")
        processes = children(demo)
        assert len(processes) == 3
        demo.process.kill()
        _, left = await asyncio.to_thread(psutil.wait_procs, processes, 10)
        assert left == []


async def test_a_speed_that_is_no_number_is_refused() -> None:
    ended = await corral("demo", "--speed", "nan")
    assert (ended.code, ended.out) == (2, "")
    assert "'--speed': nan is not a number" in ended.err


async def test_an_address_in_use_ends_the_demo_and_its_replicas() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with running("demo", "--listen", address, "--admin-listen", "127.0.0.1:0", "--replicas", "1") as demo:
            await demo.until(f"error: {address} is taken by another program")
            assert await demo.ended() == 1


def test_a_taken_port_is_replaced_by_the_next_free_one_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = taken.getsockname()[1]
        port = next_free(wanted, {wanted + 1}, "the demo").port
    assert port == 0 or port > wanted + 1
    said = capsys.readouterr().out
    assert f"port {wanted} is taken on this machine: the demo uses {port} instead\n" == said or port == 0


def test_more_replicas_than_kinds_of_gpu_have_names_of_their_own() -> None:
    ids = [replica.id for replica in emulated_replicas(7)]
    assert len(set(ids)) == 7
    assert ids[:4] == ["rtx-3060", "rtx-4090", "rtx-5090", "rtx-3060-2"]


async def test_up_starts_the_demo_where_there_is_nothing_else(tmp_path: Path) -> None:
    """Only where this machine has no Ollama and no GPU, and Ollama's port is free."""
    from corral.gateway.cli.up import GPU_DEVICES, OLLAMA, Machine, look_around

    if look_around(GPU_DEVICES, OLLAMA) != Machine(None, None, None):
        pytest.skip("this machine has an Ollama or a GPU")
    async with running("up", cwd=tmp_path) as up:
        await up.until("Neither an Ollama nor a GPU was found here")
        await up.until("Ctrl-C ends the demo")
        up.process.send_signal(signal.SIGTERM)
        assert await up.ended() == 0
