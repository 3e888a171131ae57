"""What every rule of another balancer is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from corral.laboratory.types import Arrival, Box, Sight


class Rival:
    """What a rule that learns nothing needs."""

    name = ""

    def __init__(self, box: Box, seed: int) -> None:
        self.rng = Random(f"{self.name} {seed}")

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        raise NotImplementedError

    def began(self, arrival: Arrival, replica_id: str, now_s: float) -> None:
        return

    def ended(self, arrival: Arrival, replica_id: str, now_s: float, *, ok: bool) -> None:
        return

    def least(self, sights: Sequence[Sight], cost: Callable[[Sight], float]) -> str:
        """The lowest cost; of several any one, so that no order of a list favours a replica."""
        costs = [cost(sight) for sight in sights]
        lowest = min(costs)
        return self.rng.choice([sight.id for sight, its in zip(sights, costs, strict=True) if its == lowest])


def warm(arrival: Arrival, sights: Sequence[Sight]) -> list[Sight]:
    return [sight for sight in sights if arrival.model in sight.loaded]
