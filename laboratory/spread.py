"""The statistics of the laboratory: percentiles, fairness, and how sure a ratio is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Ratio:
    """A median of paired ratios, and the bootstrap interval that holds it with 95 %."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"  # noqa: RUF001


def percentile(ordered: Sequence[float], ratio: float) -> float:
    """Of values in ascending order: linear between the two nearest ranks. Raises ValueError where there are none."""
    if not ordered:
        raise ValueError("no values")
    place = ratio * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def jain(values: Sequence[float]) -> float:
    """1: all alike; 1/n: one has everything. 1 where nobody has anything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def paired_ratio(above: Mapping[int, float], below: Mapping[int, float], seed: int = 0) -> Ratio | None:
    """``above`` / ``below``, seed by seed; None where no seed has both, or a divisor is 0."""
    seeds = sorted(above.keys() & below.keys())
    if not seeds or any(not below[seed] for seed in seeds):
        return None
    ratios = [above[seed] / below[seed] for seed in seeds]
    rng = Random(f"bootstrap {seed}")
    drawn = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return Ratio(median(ratios), percentile(drawn, 0.025), percentile(drawn, 0.975))
