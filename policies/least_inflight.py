"""The policy ``least-inflight``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from random import Random

from corral.model import Decision, ReplicaView, RouteRequest
from corral.policies.pick import lowest

_inflight = attrgetter("inflight")


@dataclass(frozen=True, slots=True)
class LeastInflight:
    """The fewest requests in flight, whatever the weights."""

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(lowest(candidates, _inflight, rng).id, "fewest in flight")
