"""NVIDIA's GPUs, read through the real binding and ctypes from the stand-in for NVIDIA's library."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.emulator.catalog import GIB
from corral.emulator.nvml import machines, state
from corral.emulator.nvml.build import build
from corral.model import GpuFault, GpuLink, GpuProcess, GpuSurvey, GpuVendor, LinkKind, Throttle
from corral.probes.gpu import GpuReadError
from corral.probes.nvml import NvmlSource
from tests.probes import standin

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


def fault_of(source: NvmlSource, uuid: str, at_s: float = 0.0) -> GpuFault:
    with pytest.raises(GpuReadError) as caught:
        source.read(uuid, at_s)
    return caught.value.fault


def survey_of(folder: Path, *gpus: state.StandinGpu) -> GpuSurvey:
    """What is found on a machine of these GPUs."""
    state.write_machine(folder, gpus)
    source = standin.source(folder)
    try:
        return source.survey()
    finally:
        source.close()


# -- the survey -------------------------------------------------------------------------------------------------------


def test_the_survey_tells_who_and_where_each_gpu_is(source: NvmlSource, folder: Path) -> None:
    survey = source.survey()
    assert (survey.driver_version, survey.cuda_version, survey.problems) == ("570.86.15", "12.8", ())
    assert [gpu.uuid for gpu in survey.gpus] == standin.uuids(folder, 4)
    assert [gpu.index for gpu in survey.gpus] == [0, 1, 2, 3]
    first, *_, last = survey.gpus
    assert (first.vendor, first.name) == (GpuVendor.NVIDIA, "NVIDIA GeForce RTX 4090")
    assert (first.memory_bytes, first.unified_memory) == (24 * GIB, False)
    assert (first.pci_bus_id, last.pci_bus_id) == ("00000000:01:00.0", "00000000:04:00.0")
    assert (first.numa_node, last.numa_node) == (0, 1)
    assert (first.cpus, last.cpus) == (tuple(range(16)), tuple(range(16, 32)))
    assert first.compute_capability == (8, 9)
    assert first.memory_bandwidth_bytes_s == pytest.approx(1008e9, rel=0.01)
    assert (first.persistence_mode, first.ecc, first.is_split, first.parent_uuid) == (True, None, False, None)


def test_the_kernels_word_on_node_and_cpus_goes_before_the_drivers(source: NvmlSource, folder: Path) -> None:
    device = folder / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    for name, text in {"vendor": "0x10de", "numa_node": "3", "local_cpulist": "4-5,9"}.items():
        (device / name).write_text(text + "\n")
    first, second, *_ = source.survey().gpus
    assert (first.numa_node, first.cpus) == (3, (4, 5, 9))
    assert (second.numa_node, second.cpus) == (0, tuple(range(16)))


def test_no_library_is_no_gpu_and_no_problem(tmp_path: Path) -> None:
    code = "from corral.probes.nvml import NvmlSource; print(NvmlSource().survey())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    if "gpus=()" not in done.stdout:
        pytest.skip("this machine has an NVIDIA driver")
    assert "problems=()" in done.stdout


def test_a_library_that_was_named_and_is_not_there_is_a_problem(tmp_path: Path) -> None:
    survey = NvmlSource(str(tmp_path / "none.so")).survey()
    assert survey.gpus == ()
    assert "cannot be loaded" in survey.problems[0]


@pytest.mark.parametrize(
    ("code", "says"), [(18, "different versions"), (9, "kernel module is not loaded"), (4, "/dev/nvidia"), (999, "999")]
)
def test_a_driver_that_does_not_start_is_a_problem_with_advice(
    code: int, says: str, source: NvmlSource, folder: Path
) -> None:
    state.update(folder, "machine", init_error=code)
    survey = source.survey()
    assert survey.gpus == ()
    assert says in survey.problems[0]
    assert fault_of(source, standin.uuids(folder, 1)[0]) is GpuFault.FAILED
    state.update(folder, "machine", init_error=0)
    assert len(source.survey().gpus) == 4


@pytest.mark.parametrize("code", [15, 16, 999])
def test_a_gpu_that_is_broken_at_the_start_is_left_out_and_named(code: int, source: NvmlSource, folder: Path) -> None:
    state.update(folder, "gpu2", error=code)
    survey = source.survey()
    assert [gpu.index for gpu in survey.gpus] == [0, 1, 3]
    assert len(survey.problems) == 1
    assert survey.problems[0].startswith("GPU 2 is left out")


# -- links ------------------------------------------------------------------------------------------------------------


def links_of(folder: Path, layout: state.Machine) -> dict[tuple[int, int], GpuLink]:
    """The links by the GPUs' numbers."""
    state.write_machine(folder, *layout)
    source = standin.source(folder)
    survey = source.survey()
    source.close()
    index = {gpu.uuid: gpu.index for gpu in survey.gpus}
    return {(index[link.a], index[link.b]): link for link in survey.links}


