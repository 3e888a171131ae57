"""The policy ``power-of-two``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from corral.model import Decision, ReplicaView, RouteRequest
from corral.policies.pick import load, lowest, weighted


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """Draw two by weight and take the one with the lower (in flight + 1) / weight."""

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        if len(candidates) == 1:
            return Decision(candidates[0].id, "the only one")
        first = weighted(candidates, rng)
        second = weighted([view for view in candidates if view.id != first.id], rng)
        view = lowest((first, second), load, rng)
        return Decision(view.id, "better of two")
