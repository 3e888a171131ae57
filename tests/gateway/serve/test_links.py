"""The way from a child that times copies to the figures of the gateway."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import psutil
import pytest

from corral.emulator.nvml import state
from corral.gateway.serve.gpus import GpuBoard
from corral.gateway.serve.links import Links, measure_links
from corral.gateway.serve.metrics import Metrics
from corral.model import Gpu, GpuSurvey, GpuVendor
from corral.probes.cuda_links import CUDA_LIBRARY
from corral.probes.gpu import NVML_LIBRARY
from tests.gateway.test_app import serving, written
from tests.probes import standin
from tests.probes.fake_ollama import fake_ollama
from tests.probes.test_cuda_links import ALL, Box, library


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "gpus")


def board(*gpus: Gpu) -> GpuBoard:
    made = GpuBoard(lambda: 0.0, 1.0, Metrics())
    made.use(GpuSurvey(gpus))
    made.looked.set()
    return made


def nvidia(box: Box, *numbers: int) -> list[Gpu]:
    return [Gpu(box.uuids[number], number, GpuVendor.NVIDIA, "x", 1) for number in numbers]


async def measured(box: Box, gpus: list[Gpu], deadline_s: float = 30.0) -> Links:
    found: Links = {}
    await measure_links(board(*gpus), found, box.environ(library()), deadline_s)
    return found


async def test_the_figures_are_known_by_the_gpus_labels(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    box.cuda(ALL)
    with caplog.at_level(logging.INFO):
        found = await measured(box, nvidia(box, 0, 1))
    assert found == pytest.approx({("0", "1"): 2.5e-6, ("1", "0"): 3.5e-6}, rel=1e-3)
    assert "links_measured pairs=2" in caplog.text


async def test_without_peer_access_there_is_no_figure_and_one_line_says_why(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    box.cuda({})
    assert await measured(box, nvidia(box, 0, 1, 2)) == {}
    (record,) = caplog.records
    assert "links_not_measured" in record.message
    assert "more=5" in record.message


async def test_other_vendors_parts_of_gpus_and_single_ones_are_not_asked_about(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    box.cuda(ALL)
    split = Gpu(box.uuids[1], 1, GpuVendor.NVIDIA, "x", 1, is_split=True)
    part = Gpu("MIG-1", 1, GpuVendor.NVIDIA, "x", 1, parent_uuid=box.uuids[1])
    with caplog.at_level(logging.INFO):
        assert await measured(box, [*nvidia(box, 0), split, part, Gpu("0", 0, GpuVendor.AMD, "x", 1)]) == {}
    assert "not two NVIDIA GPUs" in caplog.text


async def test_a_driver_that_hangs_is_left_after_a_while_with_what_was_measured_until_then(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    box.cuda({**ALL, "hang.1-0": 1})
    children = {child.pid for child in psutil.Process().children()}
    found = await measured(box, nvidia(box, 0, 1), deadline_s=1.0)
    assert set(found) == {("0", "1")}
    assert "the driver did not answer within 1 s" in caplog.text
    assert {child.pid for child in psutil.Process().children()} == children


async def test_a_gateway_that_ends_meanwhile_leaves_no_child(box: Box) -> None:
    box.cuda({**ALL, "hang.cuInit": 1})
    children = {child.pid for child in psutil.Process().children()}
    task = asyncio.create_task(measured(box, nvidia(box, 0, 1)))
    while len(psutil.Process().children()) == len(children):
        await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert {child.pid for child in psutil.Process().children()} == children


async def test_it_waits_until_the_gpus_are_known(box: Box) -> None:
    box.cuda(ALL)
    waiting, found = GpuBoard(lambda: 0.0, 1.0, Metrics()), Links()
    task = asyncio.create_task(measure_links(waiting, found, box.environ(library())))
    await asyncio.sleep(0)
    assert not task.done()
    waiting.use(GpuSurvey(tuple(nvidia(box, 0, 1))))
    waiting.looked.set()
    await task
    assert set(found) == {("0", "1"), ("1", "0")}


async def test_only_the_gpus_asked_for_are_shown_to_the_child(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a program in Python's place that notes what it is given."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $*" > {tmp_path}/said\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    await measure_links(board(*nvidia(box, 0, 2)), {}, {"CUDA_VISIBLE_DEVICES": "none", **_path()})
    asked = f"{box.uuids[0]},{box.uuids[2]} -m corral.probes.cuda_links {box.uuids[0]} {box.uuids[2]}"
    assert (tmp_path / "said").read_text().strip() == asked


def _path() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], state.VARIABLE: "/nowhere"}


async def test_a_gateway_that_is_to_measures_once_it_knows_its_gpus(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.cuda(ALL)
    for name, value in {
        NVML_LIBRARY: standin.library(),
        CUDA_LIBRARY: library(),
        state.VARIABLE: str(box.folder),
    }.items():
        monkeypatch.setenv(name, value)
    async with fake_ollama() as ollama:
        path = written(tmp_path / "corral.yaml", ollama, "gpus: [1]", "measure_links: true\n")
        async with serving(path) as (app, _), asyncio.timeout(10):
            while len(app.metrics.link_seconds) < 6:
                await asyncio.sleep(0.01)
            assert app.metrics.link_seconds["1", "0"] == pytest.approx(3.5e-6, rel=1e-3)
