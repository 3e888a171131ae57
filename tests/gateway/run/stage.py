"""A supervisor with real child processes on a stage of its own, and what is needed to watch it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from corral.gateway.config.owned import ReplicaLogsConfig, RestartConfig, WarmupConfig
from corral.gateway.layout.plan import ReplicaPlan
from corral.gateway.run.processes import MarkedProcess, identify, look_at, send
from corral.gateway.run.supervisor import Supervisor
from corral.model import Gpu, GpuVendor, ProcessState, ProcessStatus
from corral.probes.ollama import probe_session

FAKE = Path(__file__).with_name("fake_ollama.py")
COMMAND = (sys.executable, "-I", "-S", str(FAKE))
PATIENCE_S = 20.0
BRISK = RestartConfig(first_s=0.05, max_s=0.4, give_up_after=3, window_s=60, ready_s=15, stop_s=1)


def gpu(uuid: str) -> Gpu:
    return Gpu(uuid, 0, GpuVendor.NVIDIA, "RTX", 24 << 30)


def plan(id: str, *gpus: str, **env: str) -> ReplicaPlan:
    return ReplicaPlan(id, COMMAND, env, tuple(map(gpu, gpus)))


def marked(prefix: str) -> list[MarkedProcess]:
    """All living processes whose token begins so."""
    return [found for name in os.listdir("/proc") if name.isdigit() and (found := look_at(int(name), prefix))]


def until_marked(prefix: str, count: int = 1) -> None:
    """Popen returns a moment before the environment of the new program can be read."""
    deadline = time.monotonic() + PATIENCE_S
    while len(marked(prefix)) < count:
        assert time.monotonic() < deadline, "not as many carry the mark"


def alive(pid: int) -> bool:
    return identify(pid) is not None


def free_port() -> int:
    """The first of some that are free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return min(port, 60_000)


async def until(condition: Callable[[], bool], limit_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "did not come about"
        await asyncio.sleep(0.01)


def home_of(state_dir: Path) -> str:
    """What the tokens of that folder begin with."""
    return (state_dir / "lock").read_text().split()[1]


def processes(state_dir: Path) -> list[MarkedProcess]:
    return marked(home_of(state_dir)) if (state_dir / "lock").exists() else []


def end_all(state_dir: Path) -> None:
    """Whatever a test left."""
    deadline = time.monotonic() + 10
    while (left := processes(state_dir)) and time.monotonic() < deadline:
        for process in left:
            send(process, signal.SIGKILL)
        time.sleep(0.01)


class RecordingFeed:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.told: dict[str, list[ProcessState]] = {}
        self.busy: dict[str, int] = {}
        self.changes = 0

    def replicas_changed(self) -> None:
        self.changes += 1

    def hold(self, replica_id: str, reason: str) -> None:
        self.held[replica_id] = reason

    def release(self, replica_id: str) -> None:
        self.held.pop(replica_id, None)

    def inflight(self, replica_id: str) -> int:
        return self.busy.get(replica_id, 0)

    def process_changed(self, status: ProcessStatus) -> None:
        states = self.told.setdefault(status.id, [])
        if states[-1:] != [status.state]:
            states.append(status.state)


class Stage:
    """One supervisor and its feed."""

    def __init__(self, supervisor: Supervisor, feed: RecordingFeed, state_dir: Path) -> None:
        self.supervisor = supervisor
        self.feed = feed
        self.state_dir = state_dir

    def status(self, id: str) -> ProcessStatus:
        return next(status for status in self.supervisor.statuses() if status.id == id)

    def state(self, id: str) -> ProcessState:
        return self.status(id).state

    def pid(self, id: str) -> int:
        pid = self.status(id).pid
        assert pid is not None
        return pid

    def kill(self, id: str, number: signal.Signals = signal.SIGKILL) -> int:
        pid = self.pid(id)
        os.kill(pid, number)
        return pid

    async def in_state(self, id: str, state: ProcessState) -> None:
        await until(lambda: self.state(id) is state)

    async def running(self, *ids: str) -> None:
        for id in ids:
            await self.in_state(id, ProcessState.RUNNING)

    def children(self, id: str) -> list[int]:
        """What its leader started."""
        token = next(p.token for p in processes(self.state_dir) if p.id.pid == self.pid(id))
        return [p.id.pid for p in processes(self.state_dir) if p.token == token and p.id.pid != self.pid(id)]


@asynccontextmanager
async def stage(
    state_dir: Path,
    *plans: ReplicaPlan,
    restart: RestartConfig = BRISK,
    logs: ReplicaLogsConfig | None = None,
    warmup: WarmupConfig | None = None,
    first_port: int = 0,
    drain_s: float = 5.0,
    environ: Mapping[str, str] | None = None,
    lost: Iterable[str] = (),
    close: bool = True,
) -> AsyncIterator[Stage]:
    feed = RecordingFeed()
    async with probe_session() as session:
        supervisor = Supervisor(
            feed,
            state_dir=state_dir,
            environ=os.environ if environ is None else environ,
            restart=restart,
            logs=logs or ReplicaLogsConfig(),
            warmup=warmup or WarmupConfig(),
            first_port=first_port or free_port(),
            drain_s=drain_s,
            clock=time.monotonic,
            rng=Random(1),
            session=session,
        )
        for uuid in lost:
            supervisor.gpu_lost(uuid, "gone")
        try:
            await supervisor.start(plans)
            yield Stage(supervisor, feed, state_dir)
        finally:
            if close:
                await supervisor.close()
