"""The policy ``weighted-least-load``, the default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from corral.model import Decision, ReplicaView, RouteRequest
from corral.policies.pick import cold, load, lowest, require_not_negative


@dataclass(frozen=True, slots=True)
class WeightedLeastLoad:
    """The lowest (in flight + 1) / weight, where having to load the model counts as ``cold_penalty`` more in flight."""

    cold_penalty: float = 4.0
    """How many requests in flight a load of the model is worth; 0: residency does not matter."""

    def __post_init__(self) -> None:
        require_not_negative("cold_penalty", self.cold_penalty)

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        loading = cold(request, candidates)

        def cost(view: ReplicaView) -> float:
            return load(view, self.cold_penalty if view.id in loading else 0.0)

        view = lowest(candidates, cost, rng)
        return Decision(view.id, "least load, cold" if view.id in loading else "least load")
