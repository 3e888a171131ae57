"""The survey of NVIDIA's GPUs, through the real binding and ctypes, of machines that the stand-in library plays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.emulator.catalog import GIB
from corral.emulator.nvml import machines, state
from corral.emulator.nvml.build import build
from corral.model import GpuFault, GpuLink, GpuProcess, GpuSurvey, GpuVendor, LinkKind, Throttle
from corral.probes.nvml import NvmlSource
from tests.probes import standin
from tests.probes.standin import fault_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four unequal GPUs."""
    return standin.machine(tmp_path, monkeypatch, machines.four_unequal())


@pytest.fixture
def source(folder: Path) -> Iterator[NvmlSource]:
    source = standin.source(folder)
    yield source
    source.close()


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
