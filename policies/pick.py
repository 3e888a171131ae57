"""Ways to pick: by lowest cost or by weight, with ties broken fairly and without regard to the order of candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import attrgetter
from random import Random

from corral.model import ReplicaView, RouteRequest

_by_id = attrgetter("id")


def lowest(candidates: Sequence[ReplicaView], cost: Callable[[ReplicaView], float], rng: Random) -> ReplicaView:
    """The candidate of lowest cost; of several, any one with equal chance: bare ``min()`` starves the last replica."""
    best: list[ReplicaView] = []
    best_cost = float("inf")
    for view in candidates:
        its_cost = cost(view)
        if its_cost < best_cost or not best:
            best, best_cost = [view], its_cost
        elif its_cost == best_cost:
            best.append(view)
    if len(best) == 1:
        return best[0]
    return sorted(best, key=_by_id)[int(rng.random() * len(best))]


def load(view: ReplicaView, extra: float = 0.0) -> float:
    """How full the replica would be with this request, for its weight; ``extra`` counts as more in flight."""
    return (view.inflight + 1 + extra) / view.weight


def weighted(candidates: Sequence[ReplicaView], rng: Random) -> ReplicaView:
    """Any candidate, with a chance in proportion to its weight."""
    ordered = sorted(candidates, key=_by_id)
    bounds = list(accumulate(view.weight for view in ordered))
    point = rng.random() * bounds[-1]
    return next((view for view, bound in zip(ordered, bounds, strict=True) if point < bound), ordered[-1])


def cold(request: RouteRequest, candidates: Sequence[ReplicaView]) -> frozenset[str]:
    """Ids of the candidates that would have to load the model first.

    Empty where that is not known of *all* of them: a replica must not win or lose by a measure that another lacks.
    """
    ids = []
    for view in candidates:
        if view.loaded is None:
            return frozenset()
        if request.model is not None and request.model not in view.loaded:
            ids.append(view.id)
    return frozenset(ids)


def require_not_negative(name: str, value: float) -> None:
    """For ``__post_init__``: raise ValueError unless the option is a number from 0 up."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be 0 or more, not {value}")
