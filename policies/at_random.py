"""The policy ``random``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from corral.model import Decision, ReplicaView, RouteRequest
from corral.policies.pick import weighted


@dataclass(frozen=True, slots=True)
class AtRandom:
    """Any one, with a chance in proportion to its weight."""

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(weighted(candidates, rng).id, "drawn")
