"""What the owner does with configurations and readings, on a machine with one GPU in this process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from corral.errors import CorralError, OperatorError
from corral.gateway.config import load_config, parse_config
from corral.gateway.owner import Owner
from corral.gateway.serve.gpus import GpuBoard
from corral.gateway.serve.metrics import Metrics
from corral.model import Gpu, GpuSample, GpuSurvey, GpuVendor, Hold, LoadedModel, Order, ProcessState
from corral.probes.ollama import probe_session
from tests.gateway.run.stage import FAKE, end_all, until

GIB = 1 << 30
UUID = "GPU-11111111-2222-3333-4444-555555555555"
OWNED = "gpus: [0]\nprobes: {gpu_interval_s: 0.05}\nrestart: {first_s: 0.05, stop_s: 2}\ntimeouts: {drain_s: 1}\n"
LISTED = "replicas: [{id: gpu0, url: 'http://127.0.0.1:9'}]\n"
WHOLE = LoadedModel("m:latest", 4 * GIB, 4 * GIB, 4096)
ON_CPU = LoadedModel("m:latest", 4 * GIB, 0, 4096)


class OneGpu:
    """A driver with one GPU; its survey takes ``survey_s``, and finds nothing before it is ``awake``."""

    vendor = GpuVendor.NVIDIA

    def __init__(self, survey_s: float, awake: bool) -> None:
        self.survey_s = survey_s
        self.awake = awake

    def survey(self) -> GpuSurvey:
        time.sleep(self.survey_s)
        if not self.awake:
            return GpuSurvey(problems=("The NVIDIA driver is not loaded.",))
        return GpuSurvey((Gpu(UUID, 0, GpuVendor.NVIDIA, "RTX", 24 * GIB),))

    def read(self, uuid: str, at_s: float) -> GpuSample:
        return GpuSample(uuid, at_s, memory_used_bytes=GIB, memory_total_bytes=24 * GIB)

    def xids(self) -> tuple[tuple[str, int], ...]:
        return ()

    def close(self) -> None:
        pass


class Feed:
    """The gateway, as far as the owner knows it."""

    def __init__(self) -> None:
        self.holds: dict[str, Hold] = {}

    def replicas_changed(self) -> None:
        pass

    def set_hold(self, replica_id: str, hold: Hold | None) -> None:
        if hold is None:
            self.holds.pop(replica_id, None)
        else:
            self.holds[replica_id] = hold

    def inflight(self, replica_id: str) -> int:
        return 0


class Stage:
    """An owner, its feed and its clock."""

    def __init__(self, owner: Owner, feed: Feed, folder: Path, driver: OneGpu) -> None:
        self.owner = owner
        self.driver = driver
        self.feed = feed
        self.folder = folder
        self.ahead_s = 0.0

    def clock(self) -> float:
        return time.monotonic() + self.ahead_s

    async def use(self, text: str) -> None:
        path = self.folder / "corral.yaml"
        path.write_text(text)
        await self.owner.reload(load_config(path))

    async def running(self, restarts: int) -> None:
        def is_running() -> bool:
            return any(
                (each.state, each.restarts) == (ProcessState.RUNNING, restarts) for each in self.owner.processes()
            )

        await until(is_running)
        await until(lambda: self.feed.holds == {})

    async def sampled(self) -> None:
        """Wait for a reading of the GPU that begins from now on."""
        since_s = self.clock()

        def is_later() -> bool:
            sample = self.owner.gpus()[0].sample
            return sample is not None and sample.taken_at_s > since_s

        await until(is_later)

    async def falls(self) -> None:
        """The model is seen on the CPU twice, with a reading of the GPU in between."""
        self.owner.loaded("gpu0", [ON_CPU])
        await self.sampled()
        self.owner.loaded("gpu0", [ON_CPU])

    @property
    def ids(self) -> list[tuple[str, bool]]:
        """Each replica's name, and whether it is the one that somebody else runs."""
        return [(replica.id, replica.port == 9) for replica in self.owner.replicas()]


@asynccontextmanager
async def stage(folder: Path, text: str, survey_s: float = 0.0, *, awake: bool = True) -> AsyncIterator[Stage]:
    program = folder / "ollama"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = serve ] || {{ echo "ollama version is 0.30.1"; exit; }}\n'
        f"exec {sys.executable} -I -S {FAKE}\n"
    )
    program.chmod(0o755)
    environ = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "XDG_STATE_HOME": str(folder)}
    feed, board = Feed(), GpuBoard(time.monotonic, 0.05, Metrics())
    async with probe_session() as session:
        on: list[Stage] = []
        driver = OneGpu(survey_s, awake)
        owner = Owner(feed, board, (driver,), session, environ, lambda: on[0].clock(), Random(1), seek_s=0.1)
        on.append(Stage(owner, feed, folder, driver))
        path = folder / "corral.yaml"
        path.write_text(text)
        try:
            await owner.start(load_config(path))
            yield on[0]
        finally:
            await owner.close()
            end_all(folder / "corral")


