"""From a GPU's sensors to the scheduler, with NVIDIA's library replaced by the stand-in and all else real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from corral.emulator.nvml import machines, state
from corral.gateway import app
from corral.gateway.carried import Carried
from corral.gateway.carrier import Carrier
from corral.gateway.gpufeed import GpuFeed
from corral.gateway.schedule.effects import Effect
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.serve.gpus import GpuBoard
from corral.gateway.serve.metrics import Metrics
from corral.model import GpuLoad, LoadedModel, OllamaSample, ProcessState, ProcessStatus, Replica
from corral.policies import make_policy
from corral.probes.gpu import NVML_LIBRARY
from corral.probes.reader import GpuReader
from tests.gateway.test_app import serving, written
from tests.probes import standin
from tests.probes.fake_ollama import fake_ollama

GIB = 1 << 30
INTERVAL_S = 0.02
HARDWARE_THERMAL = 0x40
PATIENCE_S = 10.0


class Recording(Scheduler[Carried]):
    """A scheduler that writes down what it is told of GPUs."""

    def __init__(self) -> None:
        super().__init__(make_policy("random"), "random", QueueLimits(), Random(1))
        self.now: dict[str, GpuLoad | None] = {}
        self.told: list[str] = []
        self.busy: dict[str, int] = {}

    def gpu_loaded(self, replica_id: str, load: GpuLoad | None, now_s: float) -> list[Effect[Carried]]:
        self.now[replica_id] = load
        self.told.append(replica_id)
        return []

    def inflight_on(self, replica_id: str) -> int:
        return self.busy.get(replica_id, 0)


class Stage:
    """The feed and all that it hears of; it is itself the source of replicas."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self.folder = folder
        self.ahead_s = 0.0
        """Of the feed's clock: smoothing over seconds is done in a moment."""
        self.old_s = 0.0
        """How much older than in truth the board takes readings to be."""
        self.metrics = Metrics()
        self.scheduler = Recording()
        self.board = GpuBoard(lambda: clock() + self.old_s, INTERVAL_S, self.metrics)
        carrier = Carrier(self.scheduler, self.metrics, clock)
        self.feed = GpuFeed(self.board, carrier, self.metrics, self, lambda: clock() + self.ahead_s)
        self.board.on_round = self.feed.look
        self.uuids = standin.uuids(folder, 2)
        self.listed: tuple[Replica, ...] = (self.replica("a", 0), self.replica("b", 1))
        self.states: tuple[ProcessStatus, ...] = ()

    def replica(self, id: str, *gpus: int) -> Replica:
        return Replica(id, "127.0.0.1", 1, gpus=tuple(self.uuids[number] for number in gpus))

    def replicas(self) -> tuple[Replica, ...]:
        return self.listed

    def processes(self) -> tuple[ProcessStatus, ...]:
        return self.states

    def loaded(self, id: str, *sizes: int) -> None:
        models = tuple(LoadedModel(f"m{number}:latest", size, size, None) for number, size in enumerate(sizes))
        self.feed.sampled(OllamaSample(id, 0.0, None, None, models))

    def set(self, number: int, **values: state.Value) -> None:
        state.update(self.folder, f"gpu{number}", **values)

    def of(self, id: str) -> GpuLoad:
        load = self.scheduler.now[id]
        assert load is not None, f"nothing is known of {id}"
        return load

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def rounds(self, count: int = 2) -> None:
        """So many that began from now on."""
        goal = self.metrics.gpu_rounds + count + 1
        await self.until(lambda: self.metrics.gpu_rounds >= goal)


@asynccontextmanager
async def stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    standin.machine(folder, monkeypatch, machines.alike(2))
    clock = asyncio.get_running_loop().time
    made = Stage(folder, clock)
    reader = GpuReader([standin.source(folder)], made.board, clock, INTERVAL_S, deadline_s=0.2)
    made.board.use(await reader.start())
    try:
        await made.until(lambda: made.scheduler.now.keys() >= {"a", "b"})
        yield made
    finally:
        for number in range(2):
            state.hang(folder, number, hangs=False)
        await reader.close()


async def test_a_throttled_gpu_slows_its_own_replica_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as staged:
        assert staged.of("a").slowdown == staged.of("b").slowdown == 1.0
        staged.set(1, throttle=HARDWARE_THERMAL)
        await staged.rounds()
        staged.ahead_s += 60.0
        await staged.until(lambda: staged.of("b").slowdown > 1.2)
        assert staged.of("a").slowdown == 1.0
        staged.set(1, throttle=0)
        await staged.rounds()
        staged.ahead_s += 60.0
        await staged.until(lambda: staged.of("b").slowdown == 1.0)


