"""How NVIDIA's GPUs reach each other: by NVLink, directly or through switches, or over PCIe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from corral.model import GpuLink, LinkKind
from corral.probes.nvml_calls import Device, ask
from corral.probes.nvml_survey import Found

MAX_LINKS = 36
READ, NVLINK = 0, 2
"""What nvmlDeviceGetP2PStatus is asked for. The binding's own constant for READ is a tuple by mistake."""
P2P_OK = 0
SWITCH = 2
LEVELS = {
    0: LinkKind.SAME_BOARD,
    10: LinkKind.PCIE_SWITCH,
    20: LinkKind.PCIE_SWITCHES,
    30: LinkKind.HOST_BRIDGE,
    40: LinkKind.NUMA_NODE,
    50: LinkKind.SYSTEM,
}


@dataclass(slots=True)
class _Lanes:
    """The active NVLinks of one GPU."""

    to_gpus: Counter[str] = field(default_factory=Counter)
    """By the PCI bus id of the GPU at the other end."""
    to_switches: int = 0
    elsewhere: int = 0
    """To a GPU under a PCI bus id that this machine does not know, as inside a virtual machine."""


def links(found: Sequence[Found]) -> tuple[GpuLink, ...]:
    """The way between each two whole GPUs, as far as the driver tells it."""
    whole = [one for one in found if one.gpu.parent_uuid is None]
    if len(whole) < 2:
        return ()
    bus_ids = {str(one.gpu.pci_bus_id).lower() for one in whole}
    lanes = {one.gpu.uuid: _lanes_of(one.device, bus_ids) for one in whole}
    pairs = (_link(a, b, lanes) for a, b in combinations(whole, 2))
    return tuple(link for link in pairs if link is not None)


def _lanes_of(device: Device, bus_ids: set[str]) -> _Lanes:
    lanes = _Lanes()
    try:
        _count(lanes, device, bus_ids)
    except device.nvml.NVMLError:
        pass  # lost meanwhile: its readings will show it, and the others' links are wanted all the same
    return lanes


def _count(lanes: _Lanes, device: Device, bus_ids: set[str]) -> None:
    for number in range(MAX_LINKS):
        if not device.ask("nvmlDeviceGetNvLinkState", number):
            continue  # a number it does not have, or one that is down
        remote = device.ask("nvmlDeviceGetNvLinkRemotePciInfo", number)
        kind = device.ask("nvmlDeviceGetNvLinkRemoteDeviceType", number)
        bus_id = None if remote is None else str(remote.busId).lower()
        if bus_id in bus_ids and kind != SWITCH:
            lanes.to_gpus[str(bus_id)] += 1
        elif kind in (SWITCH, None):
            lanes.to_switches += 1
        else:
            lanes.elsewhere += 1


def _link(a: Found, b: Found, lanes: dict[str, _Lanes]) -> GpuLink | None:
    nvml, ends = a.device.nvml, (a.device.handle, b.device.handle)
    readable = ask(nvml, "nvmlDeviceGetP2PStatus", *ends, READ)
    peer_to_peer = None if readable is None else readable == P2P_OK
    by_nvlink = _nvlink(a, b, lanes)
    if by_nvlink is not None:
        return GpuLink(a.gpu.uuid, b.gpu.uuid, LinkKind.NVLINK, by_nvlink or None, peer_to_peer)
    kind = LEVELS.get(ask(nvml, "nvmlDeviceGetTopologyCommonAncestor", *ends)) or _by_node(a, b)
    return None if kind is None else GpuLink(a.gpu.uuid, b.gpu.uuid, kind, None, peer_to_peer)


def _nvlink(a: Found, b: Found, lanes: dict[str, _Lanes]) -> int | None:
    """Lanes between the two (0: a number that is not known); None: no NVLink joins them.

    Through switches every GPU reaches every other with all its lanes.
    """
    here, there = lanes[a.gpu.uuid], lanes[b.gpu.uuid]
    direct = here.to_gpus[str(b.gpu.pci_bus_id).lower()]
    if direct:
        return direct
    if here.to_switches and there.to_switches:
        return min(here.to_switches, there.to_switches)
    if here.elsewhere and there.elsewhere:
        status = ask(a.device.nvml, "nvmlDeviceGetP2PStatus", a.device.handle, b.device.handle, NVLINK)
        return 0 if status == P2P_OK else None
    return None


def _by_node(a: Found, b: Found) -> LinkKind | None:
    if a.gpu.numa_node is None or b.gpu.numa_node is None:
        return None
    return LinkKind.NUMA_NODE if a.gpu.numa_node == b.gpu.numa_node else LinkKind.SYSTEM