def test_links_tell_nvlink_with_its_lanes_and_each_level_of_pcie(folder: Path) -> None:
    links = links_of(folder, machines.eight_mixed())
    assert len(links) == 8 * 7 // 2
    found = {pair: (link.kind, link.lanes, link.peer_to_peer) for pair, link in links.items()}
    assert found[0, 1] == (LinkKind.NVLINK, 12, True)
    assert found[2, 3] == (LinkKind.NVLINK, 4, True)
    assert found[4, 5] == (LinkKind.PCIE_SWITCH, None, True)
    assert found[6, 7] == (LinkKind.HOST_BRIDGE, None, False)
    assert found[1, 2] == (LinkKind.NUMA_NODE, None, False)
    assert found[3, 4] == (LinkKind.SYSTEM, None, False)


@pytest.mark.parametrize(
    ("kind", "level"),
    [("board", LinkKind.SAME_BOARD), ("switches", LinkKind.PCIE_SWITCHES), ("system", LinkKind.SYSTEM)],
)
def test_the_level_at_which_two_gpus_meet_is_named(kind: str, level: LinkKind, folder: Path) -> None:
    gpus, _ = machines.alike(2)
    links = links_of(folder, (gpus, (state.StandinLink(0, 1, kind),)))
    assert links[0, 1].kind is level


def test_through_nvswitches_every_gpu_reaches_every_other_by_nvlink(folder: Path) -> None:
    links = links_of(folder, machines.nvswitch(8))
    assert len(links) == 28
    assert {link.kind for link in links.values()} == {LinkKind.NVLINK}


def test_gpus_whose_driver_tells_nothing_of_nvlink_meet_over_pcie(folder: Path) -> None:
    state.write_machine(folder, *machines.nvlink_pairs(2))
    state.update(folder, "gpu0", unsupported="nvlink")
    source = standin.source(folder)
    survey = source.survey()
    source.close()
    kinds = [link.kind for link in survey.links]
    assert (len(kinds), kinds.count(LinkKind.NVLINK)) == (6, 1)


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


# -- odd GPUs ---------------------------------------------------------------------------------------------------------


def test_mig_devices_stand_beside_their_gpu_with_their_own_memory(folder: Path) -> None:
    state.write_machine(folder, *machines.split_by_mig())
    source = standin.source(folder)
    survey = source.survey()
    whole, *parts, other = survey.gpus
    assert (whole.is_split, whole.parent_uuid, other.is_split) == (True, None, False)
    assert [part.uuid for part in parts] == [state.uuid_of(folder, f"gpu0.mig{slot}") for slot in range(3)]
    assert [part.memory_bytes for part in parts] == [40 * GIB, 20 * GIB, 20 * GIB]
    assert {(part.parent_uuid, part.index, part.is_split) for part in parts} == {(whole.uuid, 0, False)}
    assert whole.memory_bandwidth_bytes_s is not None
    assert parts[0].memory_bandwidth_bytes_s == pytest.approx(whole.memory_bandwidth_bytes_s / 2)
    assert [(link.a, link.b) for link in survey.links] == [(whole.uuid, other.uuid)]
    state.update(folder, "gpu0.mig1", memory_used=3 * GIB)
    sample = source.read(parts[1].uuid, 0.0)
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (3 * GIB, 20 * GIB)
    assert (sample.utilisation_ratio, sample.power_watts) == (None, None)
    sample = source.read(whole.uuid, 0.0)
    assert (sample.utilisation_ratio, sample.temperature_celsius) == (None, 33)
    source.close()


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("NVIDIA GB10", {"memory_total": None}),
        ("NVIDIA Graphics Device", {"memory_total": 0}),
        ("Orin (nvgpu)", {"memory_total": 32 * GIB}),
        ("NVIDIA Thor", {"unsupported": "memory_used"}),
    ],
)
def test_the_hosts_memory_is_not_counted_as_the_gpus(name: str, keys: dict[str, state.Value], folder: Path) -> None:
    gpu = survey_of(folder, state.StandinGpu("RTX 4090 24GB", keys={"name": name, **keys})).gpus[0]
    assert (gpu.memory_bytes, gpu.unified_memory) == (None, True)
    source = standin.source(folder)
    sample = source.read(gpu.uuid, 0.0)
    source.close()
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (None, None)
    assert sample.utilisation_ratio == 0


def test_a_grace_hopper_chip_has_the_memory_it_says(folder: Path) -> None:
    gpu = survey_of(folder, state.StandinGpu("H100 SXM 80GB", keys={"name": "NVIDIA GH200 480GB"})).gpus[0]
    assert (gpu.memory_bytes, gpu.unified_memory) == (80 * GIB, False)


def test_an_old_drivers_library_is_asked_by_the_older_names(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    newer = (
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlSystemGetCudaDriverVersion_v2",
        "nvmlDeviceGetTotalEnergyConsumption",
    )
    old = build(tmp_path_factory.mktemp("old"), without=newer)
    state.update(folder, "gpu0", processes="4001:100", throttle=0x8, memory_used=GIB)
    source = NvmlSource(str(old), sysfs=folder / "sys")
    survey = source.survey()
    sample = source.read(survey.gpus[0].uuid, 0.0)
    source.close()
    assert survey.cuda_version == "12.8"
    assert sample.throttles == frozenset({Throttle.HARDWARE})
    assert sample.memory_used_bytes == GIB
    assert sample.power_limit_watts == pytest.approx(450)
    assert sample.processes == (GpuProcess(4001, 100),)
    assert (sample.energy_joules, sample.temperature_celsius) == (None, 33)


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
