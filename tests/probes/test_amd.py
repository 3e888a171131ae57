"""AMD's GPUs, read from folders made like the kernel's."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from corral.model import GpuFault, GpuProcess, GpuVendor, LinkKind
from corral.probes.amd import AmdSource
from tests.probes.standin import fault_of

GIB = 1 << 30
SENSORS = {
    "gpu_busy_percent": "utilisation_ratio",
    "mem_info_vram_used": "memory_used_bytes",
    "hwmon/hwmon4/temp1_input": "temperature_celsius",
    "hwmon/hwmon4/temp1_crit": "slowdown_celsius",
    "hwmon/hwmon4/power1_average": "power_watts",
    "hwmon/hwmon4/power1_cap": "power_limit_watts",
    "hwmon/hwmon4/freq1_input": "sm_clock_hz",
    "hwmon/hwmon4/energy1_input": "energy_joules",
}
VALUES: dict[str, str | None] = {
    "vendor": "0x1002",
    "device": "0x744c",
    "product_name": "Radeon RX 7900 XTX",
    "numa_node": "0",
    "local_cpulist": "0-7,16-23",
    "gpu_busy_percent": "37",
    "mem_info_vram_total": str(24 * GIB),
    "mem_info_vram_used": str(3 * GIB),
    "hwmon/hwmon4/temp1_input": "54000",
    "hwmon/hwmon4/temp1_crit": "100000",
    "hwmon/hwmon4/power1_average": "213000000",
    "hwmon/hwmon4/power1_cap": "327000000",
    "hwmon/hwmon4/freq1_input": "2304000000",
    "hwmon/hwmon4/energy1_input": "5000000",
}


def write(folder: Path, values: dict[str, str | None]) -> None:
    """A file for each value; None: no such file."""
    for name, text in values.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text + "\n")


def add_card(root: Path, card: int, bus: int, **values: str | None) -> Path:
    """A card under its number; its folder on the bus."""
    address = f"0000:{bus:02x}:00.0"
    folder = root / "devices/pci0000:00" / address
    own: dict[str, str | None] = {"uevent": f"DRIVER=amdgpu\nPCI_SLOT_NAME={address}", "unique_id": f"{bus:016x}"}
    write(folder, VALUES | own | values)
    link = root / "class/drm" / f"card{card}"
    link.mkdir(parents=True)
    (link / "device").symlink_to(folder)
    (root / "class/drm" / f"card{card}-HDMI-A-1").mkdir()
    return folder


def add_node(
    root: Path, number: int, bus: int | None, *, xgmi: tuple[int, ...] = (), p2p: tuple[int, ...] = ()
) -> None:
    """A node of the compute driver's topology; without a bus a CPU's."""
    node = root / "class/kfd/kfd/topology/nodes" / str(number)
    simds, place = (0, 0) if bus is None else (96, bus << 8)
    properties = f"cpu_cores_count 0\nsimd_count {simds}\nlocation_id {place}\ndomain 0"
    write(node, {"properties": properties, "gpu_id": "0" if bus is None else str(1000 + bus)})
    write(node, {"io_links/0/properties": f"type 2\nnode_from {number}\nnode_to 0"})
    for at, other in enumerate(xgmi):
        write(node, {f"io_links/{at + 1}/properties": f"type 11\nnode_from {number}\nnode_to {other}"})
    for at, other in enumerate(p2p):
        write(node, {f"p2p_links/{at}/properties": f"type 2\nnode_from {number}\nnode_to {other}"})


# -- the survey -------------------------------------------------------------------------------------------------------


def test_the_survey_tells_who_and_where_a_gpu_is(tmp_path: Path) -> None:
    add_card(tmp_path, 1, 3, unique_id="0x1B2c3d4e5f60718")
    write(tmp_path, {"module/amdgpu/version": "6.10.5"})
    survey = AmdSource(tmp_path).survey()
    assert (survey.driver_version, survey.problems, survey.links) == ("6.10.5", (), ())
    gpu = survey.gpus[0]
    assert (gpu.uuid, gpu.index, gpu.vendor) == ("GPU-01b2c3d4e5f60718", 0, GpuVendor.AMD)
    assert (gpu.name, gpu.memory_bytes, gpu.unified_memory) == ("Radeon RX 7900 XTX", 24 * GIB, False)
    assert (gpu.pci_bus_id, gpu.numa_node) == ("0000:03:00.0", 0)
    assert gpu.cpus == (*range(8), *range(16, 24))


def test_gpus_are_counted_in_the_order_of_the_bus(tmp_path: Path) -> None:
    for card, bus in ((0, 0x43), (1, 0x03), (10, 0x23)):
        add_card(tmp_path, card, bus)
    gpus = AmdSource(tmp_path).survey().gpus
    assert [(gpu.index, gpu.pci_bus_id) for gpu in gpus] == [
        (0, "0000:03:00.0"),
        (1, "0000:23:00.0"),
        (2, "0000:43:00.0"),
    ]


def test_other_vendors_cards_and_connectors_are_no_gpus_of_amd(tmp_path: Path) -> None:
    add_card(tmp_path, 0, 1, vendor="0x8086")
    add_card(tmp_path, 1, 2, vendor="0x10de")
    add_card(tmp_path, 2, 3, vendor=None)
    assert AmdSource(tmp_path).survey().gpus == ()


def test_a_machine_without_any_such_folder_has_no_gpu_and_no_problem(tmp_path: Path) -> None:
    survey = AmdSource(tmp_path / "none").survey()
    assert (survey.gpus, survey.problems, survey.driver_version) == ((), (), None)


@pytest.mark.parametrize("unique_id", [None, "", "0", "not a number"])
def test_a_gpu_without_a_unique_id_goes_by_its_number(unique_id: str | None, tmp_path: Path) -> None:
    add_card(tmp_path, 0, 3)
    add_card(tmp_path, 1, 4, unique_id=unique_id)
    assert [gpu.uuid for gpu in AmdSource(tmp_path).survey().gpus] == ["GPU-0000000000000003", "1"]


def test_that_number_is_the_compute_drivers_where_it_counts_otherwise(tmp_path: Path) -> None:
    for card, bus in ((0, 3), (1, 4)):
        add_card(tmp_path, card, bus, unique_id=None)
    for number, place in ((0, None), (1, 4), (2, 3)):
        add_node(tmp_path, number, place)
    assert [(gpu.index, gpu.uuid) for gpu in AmdSource(tmp_path).survey().gpus] == [(0, "1"), (1, "0")]


@pytest.mark.parametrize("total", [None, str(GIB // 2), "0"])
def test_an_integrated_gpu_has_the_hosts_memory(total: str | None, tmp_path: Path) -> None:
    add_card(tmp_path, 0, 0xC1, mem_info_vram_total=total, unique_id=None)
    source = AmdSource(tmp_path)
    gpu = source.survey().gpus[0]
    assert (gpu.memory_bytes, gpu.unified_memory) == (None, True)
    sample = source.read(gpu.uuid, 0.0)
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (None, None)
    assert sample.utilisation_ratio == pytest.approx(0.37)


def test_firmware_that_names_no_numa_node_is_not_node_minus_one(tmp_path: Path) -> None:
    add_card(tmp_path, 0, 3, numa_node="-1")
    assert AmdSource(tmp_path).survey().gpus[0].numa_node is None


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_gpu_without_a_name_has_its_device_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    add_card(tmp_path, 0, 3, product_name="")
    assert AmdSource(tmp_path).survey().gpus[0].name == "AMD GPU 0x744c"


def test_amds_binding_gives_the_name_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binding = SimpleNamespace(
        amdsmi_init=lambda: None,
        amdsmi_shut_down=lambda: None,
        amdsmi_get_processor_handles=lambda: ["one", "two"],
        amdsmi_get_gpu_device_bdf={"one": "0000:03:00.0", "two": "0000:0A:00.0"}.__getitem__,
        amdsmi_get_gpu_asic_info={
            "one": {"market_name": "N/A"},
            "two": {"market_name": "Radeon Pro W7900"},
        }.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "amdsmi", binding)
    for card, bus in ((0, 3), (1, 10)):
        add_card(tmp_path, card, bus, product_name=None)
    assert [gpu.name for gpu in AmdSource(tmp_path).survey().gpus] == ["AMD GPU 0x744c", "Radeon Pro W7900"]


@pytest.mark.parametrize("error", [OSError("no libamd_smi.so"), SystemExit(1), KeyError("ROCM_PATH")])
def test_amds_binding_never_makes_the_survey_fail(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(sys.modules, "amdsmi", SimpleNamespace(amdsmi_init=fail))
    add_card(tmp_path, 0, 3, product_name=None)
    assert len(AmdSource(tmp_path).survey().gpus) == 1


# -- links ------------------------------------------------------------------------------------------------------------


def test_links_are_xgmi_or_by_the_numa_nodes(tmp_path: Path) -> None:
    for card, (bus, node) in enumerate(((3, "0"), (4, "0"), (0x43, "1"))):
        add_card(tmp_path, card, bus, numa_node=node)
    add_node(tmp_path, 0, None)
    add_node(tmp_path, 1, None)
    add_node(tmp_path, 2, 3, xgmi=(3,))
    add_node(tmp_path, 3, 4, xgmi=(2,), p2p=(4,))
    add_node(tmp_path, 4, 0x43)
    links = AmdSource(tmp_path).survey().links
    found = {(int(link.a[4:], 16), int(link.b[4:], 16)): (link.kind, link.peer_to_peer) for link in links}
    assert found == {
        (3, 4): (LinkKind.NVLINK, True),
        (3, 0x43): (LinkKind.SYSTEM, None),
        (4, 0x43): (LinkKind.SYSTEM, True),
    }


def test_without_the_compute_driver_links_go_by_the_numa_nodes(tmp_path: Path) -> None:
    for card, (bus, node) in enumerate(((3, "0"), (4, "0"), (0x43, "1"))):
        add_card(tmp_path, card, bus, numa_node=node)
    assert [link.kind for link in AmdSource(tmp_path).survey().links] == [
        LinkKind.NUMA_NODE,
        LinkKind.SYSTEM,
        LinkKind.SYSTEM,
    ]


# -- readings ---------------------------------------------------------------------------------------------------------


def test_a_reading_has_every_sensor_in_the_units_of_a_sample(tmp_path: Path) -> None:
    add_card(tmp_path, 0, 3)
    source = AmdSource(tmp_path)
    sample = source.read(source.survey().gpus[0].uuid, 4.5)
    assert (sample.uuid, sample.taken_at_s) == ("GPU-0000000000000003", 4.5)
    assert sample.utilisation_ratio == pytest.approx(0.37)
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (3 * GIB, 24 * GIB)
    assert sample.temperature_celsius == pytest.approx(54)
    assert sample.slowdown_celsius == pytest.approx(100)
    assert sample.power_watts == pytest.approx(213)
    assert sample.power_limit_watts == pytest.approx(327)
    assert sample.energy_joules == pytest.approx(5)
    assert sample.sm_clock_hz == pytest.approx(2.304e9)
    assert (sample.throttles, sample.processes, sample.uncorrected_ecc_errors) == (None, None, None)


@pytest.mark.parametrize("content", [None, "", "N/A"])
@pytest.mark.parametrize(("name", "field"), SENSORS.items())
def test_a_sensor_that_cannot_be_read_is_unknown_and_never_zero(
    name: str, field: str, content: str | None, tmp_path: Path
) -> None:
    folder = add_card(tmp_path, 0, 3)
    source = AmdSource(tmp_path)
    uuid = source.survey().gpus[0].uuid
    write(folder, {name: content})
    sample = source.read(uuid, 0.0)
    assert {name for name in SENSORS.values() if getattr(sample, name) is None} == {field}


def test_a_chip_without_an_average_of_its_power_gives_the_moments(tmp_path: Path) -> None:
    folder = add_card(tmp_path, 0, 3)
    write(folder / "hwmon/hwmon4", {"power1_average": None, "power1_input": "99000000"})
    source = AmdSource(tmp_path)
    assert source.read(source.survey().gpus[0].uuid, 0.0).power_watts == pytest.approx(99)


def test_the_compute_driver_tells_which_processes_hold_memory(tmp_path: Path) -> None:
    add_card(tmp_path, 0, 3)
    add_node(tmp_path, 1, 3)
    source = AmdSource(tmp_path)
    uuid = source.survey().gpus[0].uuid
    assert source.read(uuid, 0.0).processes is None
    held = {"412/vram_1003": "700", "77/vram_1003": "5000", "78/vram_1003": "0", "79/vram_1004": "9"}
    write(tmp_path / "class/kfd/kfd/proc", dict(held))
    assert source.read(uuid, 0.0).processes == (GpuProcess(77, 5000), GpuProcess(412, 700))


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_removed_card_is_lost_and_the_others_are_read(tmp_path: Path) -> None:
    folder = add_card(tmp_path, 0, 3)
    add_card(tmp_path, 1, 4)
    source = AmdSource(tmp_path)
    first, second = (gpu.uuid for gpu in source.survey().gpus)
    shutil.move(folder, tmp_path / "aside")
    assert fault_of(source, first) is GpuFault.LOST
    assert source.read(second, 0.0).temperature_celsius == pytest.approx(54)
    shutil.move(tmp_path / "aside", folder)
    assert source.read(first, 0.0).temperature_celsius == pytest.approx(54)


def test_a_card_whose_driver_left_it_is_a_failed_reading_not_an_idle_gpu(tmp_path: Path) -> None:
    folder = add_card(tmp_path, 0, 3)
    source = AmdSource(tmp_path)
    uuid = source.survey().gpus[0].uuid
    write(folder, dict.fromkeys(SENSORS))
    assert fault_of(source, uuid) is GpuFault.FAILED


def test_a_card_that_no_survey_found_is_lost(tmp_path: Path) -> None:
    source = AmdSource(tmp_path)
    source.survey()
    assert fault_of(source, "GPU-0000000000000009") is GpuFault.LOST
    assert source.xids() == ()
    source.close()
