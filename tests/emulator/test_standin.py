"""The stand-in for NVIDIA's library, called as a monitor calls the real one: through ``pynvml`` and ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.emulator.catalog import GIB
from corral.emulator.nvml import build as building
from corral.emulator.nvml import machines, state
from corral.emulator.nvml.boards import BOARDS, spec_of
from corral.emulator.nvml.build import LIBRARY, build
from corral.errors import OperatorError


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four unequal GPUs."""
    monkeypatch.setenv(state.VARIABLE, str(tmp_path))
    state.write_machine(tmp_path, *machines.four_unequal())
    return tmp_path


@pytest.fixture
def nvml(library: Path, folder: Path) -> Iterator[Any]:
    module = loaded(library)
    module.nvmlInit()
    yield module
    module.nvmlShutdown()


def loaded(library: Path) -> Any:
    """A ``pynvml`` of its own: the module remembers the functions it has found."""
    spec = importlib.util.find_spec("pynvml")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    # it looks itself up by its name while it is loaded
    before = sys.modules.get("pynvml")
    sys.modules["pynvml"] = module
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules["pynvml"]
        else:
            sys.modules["pynvml"] = before
    module.nvmlLib = ctypes.CDLL(str(library))
    return module


def error_of(call: Callable[[], object], nvml: Any) -> int:
    with pytest.raises(nvml.NVMLError) as caught:
        call()
    return int(caught.value.value)


def handles(nvml: Any) -> list[Any]:
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]


def address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


# -- what it says -----------------------------------------------------------------------------------------------------


def test_a_gpu_says_who_it_is(nvml: Any, folder: Path) -> None:
    assert (nvml.nvmlSystemGetDriverVersion(), nvml.nvmlSystemGetCudaDriverVersion_v2()) == ("570.86.15", 12080)
    first, second, *_ = handles(nvml)
    assert nvml.nvmlDeviceGetName(first) == "NVIDIA GeForce RTX 4090"
    assert nvml.nvmlDeviceGetUUID(first) == state.uuid_of(folder, "gpu0")
    assert nvml.nvmlDeviceGetPciInfo(second).busId == "00000000:02:00.0"
    assert (nvml.nvmlDeviceGetIndex(second), nvml.nvmlDeviceGetMinorNumber(second)) == (1, 1)
    assert nvml.nvmlDeviceGetCudaComputeCapability(first) == (8, 9)
    assert address(nvml.nvmlDeviceGetHandleByUUID(state.uuid_of(folder, "gpu1").encode())) == address(second)
    assert address(nvml.nvmlDeviceGetHandleByPciBusId(b"0000:02:00.0")) == address(second)
    assert error_of(lambda: nvml.nvmlDeviceGetHandleByIndex(4), nvml) == nvml.NVML_ERROR_INVALID_ARGUMENT
    assert error_of(lambda: nvml.nvmlDeviceGetHandleByUUID(b"GPU-none"), nvml) == nvml.NVML_ERROR_NOT_FOUND


def test_every_value_follows_its_file_at_once(nvml: Any, folder: Path) -> None:
    handle = handles(nvml)[0]
    state.update(folder, "gpu0", utilisation=71, temperature=80, power_mw=300_500, sm_clock=2500, throttle=0x24)
    assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 71
    assert nvml.nvmlDeviceGetTemperature(handle, 0) == nvml.nvmlDeviceGetTemperatureV(handle, 0) == 80
    assert nvml.nvmlDeviceGetTemperatureThreshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN) == 90
    assert nvml.nvmlDeviceGetPowerUsage(handle) == 300_500
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(handle) == nvml.nvmlDeviceGetPowerManagementLimit(handle) == 450_000
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == 2500
    assert nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) == 3105
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == 0x24
    assert nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == 0x24
    state.update(folder, "gpu0", temperature=40)
    assert nvml.nvmlDeviceGetTemperature(handle, 0) == 40


def test_the_memory_clock_and_the_bus_give_the_bandwidth_of_the_catalog(nvml: Any) -> None:
    handle = handles(nvml)[0]
    clock_hz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1e6
    assert 2 * clock_hz * nvml.nvmlDeviceGetMemoryBusWidth(handle) / 8 == pytest.approx(1008e9, rel=0.001)


