"""What is learned of costs: it comes true in spite of noise, follows what changes, and is the weights before that."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.gateway.schedule.costs import Costs
from corral.gateway.schedule.rates import Rates
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import Figures, OllamaSample, Replica, RequestKind, RouteRequest
from corral.policies import make_policy
from tests.gateway.schedule.history import installed

SPEEDS = {"a": 1.6, "b": 1.0, "c": 0.6, "d": 0.4}
"""Of the replicas, which are all configured with weight 1."""
KEYS = {"small": 0.01, "large": 0.05}
"""Seconds per token on a replica of speed 1."""
BESIDE = 0.3
"""What one more stream costs, as a share of the time alone."""


def truth(replica: str, key: str, company: float) -> float:
    return KEYS[key] / SPEEDS[replica] * (1.0 + BESIDE * company)


def trained(samples: int, noise: float, seed: int = 1) -> Rates:
    rng, rates = Random(seed), Rates()
    rates.set_weights(dict.fromkeys(SPEEDS, 1.0))
    for _ in range(samples):
        replica, key, company = rng.choice(sorted(SPEEDS)), rng.choice(sorted(KEYS)), rng.choice((0.0, 1.0, 2.0, 3.0))
        rates.observe(replica, key, company, truth(replica, key, company) * rng.lognormvariate(0.0, noise))
    return rates


def at(rates: Rates, replica: str, key: str, company: float) -> float:
    alone_s, more_s = rates.line(replica, key)
    return alone_s + more_s * company


@pytest.mark.parametrize(("samples", "noise", "within"), [(100, 0.0, 0.25), (200, 0.0, 0.08), (800, 0.1, 0.15)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_measured_is_expected(samples: int, noise: float, within: float, seed: int) -> None:
    rates = trained(samples, noise, seed)
    for replica in SPEEDS:
        for key in KEYS:
            for company in (0.0, 1.0, 3.0):
                expected_s = at(rates, replica, key, company)
                assert expected_s == pytest.approx(truth(replica, key, company), rel=within)


def test_a_key_is_predicted_where_it_never_was() -> None:
    rates = trained(400, 0.05)
    for _ in range(30):
        rates.observe("a", "new", 0.0, 0.02 / SPEEDS["a"])
    assert at(rates, "d", "new", 0.0) == pytest.approx(0.02 / SPEEDS["d"], rel=0.2)


def test_a_replica_without_history_is_predicted_from_its_weight() -> None:
    rates = Rates()
    rates.set_weights({"a": 1.0, "b": 2.0})
    for _ in range(50):
        rates.observe("a", "m", 0.0, 0.01)
    assert at(rates, "b", "m", 0.0) == pytest.approx(0.005, rel=0.02)
    assert at(rates, "b", "m", 1.0) == pytest.approx(0.010, rel=0.02), "one after the other, until it is measured"
    assert rates.speed("c", 0.7) == 0.7


def test_a_new_weight_begins_anew() -> None:
    rates = trained(200, 0.0)
    rates.set_weights(dict.fromkeys(SPEEDS, 1.0) | {"d": 4.0})
    assert rates.speed("d", 4.0) == 4.0
    assert rates.speed("a", 1.0) != 1.0, "what was learned of the others stays"


def test_a_throttled_replica_is_followed_within_thirty_answers() -> None:
    rates = trained(400, 0.05)
    slow = 1 / 0.6
    rng = Random(9)
    for _ in range(30):
        rates.observe("a", "large", 1.0, truth("a", "large", 1.0) * slow * rng.lognormvariate(0.0, 0.05))
    assert at(rates, "a", "large", 1.0) == pytest.approx(truth("a", "large", 1.0) * slow, rel=0.1)
    assert at(rates, "b", "large", 1.0) == pytest.approx(truth("b", "large", 1.0), rel=0.2), "the others as before"


def test_one_measurement_that_is_far_off_spoils_nothing() -> None:
    rates = trained(400, 0.0)
    rates.observe("b", "small", 0.0, 1000.0)
    assert at(rates, "b", "small", 0.0) < 2.0 * truth("b", "small", 0.0)
    for nothing in (0.0, -1.0, float("nan")):
        before_s = at(rates, "b", "small", 0.0)
        rates.observe("b", "small", 0.0, nothing)
        assert at(rates, "b", "small", 0.0) == before_s


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("mn"), st.floats(0, 8), st.floats(1e-6, 1e4))))
def test_no_measurements_make_nonsense(measured: list[tuple[str, str, float, float]]) -> None:
    rates = Rates()
    for replica, key, company, seconds in measured:
        rates.observe(replica, key, company, seconds)
    for replica, key, _, _ in measured:
        alone_s, more_s = rates.line(replica, key)
        assert 0.0 < alone_s < float("inf")
        assert 0.0 <= more_s < float("inf")


# ---- without history it is weighted least-connections


@given(
    weights=st.lists(st.sampled_from((0.4, 0.6, 1.0, 1.6, 2.0, 3.0)), min_size=2, max_size=5),
    ends=st.lists(st.tuples(st.booleans(), st.integers(0, 10_000)), max_size=40),
    seed=st.integers(0, 99),
)
def test_without_history_it_is_weighted_least_connections(
    weights: list[float], ends: list[tuple[bool, int]], seed: int
) -> None:
    """Each request goes where (in flight + 1) / weight is the least."""
    replicas = [Replica(f"r{at}", "h", at, weight, 100) for at, weight in enumerate(weights)]
    policy = make_policy("weighted-least-load")
    scheduler: Scheduler[Ticket] = Scheduler(policy, "weighted-least-load", QueueLimits(), Random(seed))
    scheduler.set_replicas(replicas, 0.0)
    for replica in replicas:
        scheduler.sampled(OllamaSample(replica.id, 0.0, None, installed("m"), None), 0.0)
    inflight = dict.fromkeys((replica.id for replica in replicas), 0)
    running: list[Ticket] = []
    for has_ended, pick in ends:
        if has_ended and running:
            ticket = running.pop(pick % len(running))
            assert ticket.lease is not None
            inflight[ticket.lease.replica.id] -= 1
            scheduler.spared(ticket, 0.0)
            continue
        ticket = Ticket(RouteRequest(RequestKind.INFERENCE, "m:latest"), 0.0)
        scheduler.submit(ticket, 0.0)
        assert ticket.lease is not None
        loads = {replica.id: (inflight[replica.id] + 1) / replica.weight for replica in replicas}
        assert loads[ticket.lease.replica.id] == min(loads.values())
        inflight[ticket.lease.replica.id] += 1
        running.append(ticket)


# ---- what else is learned of requests


def request(tenant: str = "", text_bytes: int | None = 400, limit: int | None = None) -> RouteRequest:
    return RouteRequest(
        RequestKind.INFERENCE, "m:latest", tenant=tenant, text_bytes=text_bytes, body_bytes=500, output_limit=limit
    )


def test_sizes_are_learned_and_limits_hold() -> None:
    costs = Costs()
    assert costs.prompt_tokens(request()) == 100.0, "four bytes a token, until it is known"
    for _ in range(50):
        costs.ended(request("long"), Figures(200, 1000), 1.0)
        costs.ended(request("short"), Figures(200, 10), 1.0)
    assert costs.prompt_tokens(request()) == pytest.approx(200.0)
    assert costs.prompt_tokens(request(text_bytes=None)) == pytest.approx(250.0), "of the whole body"
    assert costs.output_tokens(request("long")) > 700
    assert costs.output_tokens(request("short")) < 200
    assert 200 < costs.output_tokens(request("unknown")) < 800
    assert costs.output_tokens(request("long", limit=5)) == 5.0


def test_a_load_is_expected_to_take_what_loads_took() -> None:
    costs = Costs()
    unknown_s = costs.load_s("m:latest", "m:latest")
    costs.know_size("m:latest", 30_000_000_000)
    assert costs.load_s("m:latest", "m:latest") > unknown_s
    costs.loaded("m:latest", 3.0)
    assert costs.load_s("m:latest", "m:latest") == 3.0
