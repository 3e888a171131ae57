"""The CPUs and the memory next to a replica's GPUs, and how fast these are beside the others'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from corral.gateway.layout.machine import Machine
from corral.model import Gpu


@dataclass(frozen=True, slots=True)
class NumaPlace:
    """Where a process is kept; empty: anywhere."""

    cpus: tuple[int, ...] = ()
    node: int | None = None
    reason: str = ""


def numa_place(gpus: Sequence[Gpu], machine: Machine, allowed: Sequence[int]) -> NumaPlace:
    """The CPUs next to all of ``gpus`` where the machine has others too. ``allowed``: what this process may use."""
    nodes = {gpu.numa_node for gpu in gpus}
    near = {gpu.cpus for gpu in gpus}
    if len(nodes) != 1 or len(near) != 1:
        return NumaPlace()
    node, cpus = nodes.pop(), near.pop()
    if allowed:
        cpus = tuple(cpu for cpu in cpus if cpu in allowed)
        is_part = 0 < len(cpus) < len(allowed)
    else:
        is_part = len({gpu.cpus for gpu in machine.survey.gpus if gpu.cpus}) > 1
    if not is_part:
        return NumaPlace()
    where = "" if node is None else f" (NUMA node {node})"
    return NumaPlace(cpus, node, f"kept on the CPUs {ranges(cpus)} next to its GPUs{where}")


def ranges(numbers: Sequence[int]) -> str:
    """``0-3,8`` for 0, 1, 2, 3 and 8."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def relative_weights(places: Sequence[Sequence[Gpu]], machine: Machine) -> tuple[list[float], str]:
    """How fast each place is beside the slowest, by the memory bandwidth of its slowest GPU: that decides decoding.

    The second part says why all are 1, where they need not be equal.
    """
    speeds = [[machine.bandwidth(gpu) for gpu in gpus] for gpus in places]
    known = [
        min(speed for speed in of_one if speed is not None) if of_one and None not in of_one else None
        for of_one in speeds
    ]
    rates = [rate for rate in known if rate]
    if len(rates) < len(places):
        names = {gpu.name for gpus in places for gpu in gpus}
        missing = "The memory bandwidth of some GPUs is not known, so all replicas have weight 1; set weight: by hand."
        return [1.0] * len(places), missing if len(names) > 1 else ""
    slowest = min(rates)
    return [round(rate / slowest, 2) for rate in rates], ""
