"""Machines to try things on, ready for ``write_machine(folder, *four_unequal())``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from corral.emulator.catalog import GIB
from corral.emulator.nvml.state import Machine, StandinGpu, StandinLink, StandinMig


def alike(count: int, model: str = "RTX 4090 24GB") -> Machine:
    """So many GPUs of one model, each at its own PCIe root."""
    return of([model] * count)


def of(models: Sequence[str]) -> Machine:
    """GPUs of these models, each at its own PCIe root."""
    gpus = tuple(StandinGpu(model) for model in models)
    return gpus, _with_others(gpus, ())


def four_unequal() -> Machine:
    """A workstation: a fast GPU, a small one, and on the other NUMA node two of 24 GB with NVLink between them."""
    gpus = (
        StandinGpu("RTX 4090 24GB"),
        StandinGpu("RTX 3060 12GB"),
        StandinGpu("RTX 3090 24GB", numa=1),
        StandinGpu("RTX 3090 24GB", numa=1),
    )
    near = (StandinLink(0, 1, "bridge"), StandinLink(2, 3, "nvlink", 4, p2p=True, pcie="bridge"))
    return gpus, _with_others(gpus, near)


def eight_mixed() -> Machine:
    """A server that grew: two pairs with NVLink on the first NUMA node, a pair at a switch and one without on the
    second."""
    models = ("A100 SXM 80GB", "RTX A6000 48GB", "L40S 48GB", "RTX 4090 24GB")
    gpus = tuple(StandinGpu(models[number // 2], numa=number // 4) for number in range(8))
    near = (
        StandinLink(0, 1, "nvlink", 12, p2p=True, pcie="switch"),
        StandinLink(2, 3, "nvlink", 4, p2p=True, pcie="node"),
        StandinLink(4, 5, "switch", p2p=True),
        StandinLink(6, 7, "bridge", p2p=False),
    )
    return gpus, _with_others(gpus, near)


def nvlink_pairs(count: int, model: str = "RTX 3090 24GB") -> Machine:
    """Pairs of GPUs with NVLink, each pair on a NUMA node of its own."""
    gpus = tuple(StandinGpu(model, numa=number // 2) for number in range(2 * count))
    near = tuple(StandinLink(2 * pair, 2 * pair + 1, "nvlink", 4, p2p=True, pcie="bridge") for pair in range(count))
    return gpus, _with_others(gpus, near)


def nvswitch(count: int = 8, model: str = "H100 SXM 80GB") -> Machine:
    """GPUs that all reach each other through NVSwitches."""
    gpus = tuple(StandinGpu(model, numa=number * 2 // count) for number in range(count))
    pairs = combinations(range(count), 2)
    return gpus, tuple(StandinLink(a, b, "nvlink", 18, p2p=True, pcie="node") for a, b in pairs)


def split_by_mig() -> Machine:
    """Two GPUs of 80 GB, the first divided into three MIG devices."""
    parts = (StandinMig(40 * GIB, "3g.40gb"), StandinMig(20 * GIB, "2g.20gb"), StandinMig(20 * GIB, "2g.20gb"))
    gpus = (StandinGpu("H100 PCIe 80GB", migs=parts), StandinGpu("H100 PCIe 80GB"))
    return gpus, _with_others(gpus, ())


def _with_others(gpus: tuple[StandinGpu, ...], near: tuple[StandinLink, ...]) -> tuple[StandinLink, ...]:
    """Every other pair meets at its NUMA node, or across the system."""
    said = {(link.a, link.b) for link in near}
    others = (
        StandinLink(a, b, "node" if gpus[a].numa == gpus[b].numa else "system", p2p=False)
        for a, b in combinations(range(len(gpus)), 2)
        if (a, b) not in said
    )
    return (*near, *others)