def test_memory_is_told_with_and_without_what_the_driver_keeps(nvml: Any, folder: Path) -> None:
    handle = handles(nvml)[0]
    state.update(folder, "gpu0", memory_used=5 * GIB, memory_reserved=GIB)
    old, new = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    assert (old.total, old.used, old.free) == (24 * GIB, 6 * GIB, 18 * GIB)
    assert (new.total, new.used, new.free, new.reserved) == (24 * GIB, 5 * GIB, 18 * GIB, GIB)


def test_a_sensor_that_is_not_there_is_not_supported_and_the_others_are(nvml: Any, folder: Path) -> None:
    handle = handles(nvml)[0]
    state.update(folder, "gpu0", unsupported="power_mw,memory_used", sm_clock=None)
    calls: list[Callable[[], object]] = [
        lambda: nvml.nvmlDeviceGetPowerUsage(handle),
        lambda: nvml.nvmlDeviceGetMemoryInfo(handle),
        lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        lambda: nvml.nvmlDeviceGetEccMode(handle),
    ]
    assert {error_of(call, nvml) for call in calls} == {nvml.NVML_ERROR_NOT_SUPPORTED}
    assert nvml.nvmlDeviceGetTemperature(handle, 0) == 33


def test_ecc_errors_numa_node_and_cpus_are_told_where_the_gpu_has_them(nvml: Any, folder: Path) -> None:
    state.write_machine(folder, *machines.eight_mixed())
    state.update(folder, "gpu4", ecc_errors=3, cpus="1,64-66")
    handle = handles(nvml)[4]
    assert nvml.nvmlDeviceGetEccMode(handle) == [1, 1]
    assert [nvml.nvmlDeviceGetTotalEccErrors(handle, kind, 0) for kind in (0, 1)] == [0, 3]
    assert nvml.nvmlDeviceGetRemappedRows(handle) == (0, 0, 0, 0)
    assert nvml.nvmlDeviceGetNumaNodeId(handle) == 1
    assert list(nvml.nvmlDeviceGetMemoryAffinity(handle, 1, 0)) == [2]
    assert list(nvml.nvmlDeviceGetCpuAffinity(handle, 2)) == [2, 7]
    assert nvml.nvmlDeviceGetPersistenceMode(handle) == 1


# -- topology ---------------------------------------------------------------------------------------------------------


def lanes(nvml: Any, handle: Any, other: Any) -> int:
    """As a monitor counts them: one link after another."""
    bus, count = nvml.nvmlDeviceGetPciInfo(other).busId, 0
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            if nvml.nvmlDeviceGetNvLinkState(handle, link):
                count += nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId == bus
        except nvml.NVMLError_NotSupported:
            break
    return count


def test_each_pair_is_linked_as_the_machine_says(nvml: Any, folder: Path) -> None:
    state.write_machine(folder, *machines.eight_mixed())
    gpus = handles(nvml)
    pairs = [(0, 1), (1, 0), (2, 3), (4, 5), (6, 7), (0, 2), (0, 4)]
    levels = [nvml.nvmlDeviceGetTopologyCommonAncestor(gpus[a], gpus[b]) for a, b in pairs]
    assert levels == [10, 10, 40, 10, 30, 40, 50]
    assert [nvml.nvmlDeviceGetP2PStatus(gpus[a], gpus[b], 0) for a, b in pairs] == [0, 0, 0, 0, 5, 5, 5]
    assert [nvml.nvmlDeviceGetP2PStatus(gpus[a], gpus[b], 2) for a, b in pairs] == [0, 0, 0, 5, 5, 5, 5]
    assert [lanes(nvml, gpus[a], gpus[b]) for a, b in pairs] == [12, 12, 4, 0, 0, 0, 0]


def test_behind_nvswitches_the_links_end_at_a_switch(nvml: Any, folder: Path) -> None:
    state.write_machine(folder, *machines.nvswitch())
    gpus = handles(nvml)
    assert lanes(nvml, gpus[0], gpus[1]) == 0
    assert nvml.nvmlDeviceGetNvLinkRemoteDeviceType(gpus[0], 17) == 2
    assert nvml.nvmlDeviceGetP2PStatus(gpus[0], gpus[7], 2) == 0
    assert error_of(lambda: nvml.nvmlDeviceGetNvLinkState(gpus[0], 18), nvml) == nvml.NVML_ERROR_NOT_SUPPORTED


