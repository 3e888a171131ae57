"""The policy ``weighted-least-load``, the default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from corral.model import Decision, ReplicaView, RouteRequest
from corral.policies.gpu_terms import NO_WEIGHTS, GpuWeights, factors
from corral.policies.pick import cold, load, lowest, require_not_negative

_NEAR_RATIO = 0.03
_NEAR_S = 0.005
"""Predictions are no more exact than that."""


@dataclass(frozen=True, slots=True)
class WeightedLeastLoad:
    """Where the request costs the least seconds; until these were learned, the lowest (in flight + 1) / weight, where having to load the model counts as ``cold_penalty`` more in flight."""  # noqa: E501

    predicts: ClassVar[bool] = True
    places: ClassVar[bool] = True

    cold_penalty: float = 4.0
    """How many requests in flight a load of the model is worth; 0: residency does not matter."""
    weights: GpuWeights = NO_WEIGHTS
    """What each reading of the GPUs adds to the cost."""

    def __post_init__(self) -> None:
        require_not_negative("cold_penalty", self.cold_penalty)

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        costs, reason = self._seconds(candidates), "least seconds"
        if costs is None:
            loading = cold(request, candidates)
            costs = [load(view, self.cold_penalty if view.id in loading else 0.0) for view in candidates]
            reason = "least load"
        if self.weights is not NO_WEIGHTS:
            costs = [cost * factor for cost, factor in zip(costs, factors(candidates, self.weights), strict=True)]
        if reason == "least seconds":  # of those that are as good as equal the emptier one: nobody idles by a hair
            limit = min(costs) * (1.0 + _NEAR_RATIO) + _NEAR_S
            near = [view for view, cost in zip(candidates, costs, strict=True) if cost <= limit]
            return Decision(lowest(near, load, rng).id, reason)
        by_id = {view.id: cost for view, cost in zip(candidates, costs, strict=True)}
        view = lowest(candidates, lambda view: by_id[view.id], rng)
        if reason == "least load" and request.model is not None and view.id in cold(request, candidates):
            reason = "least load, cold"
        return Decision(view.id, reason)

    @staticmethod
    def _seconds(candidates: Sequence[ReplicaView]) -> list[float] | None:
        """What is predicted for each; None: not for all."""
        costs = []
        for view in candidates:
            if view.predicted is None:
                return None
            costs.append(view.predicted.cost_s)
        return costs
