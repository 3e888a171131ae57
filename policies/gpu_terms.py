"""What GPUs say as terms of a policy's cost, each with a weight that the operator gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from corral.model import GpuLoad, ReplicaView
from corral.policies.pick import require_not_negative


@dataclass(frozen=True, slots=True)
class GpuWeights:
    """How much dearer a replica is for each measure of its GPUs; 0: the measure does not matter."""

    utilization: float = 0.0
    """Of the share of time in which anything runs on them. The American spelling is the one that operators write."""
    memory: float = 0.0
    """Of the memory in use, of all."""
    temperature: float = 0.0
    """Of the temperature, of the one at which they slow down."""
    power: float = 0.0
    """Of the power they take, of their limit."""

    def __post_init__(self) -> None:
        for name in ("utilization", "memory", "temperature", "power"):
            require_not_negative(name, getattr(self, name))


NO_WEIGHTS: Final = GpuWeights()
_Measure = Callable[[GpuLoad], float | None]


def factors(candidates: Sequence[ReplicaView], weights: GpuWeights) -> list[float]:
    """What the cost of each candidate is multiplied by: 1 + the sum of each weight times its ratio.

    A measure that one candidate lacks counts for none of them: nobody must win or lose by what another does not tell.
    """
    totals = [1.0] * len(candidates)
    if weights == NO_WEIGHTS:
        return totals
    for weight, measure in _terms(weights):
        ratios = _of_all(candidates, measure) if weight else None
        if ratios is not None:
            totals = [total + weight * ratio for total, ratio in zip(totals, ratios, strict=True)]
    return totals


def _terms(weights: GpuWeights) -> tuple[tuple[float, _Measure], ...]:
    return (
        (weights.utilization, lambda gpu: gpu.utilisation_ratio),
        (weights.memory, lambda gpu: gpu.memory_ratio),
        (weights.temperature, lambda gpu: gpu.temperature_ratio),
        (weights.power, lambda gpu: gpu.power_ratio),
    )


def _of_all(candidates: Sequence[ReplicaView], measure: _Measure) -> list[float] | None:
    """None where it is not known of one of them."""
    ratios: list[float] = []
    for view in candidates:
        ratio = None if view.gpu is None else measure(view.gpu)
        if ratio is None:
            return None
        ratios.append(ratio)
    return ratios