def test_a_divided_gpu_has_its_mig_devices_and_no_utilisation(nvml: Any, folder: Path) -> None:
    state.write_machine(folder, *machines.split_by_mig())
    gpu, other = handles(nvml)
    assert (nvml.nvmlDeviceGetMigMode(gpu), nvml.nvmlDeviceGetMigMode(other)) == ([1, 1], [0, 0])
    assert nvml.nvmlDeviceGetMaxMigDeviceCount(gpu) == 7
    parts = [nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index) for index in range(3)]
    assert error_of(lambda: nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 3), nvml) == nvml.NVML_ERROR_NOT_FOUND
    assert [nvml.nvmlDeviceGetMemoryInfo(part).total for part in parts] == [40 * GIB, 20 * GIB, 20 * GIB]
    assert nvml.nvmlDeviceGetUUID(parts[1]) == state.uuid_of(folder, "gpu0.mig1")
    assert nvml.nvmlDeviceIsMigDeviceHandle(parts[1]).value == 1
    assert address(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(parts[1])) == address(gpu)
    for handle in (gpu, parts[0]):
        code = error_of(lambda handle=handle: nvml.nvmlDeviceGetUtilizationRates(handle), nvml)  # type: ignore[misc]
        assert code == nvml.NVML_ERROR_NOT_SUPPORTED
    assert error_of(lambda: nvml.nvmlDeviceGetPowerUsage(parts[0]), nvml) == nvml.NVML_ERROR_NOT_SUPPORTED


# -- processes and what an emulator on the GPU writes -----------------------------------------------------------------


def test_processes_of_the_emulator_and_of_strangers_are_listed_together(nvml: Any, folder: Path) -> None:
    handle, own = handles(nvml)[0], os.getpid()
    assert nvml.nvmlDeviceGetComputeRunningProcesses(handle) == []
    state.update(folder, "gpu0", processes="4001:100 4002:-", memory_used=100)
    state.write_file(folder / "gpu0.live", {"writer": own, "processes": f"{own}:30", "memory_used": 30})
    for call in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetComputeRunningProcesses_v2):
        found = [(process.pid, process.usedGpuMemory) for process in call(handle)]
        assert found == [(4001, 100), (4002, None), (own, 30)]
    assert nvml.nvmlDeviceGetMemoryInfo(handle).used == 130
    assert nvml.nvmlDeviceGetGraphicsRunningProcesses(handle) == []


def test_what_a_dead_emulator_left_is_idle_but_for_the_processes_that_outlive_it(nvml: Any, folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    handle, own = handles(nvml)[0], os.getpid()
    live: dict[str, state.Value] = {"utilisation": 90, "temperature": 70, "energy_mj": 555, "memory_used": 50}
    state.write_file(folder / "gpu0.live", live | {"writer": own, "processes": f"{own}:20 {child.pid}:30"})
    assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 90
    state.update(folder, "gpu0.live", writer=child.pid)
    assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 0
    assert nvml.nvmlDeviceGetTemperature(handle, 0) == 33
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 555
    assert [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)] == [own]
    assert nvml.nvmlDeviceGetMemoryInfo(handle).used == 20


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [9, 18, 999])
def test_a_driver_that_does_not_start_says_so_at_the_start(code: int, library: Path, folder: Path) -> None:
    module = loaded(library)
    state.update(folder, "machine", init_error=code)
    assert error_of(module.nvmlInit, module) == code
    assert error_of(module.nvmlDeviceGetCount, module) == module.NVML_ERROR_UNINITIALIZED
    state.update(folder, "machine", init_error=0)
    module.nvmlInit()
    assert module.nvmlDeviceGetCount() == 4
    module.nvmlShutdown()


