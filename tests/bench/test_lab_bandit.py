"""The example of a policy that learns: it finds the better arm, and works before anything is predicted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from corral.errors import ConfigError
from corral.laboratory.boxes import BoxSpec
from corral.laboratory.campaign import Scenario, contender, play
from corral.laboratory.workloads import Work
from corral.model import Choice, Decision, Policy, Prediction, ReplicaView, RequestKind, RouteRequest
from corral.policies import make_policy

PATH = Path(__file__).parents[2] / "examples" / "bandit.py"
REQUEST = RouteRequest(RequestKind.INFERENCE, "m:8b")


def bandit(**options: object) -> Policy:
    return make_policy("Bandit", PATH, options)


def view(name: str, inflight: int = 0, predicted: Prediction | None = None) -> ReplicaView:
    return ReplicaView(name, 1.0, 4, inflight, inflight, frozenset({"m:8b"}), predicted=predicted)


def prediction(wait_s: float = 0.0, decode_s: float = 2.0, others_s: float = 0.0) -> Prediction:
    return Prediction(wait_s, 0.3, decode_s, others_s, 0.0, 1.0, 0.0)


def choice(decision: Decision, views: list[ReplicaView]) -> Choice:
    return Choice(0.0, "m:8b", RequestKind.INFERENCE, 0.0, decision, tuple(views))


def test_until_something_is_predicted_it_is_least_load() -> None:
    views = [view("a", 2), view("b", 1, prediction())]
    assert bandit().choose(REQUEST, views, Random(0)) == Decision("b", "least load")


def test_the_arm_with_the_lower_times_is_played_most_in_the_end() -> None:
    policy, rng, played = bandit(hold=4), Random(0), Counter[str]()
    views = [view("a", 1, prediction()), view("b", 1, prediction(others_s=1))]
    for number in range(1200):
        decision = policy.choose(REQUEST, views, rng)
        arm = decision.reason
        took_s = (1.0 if arm == "arm 2" else 2.0) * rng.uniform(0.7, 1.4)
        policy.learn(REQUEST, choice(decision, views), took_s, took_s + 2, None)  # type: ignore[attr-defined]
        if number >= 600:
            played[arm] += 1
    assert played.most_common(1)[0][0] == "arm 2"
    assert played["arm 2"] > 450


def test_it_is_the_same_for_a_seed_and_learns_nothing_from_others_decisions() -> None:
    views = [view("a", 1, prediction()), view("b", 2, prediction(others_s=1))]

    def chosen() -> list[Decision]:
        policy, rng = bandit(hold=1), Random(3)
        foreign = choice(Decision("a", "last resort"), views)
        policy.learn(REQUEST, foreign, 1.0, 2.0, None)  # type: ignore[attr-defined]
        return [policy.choose(REQUEST, views, rng) for _ in range(50)]

    assert chosen() == chosen()
    assert len({decision.reason for decision in chosen()}) > 3


def test_it_serves_every_request_in_the_laboratory() -> None:
    scenario = Scenario("small", Work("poisson", 60), BoxSpec(), 0.7)
    assert play(scenario, contender(f"corral:{PATH}:Bandit?hold=5"), 0)["failed"] == 0


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="hold and alike"):
        bandit(hold=0)
