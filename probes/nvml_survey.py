"""What NVIDIA's driver knows of its GPUs that stays: who they are, how large, where on the board, how divided."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from corral.model import Gpu, GpuVendor
from corral.probes.cpus import bits_set, local_cpus, numa_node, read_text
from corral.probes.nvml_calls import Device, ask

NVIDIA_PCI_VENDOR = "0x10de"
CPU_WORDS = 64
"""Of 64 bits each: room for 4096 CPUs."""
NODE_WORDS = 16
MEMORY_CLOCK = 2
NODE_SCOPE = 0
HOST_MEMORY_CHIPS = re.compile(r"\bGB10\b|\b(Thor|Orin|Xavier|Tegra)\b|\(nvgpu\)", re.IGNORECASE)
"""Chips that have no memory but the host's; some drivers report the host's as theirs (nvitop #208, llmfit #792)."""


@dataclass(frozen=True, slots=True)
class Found:
    """A GPU and the handle to read it by."""

    gpu: Gpu
    device: Device


def find(nvml: ModuleType, sysfs: Path, count: int) -> tuple[list[Found], list[str]]:
    """Every GPU and MIG device that answers, and a sentence for each that does not."""
    found: list[Found] = []
    problems: list[str] = []
    for index in range(count):
        try:
            device = Device(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
            found += _gpu_and_parts(device, index, sysfs)
        except nvml.NVMLError as error:
            said = str(error).rstrip(".")
            problems.append(f"GPU {index} is left out, its driver answers {said!r}: see dmesg, reset it or reboot.")
    return found, problems


def _gpu_and_parts(device: Device, index: int, sysfs: Path) -> list[Found]:
    gpu = _describe(device, index, sysfs)
    mode = device.ask("nvmlDeviceGetMigMode")
    if not mode or not mode[0]:
        return [Found(gpu, device)]
    whole = replace(gpu, is_split=True)
    return [Found(whole, device), *_parts(device, whole)]


def _describe(device: Device, index: int, sysfs: Path) -> Gpu:
    nvml, name = device.nvml, str(device.ask("nvmlDeviceGetName") or "NVIDIA GPU")
    pci = device.ask_first("nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetPciInfo")
    bus_id = None if pci is None else str(pci.busId)
    place = _folder(sysfs, bus_id)
    memory_bytes, unified = _memory(device, name)
    return Gpu(
        uuid=str(nvml.nvmlDeviceGetUUID(device.handle)),
        index=index,
        vendor=GpuVendor.NVIDIA,
        name=name,
        memory_bytes=memory_bytes,
        pci_bus_id=bus_id,
        numa_node=_numa_node(device, place, sysfs),
        cpus=_cpus(device, place),
        unified_memory=unified,
        memory_bandwidth_bytes_s=_bandwidth(device),
        compute_capability=device.ask("nvmlDeviceGetCudaComputeCapability"),
        persistence_mode=_flag(device.ask("nvmlDeviceGetPersistenceMode")),
        ecc=_flag((device.ask("nvmlDeviceGetEccMode") or (None,))[0]),
    )


def _memory(device: Device, name: str) -> tuple[int | None, bool]:
    """All memory of a GPU, and whether it is the host's.

    An integrated GPU (GB10, Jetson) answers NotSupported, zero or, with some drivers, the host's own total. A Grace
    Hopper or Grace Blackwell superchip (GH200, GB200) reports its HBM as any other GPU does, and that is its own:
    what the host may borrow of it counts as used.
    """
    if has_hosts_memory(name):
        return None, True
    memory = device.memory()
    if memory is None or not memory.total:
        return None, device.odd_error is None
    return int(memory.total), False


def has_hosts_memory(name: str) -> bool:
    """Whether a chip of that name has no memory but the host's."""
    return HOST_MEMORY_CHIPS.search(name) is not None


def _bandwidth(device: Device) -> float | None:
    """Peak bytes per second: memory of any kind moves two bits per pin and clock, as this clock is counted."""
    clock_mhz = device.ask("nvmlDeviceGetMaxClockInfo", MEMORY_CLOCK)
    width_bits = device.ask("nvmlDeviceGetMemoryBusWidth")
    return None if not clock_mhz or not width_bits else 2.0 * clock_mhz * 1e6 * width_bits / 8


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _folder(sysfs: Path, bus_id: str | None) -> Path | None:
    """The GPU's folder in sysfs, whose PCI domain has four digits where the library writes eight."""
    if bus_id is None:
        return None
    domain, _, rest = bus_id.lower().partition(":")
    folder = sysfs / "bus/pci/devices" / f"{domain[-4:]}:{rest}"
    return folder if read_text(folder / "vendor") == NVIDIA_PCI_VENDOR else None


def _cpus(device: Device, folder: Path | None) -> tuple[int, ...]:
    near = local_cpus(folder) if folder else ()
    return near or bits_set(device.ask("nvmlDeviceGetCpuAffinity", CPU_WORDS) or ())


def _numa_node(device: Device, folder: Path | None, sysfs: Path) -> int | None:
    """The node of the CPUs next to it: the kernel's word, else the driver's.

    nvmlDeviceGetNumaNodeId comes last: on Grace it means the node that *is* the GPU's memory, which has no CPU.
    """
    node = numa_node(folder) if folder else None
    if node is not None:
        return node
    nodes = bits_set(device.ask("nvmlDeviceGetMemoryAffinity", NODE_WORDS, NODE_SCOPE) or ())
    if len(nodes) == 1:
        return nodes[0]
    named: int | None = device.ask("nvmlDeviceGetNumaNodeId")
    if named is None or named < 0 or read_text(sysfs / f"devices/system/node/node{named}/cpulist") == "":
        return None
    return named


def _parts(device: Device, whole: Gpu) -> Iterator[Found]:
    """The MIG devices: each with its own memory and its share of the bandwidth, at its parent's place."""
    nvml = device.nvml
    for slot in range(device.ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
        handle = ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", device.handle, slot)
        if handle is None:
            continue  # an empty slot
        part = Device(nvml, handle)
        memory = part.memory()
        total = None if memory is None or not memory.total else int(memory.total)
        share = total / whole.memory_bytes if total and whole.memory_bytes else None
        bandwidth = whole.memory_bandwidth_bytes_s
        gpu = replace(
            whole,
            uuid=str(nvml.nvmlDeviceGetUUID(handle)),
            name=str(part.ask("nvmlDeviceGetName") or f"{whole.name} MIG"),
            memory_bytes=total,
            memory_bandwidth_bytes_s=bandwidth * min(share, 1.0) if bandwidth and share else None,
            parent_uuid=whole.uuid,
            is_split=False,
        )
        yield Found(gpu, part)
