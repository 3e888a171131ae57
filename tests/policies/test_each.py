"""What sets each policy apart, in cases small enough to check by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random

import pytest

from corral.model import ReplicaView, RequestKind, RouteRequest
from corral.policies import cold, lowest, make_policy, weighted
from tests.policies.views import MODELS, REQUEST, view

HERE, ELSEWHERE = {MODELS[0]}, {MODELS[1]}

CASES: dict[str, tuple[str, Mapping[str, object], Sequence[ReplicaView], str, str]] = {
    "the weight divides the load, the new request included": (
        "weighted-least-load",
        {},
        [view("small", weight=1, inflight=0), view("big", weight=4, inflight=2)],
        "big",
        "least load",
    ),
    "a load of the model counts as four requests": (
        "weighted-least-load",
        {},
        [view("warm", inflight=3, loaded=HERE), view("cold", inflight=0, loaded=ELSEWHERE)],
        "warm",
        "least load",
    ),
    "beyond that the model is loaded once more": (
        "weighted-least-load",
        {},
        [view("warm", inflight=5, loaded=HERE), view("cold", inflight=0, loaded=set())],
        "cold",
        "least load, cold",
    ),
    "the penalty is an option": (
        "weighted-least-load",
        {"cold_penalty": 0},
        [view("warm", inflight=1, loaded=HERE), view("cold", inflight=0, loaded=set())],
        "cold",
        "least load, cold",
    ),
    "what one does not know counts for none": (
        "weighted-least-load",
        {},
        [view("warm", inflight=2, loaded=HERE), view("cold", inflight=1, loaded=set()), view("mute", inflight=9)],
        "cold",
        "least load",
    ),
    "a faster replica does not matter to the count": (
        "least-inflight",
        {},
        [view("slow", weight=0.1, inflight=1), view("fast", weight=9, inflight=2)],
        "slow",
        "fewest in flight",
    ),
    "the turn decides, not the load": (
        "round-robin",
        {},
        [view("busy", inflight=30, turn=1.0), view("idle", inflight=0, turn=1.5)],
        "busy",
        "next in turn",
    ),
    "of two, the better": (
        "power-of-two",
        {},
        [view("busy", inflight=8), view("idle", inflight=0)],
        "idle",
        "better of two",
    ),
    "of two, the better by weight": (
        "power-of-two",
        {},
        [view("small", inflight=0), view("big", weight=9, inflight=2)],
        "big",
        "better of two",
    ),
    "no draw among one": ("power-of-two", {}, [view("a", inflight=8)], "a", "the only one"),
    "however busy, the one that holds the model": (
        "prefer-loaded",
        {},
        [view("warm", inflight=40, loaded=HERE), view("cold", loaded=ELSEWHERE)],
        "warm",
        "loaded",
    ),
    "of those that hold it, the least busy": (
        "prefer-loaded",
        {},
        [view("warm", inflight=5, loaded=HERE), view("warmer", inflight=4, loaded=HERE), view("cold", loaded=set())],
        "warmer",
        "loaded",
    ),
    "of those, by weight": (
        "prefer-loaded",
        {},
        [view("small", inflight=1, loaded=HERE), view("big", weight=4, inflight=3, loaded=HERE)],
        "big",
        "least load",
    ),
    "nobody holds it": (
        "prefer-loaded",
        {},
        [view("a", inflight=2, loaded=set()), view("b", inflight=1, loaded=ELSEWHERE)],
        "b",
        "least load",
    ),
    "not known of all, so of none": (
        "prefer-loaded",
        {},
        [view("warm", inflight=2, loaded=HERE), view("mute", inflight=1)],
        "mute",
        "least load",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rule_of_each_policy(case: str) -> None:
    name, options, candidates, chosen, reason = CASES[case]
    for seed in range(20):
        decision = make_policy(name, options=options).choose(REQUEST, candidates, Random(seed))
        assert (chosen, reason) == (decision.replica_id, decision.reason)


def test_random_draws_by_weight() -> None:
    """4 000 draws: 3 000 +- 27 for the one of weight 3."""
    rng, policy = Random(1), make_policy("random")
    candidates = [view("one", weight=1, inflight=0), view("three", weight=3, inflight=50)]
    counts = Counter(policy.choose(REQUEST, candidates, rng).replica_id for _ in range(4000))
    assert 2880 < counts["three"] < 3120


def test_power_of_two_does_not_look_at_more_than_two() -> None:
    """The idle one among ten is drawn with a chance of 1/5, so an argmin over all would show."""
    rng, policy = Random(1), make_policy("power-of-two")
    candidates = [view("idle"), *(view(f"busy{n}", inflight=5) for n in range(9))]
    counts = Counter(policy.choose(REQUEST, candidates, rng).replica_id for _ in range(1000))
    assert 140 < counts["idle"] < 260


def test_round_robin_is_next_in_turn_by_weight() -> None:
    """Weight 2 gets two of three, in every window of three."""
    policy, turns, sent = make_policy("round-robin"), {"a": 0.0, "b": 0.0}, []
    for seed in range(30):
        candidates = [view("a", weight=2, turn=turns["a"]), view("b", weight=1, turn=turns["b"])]
        sent.append(policy.choose(REQUEST, candidates, Random(seed)).replica_id)
        turns[sent[-1]] += {"a": 0.5, "b": 1.0}[sent[-1]]
    assert [sent[at : at + 3].count("a") for at in range(0, 30, 3)] == [2] * 10


def test_a_request_without_a_model_finds_every_replica_warm() -> None:
    request = RouteRequest(RequestKind.OTHER, None)
    assert cold(request, [view("a", loaded=set()), view("b", loaded=HERE)]) == frozenset()
    assert cold(REQUEST, [view("a", loaded=set()), view("b", loaded=HERE)]) == {"a"}


@pytest.mark.parametrize("cost", [float("inf"), float("nan")])
def test_lowest_takes_any_cost_where_there_is_no_better(cost: float) -> None:
    chosen = lowest([view("a"), view("b")], lambda _: cost, Random(0))
    assert chosen.id in {"a", "b"}


def test_weighted_never_falls_off_the_end() -> None:
    """A draw of almost 1 times a sum that rounds up must still land on a candidate."""

    class Highest(Random):
        def random(self) -> float:
            return 1.0 - 2**-53

    candidates = [view(id, weight=weight) for id, weight in (("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 1e-17))]
    assert weighted(candidates, Highest()).id in {"c", "d"}
