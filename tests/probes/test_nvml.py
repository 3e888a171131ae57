"""NVIDIA's GPUs, read through the real binding and ctypes from the stand-in for NVIDIA's library."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.emulator.catalog import GIB
from corral.emulator.nvml import machines, state
from corral.model import GpuFault, GpuProcess, Throttle
from corral.probes.gpu import GpuReadError
from corral.probes.nvml import NvmlSource
from tests.probes import standin
from tests.probes.standin import fault_of

SENSORS = {
    "utilisation": "utilisation_ratio",
    "memory_used": "memory_used_bytes",
    "temperature": "temperature_celsius",
    "slowdown": "slowdown_celsius",
    "power_mw": "power_watts",
    "power_limit_mw": "power_limit_watts",
    "energy_mj": "energy_joules",
    "sm_clock": "sm_clock_hz",
    "max_sm_clock": "max_sm_clock_hz",
    "throttle": "throttles",
    "ecc_errors": "uncorrected_ecc_errors",
    "processes": "processes",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four unequal GPUs."""
    return standin.machine(tmp_path, monkeypatch, machines.four_unequal())


@pytest.fixture
def source(folder: Path) -> Iterator[NvmlSource]:
    source = standin.source(folder)
    yield source
    source.close()


# -- readings ---------------------------------------------------------------------------------------------------------


def test_a_reading_has_every_sensor_in_the_units_of_a_sample(source: NvmlSource, folder: Path) -> None:
    values = {"utilisation": 71, "memory_used": 5 * GIB, "temperature": 66, "power_mw": 300_500}
    state.update(folder, "gpu0", **values, energy_mj=9_000, sm_clock=2500, throttle=0x24, ecc_mode=1, ecc_errors=2)
    state.update(folder, "gpu0", processes="4001:100 4002:-")
    source.survey()
    sample = source.read(standin.uuids(folder, 1)[0], 12.5)
    assert sample.taken_at_s == 12.5
    assert sample.utilisation_ratio == pytest.approx(0.71)
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (5 * GIB, 24 * GIB)
    assert (sample.temperature_celsius, sample.slowdown_celsius) == (66, 90)
    assert sample.power_watts == pytest.approx(300.5)
    assert sample.power_limit_watts == pytest.approx(450)
    assert sample.energy_joules == pytest.approx(9)
    assert sample.sm_clock_hz == pytest.approx(2.5e9)
    assert sample.max_sm_clock_hz == pytest.approx(3.105e9)
    assert sample.throttles == frozenset({Throttle.POWER_CAP, Throttle.THERMAL})
    assert sample.uncorrected_ecc_errors == 2
    assert sample.processes == (GpuProcess(4001, 100), GpuProcess(4002, None))


