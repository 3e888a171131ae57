"""AMD's GPUs through the kernel's own files (sysfs and hwmon), which need no library of AMD's."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from corral.model import Gpu, GpuFault, GpuLink, GpuSample, GpuSurvey, GpuVendor, LinkKind
from corral.probes.amd_kfd import Node, nodes, processes
from corral.probes.cpus import local_cpus, numa_node, read_int, read_text
from corral.probes.gpu import GpuReadError

PCI_VENDOR = "0x1002"
CARVE_OUT_BYTES = 2 << 30
"""An integrated GPU is given so much of the host's memory at most, as a rule, and takes the rest as it needs it."""


@dataclass(frozen=True, slots=True)
class _Card:
    """A GPU and where the kernel keeps its files."""

    gpu: Gpu
    folder: Path
    node: Node | None


class AmdSource:
    """Reads the files anew at each call, so a card that was reset or removed and found again needs no special care."""

    vendor = GpuVendor.AMD

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._root = root
        self._cards: dict[str, _Card] = {}

    def survey(self) -> GpuSurvey:
        """See :class:`corral.probes.gpu.GpuSource`."""
        cards = self._find()
        self._cards = {card.gpu.uuid: card for card in cards}
        return GpuSurvey(
            gpus=tuple(card.gpu for card in cards),
            links=tuple(_link(a, b) for a, b in combinations(cards, 2)),
            driver_version=read_text(self._root / "module/amdgpu/version") if cards else None,
        )

    def read(self, uuid: str, at_s: float) -> GpuSample:
        """See :class:`corral.probes.gpu.GpuSource`."""
        card = self._cards.get(uuid)
        if card is None or read_text(card.folder / "vendor") != PCI_VENDOR:
            raise GpuReadError(GpuFault.LOST, "the kernel no longer knows it")
        sample = _sample(self._root, card, at_s)
        values = (sample.utilisation_ratio, sample.memory_used_bytes, sample.temperature_celsius, sample.power_watts)
        if all(value is None for value in values) and sample.sm_clock_hz is None:
            raise GpuReadError(GpuFault.FAILED, "none of its sensors answers")
        return sample

    def xids(self) -> tuple[tuple[str, int], ...]:
        """None: AMD's driver has no such codes."""
        return ()

    def close(self) -> None:
        """Nothing is held open."""

    def _find(self) -> list[_Card]:
        folders = list(_folders(self._root))
        known, names = nodes(self._root), _names([folder for folder, _ in folders])
        return [
            _describe(index, folder, bus_id, known.get(bus_id or ""), names.get(bus_id or ""))
            for index, (folder, bus_id) in enumerate(folders)
        ]


def _folders(root: Path) -> Iterator[tuple[Path, str | None]]:
    """The devices' own folders and bus ids, in the order of the bus: the numbers of cards change with each driver."""
    found = []
    for path in (root / "class/drm").glob("card[0-9]*"):
        folder = path / "device"
        if re.fullmatch(r"card\d+", path.name) and read_text(folder / "vendor") == PCI_VENDOR:
            found.append((_bus_id(folder), int(path.name[4:]), folder.resolve()))
    for bus_id, _, folder in sorted(found, key=lambda one: (one[0] or "", one[1])):
        yield folder, bus_id


def _bus_id(folder: Path) -> str | None:
    named = re.search(r"^PCI_SLOT_NAME=(\S+)$", read_text(folder / "uevent") or "", re.MULTILINE)
    return named[1].lower() if named else None


def _describe(index: int, folder: Path, bus_id: str | None, node: Node | None, name: str | None) -> _Card:
    own = read_int(folder / "mem_info_vram_total")
    shared = own is None or own <= CARVE_OUT_BYTES
    gpu = Gpu(
        uuid=_uuid(folder, index if node is None else node.ordinal),
        index=index,
        vendor=GpuVendor.AMD,
        name=read_text(folder / "product_name") or name or f"AMD GPU {read_text(folder / 'device') or ''}".strip(),
        memory_bytes=None if shared else own,
        pci_bus_id=bus_id,
        numa_node=numa_node(folder),
        cpus=local_cpus(folder),
        unified_memory=shared,
    )
    return _Card(gpu, folder, node)


