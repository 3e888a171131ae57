"""The smallest group that holds a large model, the best joined first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from corral.gateway.layout.groups import smallest_group
from corral.gateway.layout.machine import Machine
from corral.gateway.layout.plan import StoredModel
from corral.model import Gpu, GpuSurvey, LinkKind
from tests.gateway.layout.machines import GIB, amd, links, nvidia

MODEL = StoredModel("m:70b", 42_500_000_000, 327_680, 131_072)
A6000, SMALL = "NVIDIA RTX A6000", "NVIDIA GeForce RTX 3090"


def chosen(
    gpus: list[Gpu],
    kinds: Mapping[tuple[int, int], LinkKind],
    other: LinkKind = LinkKind.SYSTEM,
    *,
    reserve: int = 0,
    context: int = 4096,
) -> tuple[int, ...] | None:
    machine = Machine(GpuSurvey(tuple(gpus), links(gpus, kinds, other)), None, reserve)
    group = smallest_group(MODEL, gpus, machine, context, 1)
    return None if group is None else tuple(gpu.index for gpu in group.gpus)


def row(count: int, name: str = A6000) -> list[Gpu]:
    return [nvidia(at, name) for at in range(count)]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({(0, 1): LinkKind.PCIE_SWITCH, (2, 3): LinkKind.NVLINK}, (2, 3)),
        ({(0, 1): LinkKind.NUMA_NODE, (1, 3): LinkKind.PCIE_SWITCH}, (1, 3)),
        ({(1, 2): LinkKind.NUMA_NODE}, (1, 2)),
        ({(0, 3): LinkKind.PCIE_SWITCHES, (1, 2): LinkKind.PCIE_SWITCH}, (1, 2)),
        ({(2, 3): LinkKind.HOST_BRIDGE, (0, 1): LinkKind.NUMA_NODE}, (2, 3)),
        ({}, (0, 1)),
    ],
)
def test_of_equally_many_the_best_joined_are_taken(
    kinds: dict[tuple[int, int], LinkKind], expected: tuple[int, ...]
) -> None:
    assert chosen(row(4), kinds) == expected


def test_where_every_group_crosses_nodes_what_nvlink_joins_stays_together() -> None:
    """Three are needed; without the pair 2 and 3, the group of 0, 1 and 2 would be slow at two places more."""
    gpus = row(4, SMALL)
    assert chosen(gpus, {(0, 1): LinkKind.HOST_BRIDGE, (2, 3): LinkKind.NVLINK}) == (0, 2, 3)


def test_more_gpus_that_are_well_joined_come_before_fewer_across_nodes() -> None:
    """Two would do, but every two are slowly joined; three small ones below one switch are not."""
    gpus = [nvidia(0, A6000), *(nvidia(at, SMALL) for at in (1, 2, 3)), nvidia(4, A6000)]
    switch = {(a, b): LinkKind.PCIE_SWITCH for a in (1, 2) for b in (2, 3) if a < b}
    assert chosen(gpus, switch) == (1, 2, 3)


def test_the_worst_link_of_a_group_counts() -> None:
    """Two NVLinks and a way across nodes are worse than one of each other kind."""
    kinds = {
        (0, 1): LinkKind.NVLINK,
        (0, 2): LinkKind.NVLINK,
        (1, 3): LinkKind.PCIE_SWITCH,
        (0, 3): LinkKind.NUMA_NODE,
    }
    assert chosen(row(4, SMALL), kinds) == (0, 1, 3)


def test_more_lanes_come_before_lower_indices() -> None:
    gpus = row(4)
    few, many = links(gpus, {(0, 1): LinkKind.NVLINK, (2, 3): LinkKind.NVLINK}, LinkKind.SYSTEM)[0::5]
    survey = GpuSurvey(tuple(gpus), (replace(few, lanes=2), replace(many, lanes=12)))
    group = smallest_group(MODEL, gpus, Machine(survey), 4096, 1)
    assert group is not None
    assert [gpu.index for gpu in group.gpus] == [2, 3]


def test_among_equals_the_group_that_wastes_least_is_taken() -> None:
    gpus = [nvidia(0, "NVIDIA H100 80GB HBM3"), nvidia(1, A6000), nvidia(2, A6000)]
    assert chosen(gpus, {}, LinkKind.PCIE_SWITCH) == (1, 2)


def test_context_and_reserve_make_a_group_larger() -> None:
    assert chosen(row(4), {}, LinkKind.PCIE_SWITCH, context=131_072) == (0, 1, 2)
    assert chosen(row(4), {}, LinkKind.PCIE_SWITCH, reserve=24 * GIB) == (0, 1, 2)


def test_what_nothing_holds_gets_nothing() -> None:
    assert chosen(row(2, SMALL), {}) is None
    assert chosen([], {}) is None


def test_memory_that_is_not_known_holds_nothing_and_vendors_do_not_mix() -> None:
    assert chosen([replace(gpu, memory_bytes=None) for gpu in row(4)], {}) is None
    assert chosen([nvidia(0, A6000), amd(1, 48 * GIB)], {}, LinkKind.PCIE_SWITCH) is None


def test_two_dozen_gpus_are_decided_at_once() -> None:
    assert chosen(row(24, "NVIDIA GeForce RTX 3060"), {}, LinkKind.PCIE_SWITCH) == (0, 1, 2, 3, 4)