def test_each_reading_shows_what_is_so_now(source: NvmlSource, folder: Path) -> None:
    source.survey()
    uuid = standin.uuids(folder, 1)[0]
    for at_s, percent in enumerate((0, 100, 40)):
        state.update(folder, "gpu0", utilisation=percent, temperature=30 + percent // 2)
        sample = source.read(uuid, float(at_s))
        assert sample.utilisation_ratio == pytest.approx(percent / 100)
        assert sample.temperature_celsius == 30 + percent // 2


def test_limits_are_read_again_only_now_and_then(source: NvmlSource, folder: Path) -> None:
    source.survey()
    uuid = standin.uuids(folder, 1)[0]
    assert source.read(uuid, 0.0).power_limit_watts == pytest.approx(450)
    state.update(folder, "gpu0", power_limit_mw=300_000)
    assert source.read(uuid, 1.0).power_limit_watts == pytest.approx(450)
    assert source.read(uuid, 31.0).power_limit_watts == pytest.approx(300)


def test_what_the_driver_keeps_for_itself_is_not_counted_as_used(source: NvmlSource, folder: Path) -> None:
    state.update(folder, "gpu0", memory_used=GIB, memory_reserved=GIB // 2)
    source.survey()
    assert source.read(standin.uuids(folder, 1)[0], 0.0).memory_used_bytes == GIB


@pytest.mark.parametrize(("key", "field"), SENSORS.items())
def test_a_sensor_that_a_gpu_lacks_is_unknown_and_never_zero(
    key: str, field: str, source: NvmlSource, folder: Path
) -> None:
    state.update(folder, "gpu0", ecc_mode=1, ecc_errors=0, processes="4001:100")
    uuid = standin.uuids(folder, 1)[0]
    source.survey()
    assert getattr(source.read(uuid, 0.0), field) is not None
    state.update(folder, "gpu0", unsupported=key)
    whole, without = source.read(uuid, 400.0), source.read(uuid, 401.0)
    assert getattr(whole, field) is None
    assert getattr(without, field) is None
    lacking = {name for name in SENSORS.values() if getattr(without, name) is None}
    assert lacking == {field}


def test_a_sensor_that_comes_back_is_found_again(source: NvmlSource, folder: Path) -> None:
    uuid = standin.uuids(folder, 1)[0]
    state.update(folder, "gpu0", unsupported="power_mw")
    source.survey()
    assert source.read(uuid, 0.0).power_watts is None
    state.update(folder, "gpu0", unsupported=None)
    assert source.read(uuid, 1.0).power_watts is None
    assert source.read(uuid, 301.0).power_watts is not None


def test_a_gpu_without_any_sensor_is_a_failed_reading_not_an_idle_gpu(source: NvmlSource, folder: Path) -> None:
    source.survey()
    state.update(folder, "gpu0", unsupported=",".join(SENSORS))
    assert fault_of(source, standin.uuids(folder, 1)[0]) is GpuFault.FAILED


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_lost_gpu_fails_alone_and_is_read_again_when_it_is_back(source: NvmlSource, folder: Path) -> None:
    source.survey()
    uuids = standin.uuids(folder, 4)
    for uuid in uuids:
        source.read(uuid, 0.0)
    state.lose(folder, 1)
    for at_s in range(1, 8):
        assert fault_of(source, uuids[1], at_s) is GpuFault.LOST
        assert [source.read(uuid, at_s).temperature_celsius for uuid in (uuids[0], *uuids[2:])] == [33] * 3
    state.find(folder, 1)
    assert source.read(uuids[1], 8.0).temperature_celsius == 33


def test_a_gpu_that_the_driver_no_longer_lists_is_lost(source: NvmlSource, folder: Path) -> None:
    source.survey()
    uuids = standin.uuids(folder, 4)
    (folder / "gpu3").rename(folder / "aside")
    assert fault_of(source, uuids[3]) is GpuFault.LOST
    assert source.read(uuids[0], 0.0).temperature_celsius == 33
    (folder / "aside").rename(folder / "gpu3")
    assert source.read(uuids[3], 1.0).temperature_celsius == 33


def test_an_unknown_error_of_every_sensor_fails_the_reading_with_its_text(source: NvmlSource, folder: Path) -> None:
    source.survey()
    uuid = standin.uuids(folder, 1)[0]
    source.read(uuid, 0.0)
    state.update(folder, "gpu0", error=999)
    with pytest.raises(GpuReadError, match="Unknown") as caught:
        source.read(uuid, 1.0)
    assert caught.value.fault is GpuFault.FAILED


def test_a_call_that_hangs_holds_up_no_other_gpus_reading(source: NvmlSource, folder: Path) -> None:
    source.survey()
    uuids, found = standin.uuids(folder, 4), list[float | None]()
    state.hang(folder, 0)
    thread = threading.Thread(target=lambda: found.append(source.read(uuids[0], 0.0).temperature_celsius), daemon=True)
    thread.start()
    for at_s in range(20):
        for uuid in uuids[1:]:
            assert source.read(uuid, at_s).temperature_celsius == 33
    source.close()  # leaves the driver alone, as a call is still in it
    assert thread.is_alive()
    state.hang(folder, 0, hangs=False)
    thread.join(10)
    assert found == [33]


def test_after_a_restart_of_the_driver_it_is_initialised_again(source: NvmlSource, folder: Path) -> None:
    source.survey()
    uuid = standin.uuids(folder, 1)[0]
    assert source.read(uuid, 0.0).temperature_celsius == 33
    assert ctypes.CDLL(standin.library()).nvmlShutdown() == 0
    assert fault_of(source, uuid, 1.0) is GpuFault.FAILED
    assert source.read(uuid, 2.0).temperature_celsius == 33


def test_a_driver_that_is_away_is_asked_again_ever_less_often(source: NvmlSource, folder: Path) -> None:
    source.survey()
    uuid = standin.uuids(folder, 1)[0]
    state.update(folder, "machine", init_error=9)
    assert fault_of(source, uuid, 0.0) is GpuFault.FAILED
    with pytest.raises(GpuReadError, match="kernel module"):
        source.read(uuid, 1.0)  # tried, and again from 6 s and 16 s on
    state.update(folder, "machine", init_error=0)
    assert fault_of(source, uuid, 5.0) is GpuFault.FAILED
    assert source.read(uuid, 6.0).temperature_celsius == 33


def test_a_survey_after_a_restart_of_the_driver_finds_the_gpus(source: NvmlSource) -> None:
    assert len(source.survey().gpus) == 4
    assert ctypes.CDLL(standin.library()).nvmlShutdown() == 0
    assert len(source.survey().gpus) == 4


def test_each_xid_is_told_once_and_of_its_gpu(source: NvmlSource, folder: Path) -> None:
    source.survey()
    uuids = standin.uuids(folder, 4)
    assert source.xids() == ()
    for uuid in uuids:
        source.read(uuid, 0.0)
    assert source.xids() == ()
    state.report(folder, 0, 31)
    state.lose(folder, 2)
    assert source.xids() == ((uuids[0], 31), (uuids[2], 79))
    assert source.xids() == ()


def test_a_closed_source_can_be_surveyed_and_closed_again(source: NvmlSource) -> None:
    source.survey()
    for _ in range(2):
        source.close()
    assert len(source.survey().gpus) == 4


def test_processes_of_an_emulator_count_with_those_of_strangers(source: NvmlSource, folder: Path) -> None:
    own = os.getpid()
    state.update(folder, "gpu0", processes="4001:100", memory_used=100)
    state.write_file(folder / "gpu0.live", {"writer": own, "processes": f"{own}:30", "memory_used": 30})
    source.survey()
    sample = source.read(standin.uuids(folder, 1)[0], 0.0)
    assert sample.memory_used_bytes == 130
    assert sample.processes == tuple(sorted((GpuProcess(4001, 100), GpuProcess(own, 30)), key=lambda one: one.pid))
