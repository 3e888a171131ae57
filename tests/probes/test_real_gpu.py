"""On a machine with an NVIDIA GPU: what the probe reads of it agrees with what ``nvidia-smi`` prints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

# by a process of its own: here another test may have loaded a library that stands in for NVIDIA's
PROBE = """
import dataclasses, json, os, time
from corral.probes.nvml import NvmlSource
from corral.probes.reader import survey_now
source = NvmlSource(os.environ.get("CORRAL_NVML_LIBRARY"))
survey = survey_now([source])
whole = [gpu for gpu in survey.gpus if gpu.parent_uuid is None]
samples = [source.read(gpu.uuid, time.monotonic()) for gpu in whole]
found = {"gpus": whole, "samples": samples}
found = {name: [dataclasses.asdict(one) for one in ones] for name, ones in found.items()}
print(json.dumps(found | {"driver": survey.driver_version, "problems": survey.problems}, default=str), flush=True)
os._exit(0)  # also while the driver hangs
"""
COLUMNS = (
    "uuid",
    "name",
    "memory.total",
    "pci.bus_id",
    "temperature.gpu",
    "memory.used",
    "power.draw",
    "driver_version",
)
MIB = 1 << 20


@pytest.fixture(scope="module")
def probed() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    if not found["gpus"]:
        pytest.skip(f"no NVIDIA GPU answers here: {' '.join(found['problems']) or 'no driver'}")
    return found


@pytest.fixture(scope="module")
def printed(probed: dict[str, Any]) -> list[dict[str, str]]:
    """nvidia-smi's table, a GPU a row."""
    program = shutil.which("nvidia-smi")
    if program is None:
        pytest.skip("no nvidia-smi to compare with")
    line = [program, f"--query-gpu={','.join(COLUMNS)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    rows = [row.split(", ") for row in done.stdout.splitlines()]
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def number(text: str) -> float | None:
    """None for ``[N/A]``, ``[Not Supported]`` and the like."""
    try:
        return float(text)
    except ValueError:
        return None


def test_the_survey_agrees_with_nvidia_smi(probed: dict[str, Any], printed: list[dict[str, str]]) -> None:
    assert [gpu["uuid"] for gpu in probed["gpus"]] == [row["uuid"] for row in printed]
    assert probed["driver"] == printed[0]["driver_version"]
    for gpu, row in zip(probed["gpus"], printed, strict=True):
        assert gpu["name"] == row["name"]
        assert gpu["pci_bus_id"].lower() == row["pci.bus_id"].lower()
        total = number(row["memory.total"])
        if gpu["unified_memory"]:
            assert gpu["memory_bytes"] is None
        else:
            assert total is not None
            assert gpu["memory_bytes"] == pytest.approx(total * MIB, abs=MIB)


def test_readings_agree_with_nvidia_smi(probed: dict[str, Any], printed: list[dict[str, str]]) -> None:
    for sample, row in zip(probed["samples"], printed, strict=True):
        celsius, used, watts = (number(row[name]) for name in ("temperature.gpu", "memory.used", "power.draw"))
        assert (sample["temperature_celsius"] is None) == (celsius is None)
        if celsius is not None:
            assert sample["temperature_celsius"] == pytest.approx(celsius, abs=5)
        if used is not None and sample["memory_used_bytes"] is not None:
            assert abs(sample["memory_used_bytes"] - used * MIB) <= 0.05 * used * MIB + 64 * MIB
        if watts is not None:
            assert sample["power_watts"] == pytest.approx(watts, rel=0.3)


def test_a_reading_of_a_real_gpu_lacks_little(probed: dict[str, Any]) -> None:
    for sample in probed["samples"]:
        assert 0 <= (sample["utilisation_ratio"] or 0) <= 1
        assert sample["sm_clock_hz"] is not None
        assert sample["throttles"] is not None
