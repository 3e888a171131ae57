"""The policy ``prefer-loaded``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from corral.model import Decision, ReplicaView, RouteRequest
from corral.policies.pick import cold, load, lowest


@dataclass(frozen=True, slots=True)
class PreferLoaded:
    """One that already holds the model if there is any; among those, the lowest (in flight + 1) / weight."""

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        loading = cold(request, candidates)
        warm = [view for view in candidates if view.id not in loading]
        view = lowest(warm or candidates, load, rng)
        return Decision(view.id, "loaded" if warm and loading else "least load")