async def test_the_ratios_and_the_memory_are_the_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as staged:
        staged.set(0, utilisation=60, memory_used=6 * GIB)
        await staged.until(lambda: staged.of("a").utilisation_ratio == 0.6)
        assert staged.of("a").memory_ratio == 0.25
        assert staged.of("a").memory_bytes == 24 * GIB
        assert staged.of("b").utilisation_ratio == 0.0


async def test_foreign_memory_is_known_once_a_replica_has_said_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as staged:
        staged.set(0, memory_used=10 * GIB)
        await staged.rounds()
        assert staged.of("a").foreign_bytes is None
        staged.loaded("a", 3 * GIB, 2 * GIB)
        await staged.until(lambda: staged.of("a").foreign_bytes == 4 * GIB)


async def test_work_of_others_is_told_as_foreign_and_own_work_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as staged:
        staged.scheduler.busy["b"] = 1
        staged.set(0, utilisation=70)
        staged.set(1, utilisation=70)
        await staged.rounds(4)
        staged.ahead_s += 3.0
        await staged.until(lambda: staged.of("a").foreign == 0.7)
        assert staged.of("b").foreign == 0.0


async def test_a_gpu_that_two_replicas_share_has_the_work_and_the_models_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as staged:
        staged.listed = (staged.replica("a", 0), staged.replica("c", 0, 1))
        staged.scheduler.busy["c"] = 1
        staged.set(0, utilisation=70, memory_used=10 * GIB)
        staged.loaded("a", 2 * GIB)
        await staged.until(lambda: staged.scheduler.now.get("c"))
        await staged.rounds(4)
        assert staged.of("a").foreign_bytes is None, "what the other holds is not known"
        staged.ahead_s += 3.0
        await staged.rounds(4)
        assert staged.of("a").foreign == 0.0
        staged.loaded("c", 4 * GIB)
        await staged.until(lambda: staged.of("a").foreign_bytes == 3 * GIB)


@pytest.mark.parametrize("process", [ProcessState.STARTING, ProcessState.STOPPING, None])
async def test_a_replica_that_warms_up_or_loads_is_not_taken_for_others(
    process: ProcessState | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as staged:
        if process is None:
            staged.feed.is_loading = lambda id: id == "a"
        else:
            staged.states = (ProcessStatus("a", process, "", None, None, 0, 0.0, False, "", None),)
        staged.set(0, utilisation=70)
        staged.set(1, utilisation=70)
        await staged.rounds(4)
        staged.ahead_s += 3.0
        await staged.until(lambda: staged.of("b").foreign == 0.7)
        assert staged.of("a").foreign == 0.0


@pytest.mark.parametrize("fault", ["hung", "lost"])
async def test_a_gpu_that_cannot_be_read_makes_its_replica_unknown_until_it_is_read_again(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as staged:
        if fault == "hung":
            state.hang(tmp_path, 0)
        else:
            state.lose(tmp_path, 0)
        await staged.until(lambda: staged.scheduler.now["a"] is None)
        assert staged.of("b").slowdown == 1.0
        told = staged.scheduler.told.count("a")
        await staged.rounds(3)
        assert staged.scheduler.told.count("a") == told, "once is enough"
        state.hang(tmp_path, 0, hangs=False)
        state.find(tmp_path, 0)
        await staged.until(lambda: staged.scheduler.now["a"])


async def test_a_reading_that_has_grown_old_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as staged:
        staged.old_s = 60.0
        staged.feed.look()
        assert staged.scheduler.now == {"a": None, "b": None}


async def test_a_replica_without_known_gpus_is_not_spoken_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as staged:
        staged.listed = (staged.replica("a"), staged.replica("d", 1))
        await staged.until(lambda: staged.scheduler.now.get("d"))
        assert (staged.scheduler.now["a"], staged.scheduler.now["b"]) == (None, None)


async def test_the_running_gateway_hears_of_the_gpus_of_an_ollama_that_somebody_else_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedulers: list[Recording] = []

    def recording(*_: object, **__: object) -> Recording:
        schedulers.append(Recording())
        return schedulers[-1]

    monkeypatch.setattr(app, "Scheduler", recording)
    monkeypatch.setenv(NVML_LIBRARY, standin.library())
    standin.machine(tmp_path / "nvml", monkeypatch, machines.alike(2))
    state.update(tmp_path / "nvml", "gpu1", throttle=HARDWARE_THERMAL, memory_used=9 * GIB)
    async with fake_ollama() as ollama:
        path = written(tmp_path / "corral.yaml", ollama, "gpus: [1]", "probes: {gpu_interval_s: 0.05}\n")
        async with serving(path):
            async with asyncio.timeout(PATIENCE_S):
                while not ((load := schedulers[0].now.get("a")) and load.slowdown > 1.0 and load.foreign_bytes):
                    await asyncio.sleep(0.005)