def _uuid(folder: Path, ordinal: int) -> str:
    """What ``ROCR_VISIBLE_DEVICES`` takes. Integrated and some older GPUs have no unique id, or zero."""
    own = (read_text(folder / "unique_id") or "").lower().removeprefix("0x")
    if not re.fullmatch(r"[0-9a-f]{1,16}", own) or int(own, 16) == 0:
        return str(ordinal)
    return f"GPU-{own:0>16}"


def _names(folders: Sequence[Path]) -> dict[str, str]:
    """The names on the market by bus id, from AMD's binding where the files lack one and it happens to be installed."""
    if all(read_text(folder / "product_name") for folder in folders):
        return {}
    try:
        amdsmi = importlib.import_module("amdsmi")
        amdsmi.amdsmi_init()
        try:
            return dict(_market_names(amdsmi))
        finally:
            amdsmi.amdsmi_shut_down()
    except (Exception, SystemExit):  # whatever ails that library: a name is not worth a failure
        return {}


def _market_names(amdsmi: Any) -> Iterator[tuple[str, str]]:
    for handle in amdsmi.amdsmi_get_processor_handles():
        name = str(amdsmi.amdsmi_get_gpu_asic_info(handle)["market_name"])
        if name not in ("", "N/A"):
            yield str(amdsmi.amdsmi_get_gpu_device_bdf(handle)).lower(), name


def _link(a: _Card, b: _Card) -> GpuLink:
    here, there = a.node, b.node
    if here and there and (there.number in here.xgmi or here.number in there.xgmi):
        # XGMI is to AMD's GPUs what NVLink is to NVIDIA's: the fast way from one to the other past PCIe
        return GpuLink(a.gpu.uuid, b.gpu.uuid, LinkKind.NVLINK, peer_to_peer=True)
    known = a.gpu.numa_node is not None and a.gpu.numa_node == b.gpu.numa_node
    readable = True if here and there and there.number in here.readable else None
    return GpuLink(a.gpu.uuid, b.gpu.uuid, LinkKind.NUMA_NODE if known else LinkKind.SYSTEM, peer_to_peer=readable)


def _sample(root: Path, card: _Card, at_s: float) -> GpuSample:
    folder, own = card.folder, not card.gpu.unified_memory
    sensors = next(iter(sorted((folder / "hwmon").glob("hwmon*"))), folder / "hwmon")
    power_uw = read_int(sensors / "power1_average")
    if power_uw is None:  # newer chips have only the moment's
        power_uw = read_int(sensors / "power1_input")
    return GpuSample(
        uuid=card.gpu.uuid,
        taken_at_s=at_s,
        utilisation_ratio=_scaled(read_int(folder / "gpu_busy_percent"), 1e-2),
        # of an integrated GPU these count the carve-out alone, which says nothing of what it can still take
        memory_used_bytes=read_int(folder / "mem_info_vram_used") if own else None,
        memory_total_bytes=read_int(folder / "mem_info_vram_total") if own else None,
        temperature_celsius=_scaled(read_int(sensors / "temp1_input"), 1e-3),
        slowdown_celsius=_scaled(read_int(sensors / "temp1_crit"), 1e-3),
        power_watts=_scaled(power_uw, 1e-6),
        power_limit_watts=_scaled(read_int(sensors / "power1_cap"), 1e-6),
        energy_joules=_scaled(read_int(sensors / "energy1_input"), 1e-6),
        sm_clock_hz=_scaled(read_int(sensors / "freq1_input"), 1.0),
        processes=None if card.node is None else processes(root, card.node.gpu_id),
    )


def _scaled(value: int | None, unit: float) -> float | None:
    return None if value is None else value * unit
