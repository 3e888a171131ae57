"""Fairness between tenants: who is light, and how far two tenants drift apart while both wait."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from corral.gateway.schedule.waiting import QueueLimits
from corral.laboratory.types import Box, Outcome

_COMPARED = 8
"""Tenants of the most demand that are compared pair by pair; the others rarely wait for long."""

QUANTUM_S = QueueLimits().quantum_s
"""GPU-seconds that a tenant may be ahead of another and still go first."""


def light_tenants(demands: Sequence[tuple[str, float]]) -> set[str]:
    """Those that ask for no more than an equal share of the whole; everyone, where there is one tenant."""
    if not demands:
        return set()
    total: dict[str, float] = defaultdict(float)
    for tenant, seconds in demands:
        total[tenant] += seconds
    share = sum(total.values()) / len(total)
    return {tenant for tenant, seconds in total.items() if seconds <= share * (1 + 1e-9)}


def vtc_gap_s(requests: Sequence[tuple[Outcome, float]]) -> float:
    """The most that two tenants' service, in GPU-seconds begun, drifts apart while both have requests waiting.

    ``requests``: outcomes, each with the GPU-seconds it takes alone. 0 where no two tenants ever wait together.
    """
    of_tenant: dict[str, list[tuple[Outcome, float]]] = defaultdict(list)
    for outcome, seconds in requests:
        of_tenant[outcome.arrival.tenant].append((outcome, seconds))
    heavy = sorted(of_tenant, key=lambda tenant: -sum(seconds for _, seconds in of_tenant[tenant]))[:_COMPARED]
    return max((_drift_s(of_tenant[a], of_tenant[b]) for a, b in combinations(heavy, 2)), default=0.0)


def vtc_bound_s(costs_s: Sequence[float], box: Box) -> float:
    """How far two tenants may drift apart: quantum + 2 · largest cost · slots of one replica.

    Stricter than what can be proved, where all slots of the box count (a counter moves when a request is sent, by what
    it is thought to take, and until they end all that are under way may turn out to take more, on either side): within
    that is often even who shares nothing.
    """
    return QUANTUM_S + 2 * max(costs_s) * max(replica.slots for replica in box.replicas)


def _drift_s(left: Sequence[tuple[Outcome, float]], right: Sequence[tuple[Outcome, float]]) -> float:
    """Walks all arrivals and sendings of two tenants; a drift counts from when both began to wait."""
    waiting = [0, 0]
    ahead_s = least_s = most_s = gap_s = 0.0
    for _, is_sent, side, seconds in sorted([*_events(left, 0), *_events(right, 1)]):
        both = all(waiting)
        if is_sent:
            if both:
                ahead_s += -seconds if side else seconds
                least_s, most_s = min(least_s, ahead_s), max(most_s, ahead_s)
                gap_s = max(gap_s, most_s - least_s)
            waiting[side] -= 1
        else:
            waiting[side] += 1
            if not both:
                ahead_s = least_s = most_s = 0.0
    return gap_s


def _events(requests: Sequence[tuple[Outcome, float]], side: int) -> list[tuple[float, bool, int, float]]:
    events = []
    for outcome, seconds in requests:
        # tokens tell when it was served also where it waited inside the replica
        if outcome.first_token_s is not None and outcome.first_token_s > outcome.arrival.at_s:
            events.append((outcome.arrival.at_s, False, side, seconds))
            events.append((outcome.first_token_s, True, side, seconds))
    return events
