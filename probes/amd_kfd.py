"""What AMD's compute driver (KFD) tells in sysfs: the order of its GPUs, how they reach each other, who uses them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from corral.model import GpuProcess
from corral.probes.cpus import read_int, read_text

XGMI = "11"
"""The type of an io_link; 2 is PCIe."""


@dataclass(frozen=True, slots=True)
class Node:
    """One GPU as KFD knows it."""

    number: int
    ordinal: int
    """Its place among the GPUs: what ``ROCR_VISIBLE_DEVICES`` counts."""
    gpu_id: str
    xgmi: frozenset[int]
    """Numbers of the nodes at the other ends of its XGMI links."""
    readable: frozenset[int]
    """Numbers of the nodes whose memory it may read over PCIe."""


def nodes(root: Path) -> dict[str, Node]:
    """The GPUs by PCI bus id; empty where KFD is not loaded, or not for us to read."""
    folders = sorted((root / "class/kfd/kfd/topology/nodes").glob("[0-9]*"), key=lambda folder: int(folder.name))
    found: dict[str, Node] = {}
    for folder in folders:
        properties = _properties(folder / "properties")
        bus_id = _bus_id(properties)
        if bus_id is not None:
            kinds = dict(_links(folder / "io_links"))
            xgmi = frozenset(number for number, kind in kinds.items() if kind == XGMI)
            readable = frozenset(number for number, _ in _links(folder / "p2p_links"))
            gpu_id = read_text(folder / "gpu_id") or ""
            found[bus_id] = Node(int(folder.name), len(found), gpu_id, xgmi, readable)
    return found


def processes(root: Path, gpu_id: str) -> tuple[GpuProcess, ...] | None:
    """Those that hold memory of that GPU; None where KFD does not tell."""
    listed = root / "class/kfd/kfd/proc"
    if not listed.is_dir():
        return None
    used = ((path.parent.name, read_int(path)) for path in listed.glob(f"[0-9]*/vram_{gpu_id}"))
    return tuple(sorted((GpuProcess(int(pid), held) for pid, held in used if held != 0), key=lambda one: one.pid))


def _properties(path: Path) -> Mapping[str, str]:
    """Lines of ``name value``."""
    lines = (read_text(path) or "").splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def _bus_id(properties: Mapping[str, str]) -> str | None:
    """Where a GPU is on the PCI bus; None for a CPU's node, which has no compute units."""
    place, domain = properties.get("location_id", ""), properties.get("domain", "0")
    if properties.get("simd_count", "0") == "0" or not re.fullmatch(r"\d+ \d+", f"{place} {domain}"):
        return None
    number = int(place)
    return f"{int(domain):04x}:{number >> 8 & 0xFF:02x}:{number >> 3 & 0x1F:02x}.{number & 7}"


def _links(folder: Path) -> Iterator[tuple[int, str]]:
    """The node at the other end, and the link's type."""
    for path in folder.glob("*/properties"):
        properties = _properties(path)
        if properties.get("node_to", "").isdigit():
            yield int(properties["node_to"]), properties.get("type", "")
