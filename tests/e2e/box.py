"""A machine with GPUs in software: the stand-in for NVIDIA's library, an executable ``ollama``, and a real gateway."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from corral.emulator.nvml.build import build
from corral.emulator.nvml.state import Machine, write_machine
from tests.e2e.processes import Gateway, ask, until
from tests.emulator.ollama_binary import make_ollama
from tests.gateway.cli.shell import environment

MODEL = "llama3.2:1b"
QUICK = """\
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
probes: {gpu_interval_s: 0.1, ollama_interval_s: 0.2}
restart: {first_s: 0.1, max_s: 0.5, window_s: 60, ready_s: 20, stop_s: 3}
timeouts: {drain_s: 5}
"""
"""Everything at once, instead of after the seconds that suit people."""


@cache
def library() -> Path:
    """The stand-in, compiled once for a test run."""
    return build(Path(tempfile.gettempdir()) / f"corral-standin-{os.getuid()}")


class Box:
    """The machine's folders, what its programs find in the environment, and the gateway on it."""

    def __init__(self, folder: Path, machine: Machine, more: str = "", **environ: str) -> None:
        self.folder = folder
        self.nvml = folder / "nvml"
        self.nvml.mkdir()
        write_machine(self.nvml, *machine)
        self.uuids = [uuid_of(self.nvml / f"gpu{number}") for number in range(len(machine[0]))]
        self.state = folder / "state"
        self.config = folder / "corral.yaml"
        self.configure(more)
        binaries = make_ollama(folder / "bin").parent
        self.environ = environment(
            **{
                "PATH": f"{binaries}:{os.environ['PATH']}",
                "HOME": str(folder),
                "XDG_STATE_HOME": str(self.state),
                "CORRAL_NVML_LIBRARY": str(library()),
                "CORRAL_STANDIN_NVML": str(self.nvml),
                "EMULATED_MODELS": MODEL,
                "EMULATED_SPEED": "50",
            }
            | environ
        )
        self.gateway = BoxGateway(self)

    def configure(self, more: str) -> None:
        self.config.write_text(QUICK + more)

    async def start(self) -> None:
        """A new gateway on the same machine."""
        self.gateway = BoxGateway(self)
        self.gateway.begin()
        await self.gateway.ready()

    async def running(self, *ids: str, within_s: float = 30) -> float:
        """Wait until these replicas run and take requests."""

        def are_running(page: dict[str, Any]) -> bool:
            rows = {row["id"]: row for row in page["replicas"]}
            return all(
                id in rows and rows[id]["process"]["state"] == "running" and rows[id]["held"] is None for id in ids
            )

        return await self.gateway.until(are_running, within_s, f"{ids} running")

    async def process(self, id: str) -> dict[str, Any]:
        """What the gateway says of one replica's process."""
        found: dict[str, Any] = (await self.gateway.replica(id))["process"]
        return found

    async def until_process(self, id: str, condition: Callable[[dict[str, Any]], object], within_s: float) -> float:
        def is_so(page: dict[str, Any]) -> bool:
            return any(row["id"] == id and condition(row["process"]) for row in page["replicas"])

        return await self.gateway.until(is_so, within_s, f"{id} as wanted")

    async def gpu(self, number: int) -> dict[str, Any]:
        page = await self.gateway.snapshot()
        found: dict[str, Any] = page["gpus"][number]
        return found

    async def chat(self, model: str = MODEL, tokens: int = 3) -> str:
        """One answer; the id of the replica that gave it."""
        import aiohttp

        body = {"model": model, "prompt": "hello", "stream": False, "options": {"num_predict": tokens}}
        url = f"http://127.0.0.1:{self.gateway.port}/api/generate"
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            assert answer.status == 200, await answer.text()
            return answer.headers["x-corral-replica"]

    def ollamas(self) -> list[psutil.Process]:
        """All living processes that were started for replicas of this machine, their children included."""
        return [each for each in psutil.process_iter() if self._is_ours(each)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error, OSError):
            environ = process.environ()
            return (
                "CORRAL_REPLICA" in environ
                and environ.get("CORRAL_STANDIN_NVML") == str(self.nvml)
                and process.status() != psutil.STATUS_ZOMBIE
            )
        return False

    def end(self) -> None:
        self.gateway.end()
        for each in self.ollamas():
            with contextlib.suppress(psutil.Error):
                each.kill()


class BoxGateway(Gateway):
    """``corral serve`` on the box, with its configuration; started by :meth:`begin`."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.log = box.folder / "gateway.log"
        self.arguments = ("serve", "--config", str(box.config))
        self.port = self.admin_port = 0

    def begin(self) -> None:
        self.log.write_text("")
        self.process = self._start()

    def environment(self) -> dict[str, str]:
        return self.box.environ

    def end(self) -> None:
        if hasattr(self, "process"):
            super().end()


def uuid_of(path: Path) -> str:
    return next(line.split()[1] for line in path.read_text().splitlines() if line.startswith("uuid "))


@asynccontextmanager
async def box(folder: Path, machine: Machine, more: str = "", **environ: str) -> AsyncIterator[Box]:
    """A box whose gateway has said its card; at the end nothing of it is left."""
    made = Box(folder, machine, more, **environ)
    try:
        await made.start()
        yield made
    finally:
        made.end()


async def gone(processes: Iterable[psutil.Process], within_s: float = 10) -> None:
    """Wait until none of these runs any more."""
    left = list(processes)
    await until(lambda: not any(is_alive(each) for each in left), within_s, f"the end of {left}")


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    return False


async def loaded(port: int) -> list[dict[str, Any]]:
    """``/api/ps`` of a replica or of the gateway."""
    _, page = await ask(port, "GET", "/api/ps")
    found: list[dict[str, Any]] = page["models"]
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
