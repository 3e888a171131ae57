"""Machines that layouts are decided for: GPUs as a survey would find them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from corral.gateway.layout.plan import Facts, OllamaProgram, StoredModel
from corral.model import Gpu, GpuLink, GpuSurvey, GpuVendor, LinkKind

GIB = 1 << 30
MIB = 1 << 20
NEW = OllamaProgram("/usr/local/bin/ollama", "0.32.15")
OLD = OllamaProgram("/usr/local/bin/ollama", "0.24.0")
STORE = "/usr/share/ollama/.ollama/models"

KINDS: Mapping[str, tuple[int, float, tuple[int, int]]] = {
    "NVIDIA GeForce RTX 3060": (12288 * MIB, 360e9, (8, 6)),
    "NVIDIA GeForce RTX 3090": (24576 * MIB, 936e9, (8, 6)),
    "NVIDIA GeForce RTX 4090": (24564 * MIB, 1008e9, (8, 9)),
    "NVIDIA RTX A6000": (49140 * MIB, 768e9, (8, 6)),
    "NVIDIA A100-PCIE-40GB": (40960 * MIB, 1555e9, (8, 0)),
    "NVIDIA H100 80GB HBM3": (81559 * MIB, 3352e9, (9, 0)),
}


def nvidia(index: int, name: str, node: int | None = None, cpus: Iterable[int] = ()) -> Gpu:
    memory, bandwidth, capability = KINDS[name]
    return Gpu(
        uuid=f"GPU-{index:08d}-aaaa-bbbb-cccc-{index:012d}",
        index=index,
        vendor=GpuVendor.NVIDIA,
        name=name,
        memory_bytes=memory,
        pci_bus_id=f"00000000:{index + 1:02X}:00.0",
        numa_node=node,
        cpus=tuple(cpus),
        memory_bandwidth_bytes_s=bandwidth,
        compute_capability=capability,
    )


def amd(index: int, memory_bytes: int | None = 24560 * MIB, *, unified: bool = False) -> Gpu:
    return Gpu(
        uuid=f"GPU-{index:016x}",
        index=index,
        vendor=GpuVendor.AMD,
        name="AMD Radeon Graphics" if unified else "AMD Radeon RX 7900 XTX",
        memory_bytes=memory_bytes,
        memory_bandwidth_bytes_s=None if unified else 960e9,
        unified_memory=unified,
    )


def mig(parent: Gpu, at: int, memory_bytes: int) -> Gpu:
    return Gpu(
        uuid=f"MIG-{parent.index:08d}-dddd-eeee-ffff-{at:012d}",
        index=parent.index,
        vendor=GpuVendor.NVIDIA,
        name=f"{parent.name} MIG 3g.40gb",
        memory_bytes=memory_bytes,
        numa_node=parent.numa_node,
        cpus=parent.cpus,
        parent_uuid=parent.uuid,
    )


def links(gpus: Iterable[Gpu], kinds: Mapping[tuple[int, int], LinkKind], other: LinkKind) -> tuple[GpuLink, ...]:
    """The named pairs by index, every other pair as ``other``; an NVLink has four lanes."""
    listed = list(gpus)
    found = []
    for at, a in enumerate(listed):
        for b in listed[at + 1 :]:
            kind = kinds.get((a.index, b.index), other)
            found.append(GpuLink(a.uuid, b.uuid, kind, 4 if kind is LinkKind.NVLINK else None, True))
    return tuple(found)


def facts(
    gpus: Iterable[Gpu] = (),
    joined: Iterable[GpuLink] = (),
    *,
    program: OllamaProgram | None = NEW,
    models: Iterable[StoredModel] = (),
    free_bytes: Mapping[str, int] | None = None,
    ram_bytes: int | None = 256 * GIB,
    cpus: Iterable[int] = (),
    no_proxy: str | None = None,
    visible: Mapping[str, str] | None = None,
) -> Facts:
    listed = tuple(gpus)
    has_nvidia = any(gpu.vendor is GpuVendor.NVIDIA for gpu in listed)
    return Facts(
        survey=GpuSurvey(listed, tuple(joined), *(("570.86.15", "12.8") if has_nvidia else ())),
        program=program,
        ram_bytes=ram_bytes,
        store=STORE,
        models=tuple(models),
        free_bytes=free_bytes or {},
        cpus=tuple(cpus),
        no_proxy=no_proxy,
        visible=visible or {},
    )


def one() -> Facts:
    return facts([nvidia(0, "NVIDIA GeForce RTX 4090")])


def two() -> Facts:
    """Unequal, in a desktop machine."""
    gpus = [nvidia(0, "NVIDIA GeForce RTX 4090"), nvidia(1, "NVIDIA GeForce RTX 3060")]
    stored = (
        StoredModel("llama3.1:8b", 4_920_000_000, 131_072, 131_072),
        StoredModel("qwen2.5:32b", 19_850_000_000, 262_144, 32_768),
    )
    return facts(gpus, links(gpus, {}, LinkKind.HOST_BRIDGE), ram_bytes=32 * GIB, models=stored)


def four_in_pairs() -> Facts:
    """Two NVLink pairs, each on a NUMA node of its own."""
    halves = ((0, range(0, 32)), (0, range(0, 32)), (1, range(32, 64)), (1, range(32, 64)))
    gpus = [nvidia(at, "NVIDIA RTX A6000", *half) for at, half in enumerate(halves)]
    kinds = {(0, 1): LinkKind.NVLINK, (2, 3): LinkKind.NVLINK}
    return facts(gpus, links(gpus, kinds, LinkKind.SYSTEM), cpus=range(64))


def eight_mixed() -> Facts:
    """GPUs 0 to 3 below one PCIe switch, 4 and 5 joined by NVLink on the other node, two small ones beside them."""
    names = ["NVIDIA GeForce RTX 3090"] * 4 + ["NVIDIA RTX A6000"] * 2 + ["NVIDIA GeForce RTX 3060"] * 2
    gpus = [nvidia(at, name, at // 4, range(0, 48) if at < 4 else range(48, 96)) for at, name in enumerate(names)]
    switch = {(a, b): LinkKind.PCIE_SWITCH for a in range(4) for b in range(a + 1, 4)}
    right = {(a, b): LinkKind.NUMA_NODE for a in range(4, 8) for b in range(a + 1, 8)}
    kinds = {**switch, **right, (4, 5): LinkKind.NVLINK}
    return facts(gpus, links(gpus, kinds, LinkKind.SYSTEM), cpus=range(96))


def with_mig() -> Facts:
    """An H100 split in two, and a whole one."""
    split = replace(nvidia(0, "NVIDIA H100 80GB HBM3"), is_split=True)
    whole = nvidia(1, "NVIDIA H100 80GB HBM3")
    gpus = [split, mig(split, 0, 40448 * MIB), mig(split, 1, 40448 * MIB), whole]
    return facts(gpus, links([split, whole], {}, LinkKind.NVLINK))


def two_amd() -> Facts:
    """Two cards and the processor's own graphics."""
    return facts([amd(0), amd(1), amd(2, None, unified=True)], ram_bytes=64 * GIB)


def none() -> Facts:
    return facts(ram_bytes=16 * GIB)