def test_without_a_machine_the_driver_is_not_loaded(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = loaded(library)
    monkeypatch.setenv(state.VARIABLE, str(tmp_path / "none"))
    assert error_of(module.nvmlInit, module) == module.NVML_ERROR_DRIVER_NOT_LOADED


def test_a_lost_gpu_fails_every_call_while_the_others_answer(nvml: Any, folder: Path) -> None:
    gpus = handles(nvml)
    state.lose(folder, 1)
    assert error_of(lambda: nvml.nvmlDeviceGetName(gpus[1]), nvml) == nvml.NVML_ERROR_GPU_IS_LOST
    assert error_of(lambda: nvml.nvmlDeviceGetHandleByIndex(1), nvml) == nvml.NVML_ERROR_GPU_IS_LOST
    assert (nvml.nvmlDeviceGetTemperature(gpus[2], 0), nvml.nvmlDeviceGetCount()) == (33, 4)
    state.find(folder, 1)
    assert nvml.nvmlDeviceGetName(gpus[1]) == "NVIDIA GeForce RTX 3060"


def test_a_call_on_a_gpu_that_hangs_blocks_its_thread_alone(nvml: Any, folder: Path) -> None:
    gpus, found = handles(nvml), []
    state.hang(folder, 0)
    thread = threading.Thread(target=lambda: found.append(nvml.nvmlDeviceGetTemperature(gpus[0], 0)))
    thread.start()
    for _ in range(20):
        assert nvml.nvmlDeviceGetTemperature(gpus[1], 0) == 33
    assert thread.is_alive()
    state.hang(folder, 0, hangs=False)
    thread.join(5)
    assert found == [33]


def test_an_xid_is_an_event_once(nvml: Any, folder: Path) -> None:
    gpus = handles(nvml)
    state.report(folder, 0, 31)
    events = nvml.nvmlEventSetCreate()
    for gpu in gpus:
        assert nvml.nvmlDeviceGetSupportedEventTypes(gpu) & nvml.nvmlEventTypeXidCriticalError
        nvml.nvmlDeviceRegisterEvents(gpu, nvml.nvmlEventTypeXidCriticalError, events)
    assert error_of(lambda: nvml.nvmlEventSetWait(events, 0), nvml) == nvml.NVML_ERROR_TIMEOUT
    for code in (13, 48):
        state.report(folder, 0, code)
    state.lose(folder, 2)
    seen = [nvml.nvmlEventSetWait(events, 0) for _ in range(3)]
    assert [event.eventData for event in seen] == [13, 48, 79]
    assert [address(event.device) for event in seen] == [address(gpus[0]), address(gpus[0]), address(gpus[2])]
    assert error_of(lambda: nvml.nvmlEventSetWait(events, 0), nvml) == nvml.NVML_ERROR_GPU_IS_LOST
    state.find(folder, 2)
    assert error_of(lambda: nvml.nvmlEventSetWait(events, 5), nvml) == nvml.NVML_ERROR_TIMEOUT
    nvml.nvmlEventSetFree(events)


# -- the build --------------------------------------------------------------------------------------------------------


def test_an_old_drivers_library_lacks_functions(folder: Path, tmp_path: Path) -> None:
    name = "nvmlDeviceGetCurrentClocksEventReasons"
    module = loaded(build(tmp_path / "old", without=(name,)))
    module.nvmlInit()
    handle = handles(module)[0]
    code = error_of(lambda: module.nvmlDeviceGetCurrentClocksEventReasons(handle), module)
    assert code == module.NVML_ERROR_FUNCTION_NOT_FOUND
    assert module.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == 1
    module.nvmlShutdown()


def test_the_library_is_built_once_and_again_when_something_else_is_wanted(tmp_path: Path) -> None:
    inodes = [build(tmp_path, without).stat().st_ino for without in ((), (), ("nvmlDeviceGetName",))]
    assert inodes[0] == inodes[1]
    assert inodes[1] != inodes[2]
    assert {path.name for path in tmp_path.iterdir()} == {LIBRARY, f".{LIBRARY}.made-of"}


def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OperatorError, match="install one"):
        build(tmp_path / "lib")


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_FLAGS", ("-no-such-flag",))
    with pytest.raises(OperatorError, match="no-such-flag"):
        build(tmp_path / "lib")


# -- boards -----------------------------------------------------------------------------------------------------------


def test_every_gpu_of_the_catalog_can_be_stood_in_for_and_is_recognised_by_its_drivers_name(tmp_path: Path) -> None:
    state.write_machine(tmp_path, [state.StandinGpu(name) for name in BOARDS])
    for number, name in enumerate(BOARDS):
        said = state.read_file(tmp_path / f"gpu{number}")
        assert spec_of(said["name"], int(said["memory_total"])).name == name


def test_a_gpu_nobody_measured_has_its_own_memory_and_the_nearest_ones_speed() -> None:
    spec = spec_of("NVIDIA GeForce RTX 9090", 30 * GIB)
    assert (spec.name, spec.vram_bytes, spec.bandwidth_bytes_s) == ("NVIDIA GeForce RTX 9090", 30 * GIB, 1792e9)


def test_writing_a_machine_takes_the_one_before_away(tmp_path: Path) -> None:
    for machine in (machines.split_by_mig(), machines.alike(1)):
        state.write_machine(tmp_path, *machine)
    assert {path.name for path in tmp_path.iterdir()} == {"machine", "gpu0", "links"}
