"""The policy ``round-robin``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from random import Random

from corral.model import Decision, ReplicaView, RouteRequest
from corral.policies.pick import lowest

_turn = attrgetter("turn")


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """The one whose turn it is: each gets requests in proportion to its weight, whatever its load."""

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(lowest(candidates, _turn, rng).id, "next in turn")