async def test_a_layout_that_cannot_be_carried_out_leaves_the_old_one_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "corral").touch()  # where its state would be
    async with stage(tmp_path, LISTED) as on:
        with pytest.raises(OperatorError, match="to note what is started"):
            await on.use(OWNED)
        assert on.ids == [("gpu0", True)]


async def test_a_layout_is_checked_without_being_carried_out(tmp_path: Path) -> None:
    async with stage(tmp_path, "gpus: auto\n") as it:
        await it.running(restarts=0)
        before = it.owner.processes()
        for text in ("gpus: [7]\n", 'replicas: [{id: a, url: "http://127.0.0.1:9", gpus: [7]}]\n'):
            with pytest.raises(OperatorError, match="there is no GPU 7"):
                await it.owner.check(parse_config(text, "corral.yaml"))
        await it.owner.check(parse_config("gpus: [{gpus: [0], id: other}]\n", "corral.yaml"))
        assert it.owner.processes() == before
        assert it.ids == [("gpu0", False)]


async def test_a_plan_waits_for_the_first_look_at_the_gpus(tmp_path: Path) -> None:
    async with stage(tmp_path, LISTED, survey_s=1.5) as on:
        await on.use(OWNED)
        assert on.owner.replicas()[0].gpus == (UUID,)


async def test_a_look_at_the_gpus_that_is_not_over_ends_with_the_owner(tmp_path: Path) -> None:
    async with stage(tmp_path, LISTED, survey_s=0.5) as on:
        later = on.owner._later
    assert later is not None
    assert later.done()


async def test_one_that_somebody_else_runs_takes_over_the_name_of_one_that_corral_ran(tmp_path: Path) -> None:
    async with stage(tmp_path, OWNED) as on:
        await on.running(0)
        await on.use(LISTED)
        assert on.ids == [("gpu0", False)], "it may still be answering requests"
        with pytest.raises(CorralError, match="about to end for good"):
            on.owner.order(Order.RESTART, "gpu0")
        await until(lambda: on.ids == [("gpu0", True)])
        assert on.feed.holds == {}
        await on.use(OWNED)
        await on.running(0)
        assert on.ids == [("gpu0", False)]


async def test_the_folders_of_the_stores_of_its_own_ollamas_are_known(tmp_path: Path) -> None:
    async with stage(tmp_path, OWNED + f"ollama: {{models: {tmp_path}}}\n") as on:
        assert on.owner.store_folders() == {"gpu0": str(tmp_path)}
        await on.use(LISTED)
        assert on.owner.store_folders() == {}


async def test_a_client_that_wants_the_cpu_again_and_again_costs_one_restart(tmp_path: Path) -> None:
    async with stage(tmp_path, OWNED) as on:
        await on.running(0)
        await on.falls()
        await on.running(1)
        for _ in range(3):
            on.owner.loaded("gpu0", [WHOLE])
            await on.falls()
            assert on.owner.processes()[0].state is ProcessState.RUNNING
        on.ahead_s = 3601
        on.owner.loaded("gpu0", [WHOLE])
        await on.falls()
        assert on.owner.processes()[0].state is ProcessState.STOPPING, "after long, it is worth another try"


async def test_one_look_at_a_model_on_the_cpu_is_not_enough(tmp_path: Path) -> None:
    async with stage(tmp_path, OWNED) as on:
        await on.running(0)
        await on.sampled()
        on.owner.loaded("gpu0", [ON_CPU])
        on.owner.loaded("gpu0", [ON_CPU])
        assert on.owner.processes()[0].state is ProcessState.RUNNING, "the GPU was not read in between"
        on.owner.loaded("gpu0", [WHOLE])
        await on.sampled()
        on.owner.loaded("gpu0", [ON_CPU])
        assert on.owner.processes()[0].state is ProcessState.RUNNING, "it was whole in between"


async def test_a_gpu_whose_driver_comes_late_is_used_when_it_is_there(tmp_path: Path) -> None:
    async with stage(tmp_path, OWNED.replace("gpus: [0]", "gpus: auto"), awake=False) as on:
        await on.running(0)
        assert on.ids == [("cpu", False)]
        on.driver.awake = True
        await until(lambda: ("gpu0", False) in on.ids)
        await until(lambda: on.ids == [("gpu0", False)])
        await on.running(0)
