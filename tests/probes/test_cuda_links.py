"""Copies between GPUs, timed through the real ctypes path by a stand-in for NVIDIA's driver."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from corral.emulator.nvml import state
from corral.emulator.nvml.build import CUDA, build
from corral.probes.cuda_links import CUDA_LIBRARY

GPUS = (state.StandinGpu("RTX 4090 24GB"), state.StandinGpu("RTX 3090 24GB"), state.StandinGpu("RTX 3090 24GB"))
ALL: dict[str, state.Value] = {"0-1": 2.5, "1-0": 3.5, "0-2": 10, "2-0": 10, "1-2": 12, "2-1": 12}


@functools.cache
def library(without: tuple[str, ...] = ()) -> str:
    folder = tempfile.mkdtemp(prefix="corral-cuda-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(build(Path(folder), without, CUDA))


class Box:
    """A machine with three GPUs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        state.write_machine(folder, GPUS)
        self.uuids = [state.uuid_of(folder, f"gpu{number}") for number in range(len(GPUS))]

    def cuda(self, values: dict[str, state.Value]) -> None:
        state.write_file(self.folder / "cuda", values)

    def environ(self, library: str) -> dict[str, str]:
        return {**os.environ, state.VARIABLE: str(self.folder), CUDA_LIBRARY: library}

    def measured(self, *uuids: str, with_library: str | None = None) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "corral.probes.cuda_links", *(uuids or self.uuids)],
            env=self.environ(with_library or library()),
            capture_output=True,
            timeout=30,
            check=True,
        )
        assert done.stderr == b""
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "gpus")


def problems(lines: list[dict[str, Any]]) -> list[str]:
    return [line["problem"] for line in lines if "problem" in line]


def seconds(box: Box, lines: list[dict[str, Any]]) -> dict[tuple[int, int], float]:
    number = {uuid: place for place, uuid in enumerate(box.uuids)}
    return {(number[line["a"]], number[line["b"]]): line["seconds"] for line in lines if "seconds" in line}


def test_each_pair_is_measured_in_each_direction_and_a_disturbed_copy_does_not_count(box: Box) -> None:
    box.cuda(ALL)
    lines = box.measured()
    assert problems(lines) == []
    expected = {(0, 1): 2.5e-6, (1, 0): 3.5e-6, (0, 2): 1e-5, (2, 0): 1e-5, (1, 2): 1.2e-5, (2, 1): 1.2e-5}
    assert seconds(box, lines) == pytest.approx(expected, rel=1e-3)


def test_a_pair_without_peer_access_has_no_figure_and_the_others_have(box: Box) -> None:
    box.cuda({"0-1": 2.5, "1-0": 2.5})
    lines = box.measured()
    assert set(seconds(box, lines)) == {(0, 1), (1, 0)}
    assert len(problems(lines)) == 4
    assert "cannot reach" in problems(lines)[0]


def test_only_gpus_that_were_asked_for_are_used(box: Box) -> None:
    box.cuda(ALL)
    lines = box.measured(box.uuids[0], box.uuids[2], "GPU-none")
    assert set(seconds(box, lines)) == {(0, 2), (2, 0)}
    assert problems(lines) == ["GPU-none: the driver shows no such GPU"]


def test_without_the_library_nothing_is_measured(box: Box) -> None:
    (problem,) = problems(box.measured(with_library="/nowhere/libcuda.so.1"))
    assert "/nowhere/libcuda.so.1 cannot be loaded" in problem


@pytest.mark.parametrize(
    ("function", "count"), [("cuInit", 1), ("cuDeviceGetCount", 1), ("cuCtxCreate_v2", 1), ("cuMemcpyPeerAsync", 6)]
)
def test_an_error_of_the_driver_is_named(box: Box, function: str, count: int) -> None:
    box.cuda({**ALL, f"error.{function}": 999})
    lines = box.measured()
    assert seconds(box, lines) == {}
    assert len(problems(lines)) == count
    assert f"{function} failed: CUDA_ERROR_UNKNOWN (999)" in problems(lines)[0]


def test_an_error_without_a_name_is_said_by_its_number(box: Box) -> None:
    box.cuda({**ALL, "error.cuInit": 35})
    assert problems(box.measured()) == ["cuInit failed: error 35"]


def test_a_driver_without_a_function_is_named(box: Box) -> None:
    box.cuda(ALL)
    lines = box.measured(with_library=library(("cuDeviceGetUuid",)))
    assert problems(lines) == ["this driver has no cuDeviceGetUuid"]
