"""On a real NVIDIA GPU: what Corral finds and reads agrees with what `nvidia-smi` says."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from statistics import median

import pytest

from corral.model import GpuSample, GpuSurvey
from corral.probes.nvml import NvmlSource
from corral.probes.reader import survey_now

MIB = 2**20
ROUNDS = 10
ROUND_S = 0.5
"""For all GPUs, generously: one takes some milliseconds."""


def asked(fields: str) -> list[list[str]]:
    """One row of values for each GPU, as nvidia-smi prints them; none where it cannot."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    line = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    rows = [[value.strip() for value in row.split(",")] for row in done.stdout.splitlines() if row.strip()]
    return [] if done.returncode else rows


def real_library() -> str | None:
    """Where the driver's library is: under its bare name the loader would give the stand-in of other tests again."""
    program = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if program is None:
        return None
    listed = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=60, check=False).stdout
    return next((line.split()[-1] for line in listed.splitlines() if line.split()[:1] == ["libnvidia-ml.so.1"]), None)


@pytest.fixture(scope="module")
def source() -> Iterator[NvmlSource]:
    opened = NvmlSource(real_library())
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def survey(source: NvmlSource) -> GpuSurvey:
    """Skips where no driver answers; a driver that nvidia-smi reaches must answer here, too."""
    found = survey_now([source], 60)
    if not found.gpus and not asked("uuid"):
        pytest.skip(f"no NVIDIA driver answers here. {' '.join(found.problems)}".strip())
    return found


@pytest.mark.gpu
def test_the_survey_agrees_with_nvidia_smi(survey: GpuSurvey) -> None:
    rows = asked("uuid,name,memory.total,pci.bus_id,driver_version")
    if not rows:
        pytest.skip("nvidia-smi is not installed, or fails")
    whole = [gpu for gpu in survey.gpus if gpu.parent_uuid is None]
    assert [gpu.uuid for gpu in whole] == [row[0] for row in rows]
    for gpu, (_, name, total, bus_id, driver) in zip(whole, rows, strict=True):
        assert (gpu.name, gpu.pci_bus_id, survey.driver_version) == (name, bus_id, driver)
        assert _mib(gpu.memory_bytes) == pytest.approx(_number(total), abs=1)


@pytest.mark.gpu
def test_each_pair_of_gpus_has_one_link(survey: GpuSurvey) -> None:
    whole = [gpu.uuid for gpu in survey.gpus if gpu.parent_uuid is None]
    pairs = [(link.a, link.b) for link in survey.links]
    assert pairs == [(a, b) for number, a in enumerate(whole) for b in whole[number + 1 :]]


@pytest.mark.gpu
def test_samples_agree_with_nvidia_smi(source: NvmlSource, survey: GpuSurvey) -> None:
    for uuid, temperature, used, power, limit, clock in asked(
        "uuid,temperature.gpu,memory.used,power.draw,enforced.power.limit,clocks.max.sm"
    ):
        sample = source.read(uuid, time.monotonic())
        print(f"\n{sample}")  # noqa: T201 - shown by `pytest -s -m gpu`
        assert sample.temperature_celsius == _near(temperature, abs=5)
        assert _mib(sample.memory_used_bytes) == _near(used, rel=0.05, abs=64)
        assert sample.power_watts == _near(power, rel=0.3, abs=15)
        assert sample.power_limit_watts == _near(limit, abs=1)
        assert _scaled(sample.max_sm_clock_hz, 1e-6) == _near(clock, abs=1)
        assert sample.utilisation_ratio is None or 0 <= sample.utilisation_ratio <= 1


@pytest.mark.gpu
def test_a_round_over_all_gpus_is_quick(source: NvmlSource, survey: GpuSurvey) -> None:
    _round(source, survey)  # the first asks for what does not change, too
    took_s = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        _round(source, survey)
        source.xids()
        took_s.append(time.perf_counter() - began_s)
    took = f"{median(took_s) * 1e3:.2f} ms, longest {max(took_s) * 1e3:.2f} ms"
    print(f"\none round over {len(survey.gpus)} GPUs: {took}")  # noqa: T201
    assert median(took_s) < ROUND_S


def _round(source: NvmlSource, survey: GpuSurvey) -> list[GpuSample]:
    return [source.read(gpu.uuid, time.monotonic()) for gpu in survey.gpus]


def _number(text: str) -> float | None:
    """A figure of nvidia-smi; it has many words for one that is not there."""
    try:
        return float(text)
    except ValueError:
        return None


def _near(text: str, rel: float | None = None, abs: float | None = None) -> object:
    number = _number(text)
    return None if number is None else pytest.approx(number, rel=rel, abs=abs)


def _mib(size_bytes: int | None) -> float | None:
    return _scaled(size_bytes, 1 / MIB)


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit
