"""The engine: whoever decides, every request is sent, answered or lost as a gateway and its Ollamas would have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from random import Random

import pytest

from corral.emulator.catalog import gpu_named, model_given
from corral.emulator.gpu import load_s
from corral.gateway.schedule.scheduler import QueueLimits
from corral.laboratory.engine import run_ours, run_router
from corral.laboratory.types import Arrival, Box, BoxReplica, Incident, Outcome, Run, Sight

GPU = gpu_named("RTX 3090 24GB")
BIG, SMALL = model_given("llama3.1:8b"), model_given("llama3.2:1b")
OURS = "weighted-least-load"


class Rotation:
    """A router that remembers what it was told; with ``most`` it holds what is beyond that on a replica."""

    name = "rotation"

    def __init__(self, most: int = 1_000_000) -> None:
        self.told: list[tuple[str, int, str]] = []
        self.sights: list[Sequence[Sight]] = []
        self._most = most

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        self.sights.append(sights)
        free = [sight for sight in sights if sight.inflight < self._most]
        return free[arrival.number % len(free)].id if free else None

    def began(self, arrival: Arrival, replica_id: str, now_s: float) -> None:
        self.told.append(("began", arrival.number, replica_id))

    def ended(self, arrival: Arrival, replica_id: str, now_s: float, *, ok: bool) -> None:
        self.told.append(("ended" if ok else "failed", arrival.number, replica_id))


def box(replicas: int = 2, slots: int = 2, incidents: Sequence[Incident] = (), max_loaded: int = 3) -> Box:
    ours = tuple(BoxReplica(f"r{number}", GPU, slots, max_loaded=max_loaded) for number in range(replicas))
    return Box("box", ours, (BIG, SMALL), tuple(incidents))


def steady(count: int, gap_s: float = 1.0, output: int = 60, first_s: float = 20.0) -> list[Arrival]:
    """After a first request to each of two replicas, so that the model is loaded."""
    warm = [Arrival(number, 0.0, BIG.name, 10, 2) for number in range(2)]
    return warm + [Arrival(2 + number, first_s + gap_s * number, BIG.name, 400, output) for number in range(count)]


def drawn(count: int, seed: int = 3) -> list[Arrival]:
    rng, at_s, made = Random(seed), 0.0, []
    for number in range(count):
        at_s += rng.expovariate(1.5)
        name = rng.choice([BIG.name, BIG.name, SMALL.name])
        made.append(Arrival(number, at_s, name, rng.randrange(10, 2000), rng.randrange(1, 200), f"t{number % 3}"))
    return made


def both(made: Box, arrivals: Sequence[Arrival]) -> list[Run]:
    return [run_ours(made, arrivals, OURS, {}, seed=1), run_router(made, arrivals, Rotation(), seed=1)]


def by_number(run: Run) -> dict[int, Outcome]:
    return {outcome.arrival.number: outcome for outcome in run.outcomes}


def test_every_request_is_answered_and_its_times_are_in_order() -> None:
    for run in both(box(), drawn(120)):
        assert len(run.outcomes) == 120
        for outcome in run.outcomes:
            assert outcome.ok
            assert outcome.sent_s is not None
            assert outcome.first_token_s is not None
            assert outcome.end_s is not None
            assert outcome.arrival.at_s <= outcome.sent_s < outcome.first_token_s <= outcome.end_s <= run.end_s
        assert run.prompt_tokens == sum(outcome.arrival.prompt_tokens for outcome in run.outcomes)
        assert 0 < run.decide_s < 10
        assert run.decisions == 120
        assert 2 <= run.loads <= 4
        assert all(0 < busy_s <= run.end_s for busy_s in run.busy_s.values())


def test_a_run_is_the_same_each_time_for_its_seed() -> None:
    def facts(run: Run) -> list[object]:
        return [[asdict(outcome) for outcome in run.outcomes], run.busy_s, run.end_s, run.cached_tokens]

    arrivals = drawn(150)
    incidents = [Incident(20.0, "r0", "kill"), Incident(40.0, "r0", "restore"), Incident(50.0, "r1", "throttle", 0.5)]
    first, second = (both(box(incidents=incidents), arrivals) for _ in range(2))
    assert list(map(facts, first)) == list(map(facts, second))
    other = run_ours(box(incidents=incidents), arrivals, OURS, {}, seed=2)
    assert facts(other) != facts(first[0])


def test_our_scheduler_lets_requests_wait_in_its_own_queue_and_a_pushing_router_in_ollama() -> None:
    ours, pushed = both(box(), steady(30, gap_s=0.01, output=100))
    assert any(outcome.sent_s != outcome.arrival.at_s for outcome in ours.outcomes)
    assert all(outcome.sent_s == outcome.arrival.at_s for outcome in pushed.outcomes)


def test_a_policy_gets_its_options() -> None:
    arrivals = [Arrival(number, number * 4.0, BIG.name, 10, 5) for number in range(8)]
    alone = frozenset({"no-placement", "no-learning"})  # or there is nothing that the option would change
    warm = run_ours(box(), arrivals, OURS, {"cold_penalty": 50.0}, seed=1, switches=alone)
    assert (warm.contender, warm.loads) == (OURS, 1)
    assert run_ours(box(), arrivals, OURS, {"cold_penalty": 0.0}, seed=1, switches=alone).loads == 2


def test_a_queue_that_is_full_refuses() -> None:
    run = run_ours(box(), steady(40, gap_s=0.01), OURS, {}, seed=1, limits=QueueLimits(max_requests=5))
    refused = [outcome for outcome in run.outcomes if not outcome.ok]
    assert len(refused) == 40 - 4 - 5
    assert {(outcome.attempts, outcome.end_s == outcome.arrival.at_s) for outcome in refused} == {(0, True)}


def test_a_killed_replica_fails_what_it_streams_and_the_rest_is_answered_elsewhere() -> None:
    arrivals = steady(30, gap_s=0.3, output=200)
    for run in both(box(incidents=[Incident(25.0, "r0", "kill")]), arrivals):
        broken = [outcome for outcome in run.outcomes if not outcome.ok]
        assert broken
        assert {(outcome.replica_id, outcome.end_s) for outcome in broken} == {("r0", 25.0)}
        assert all(outcome.first_token_s is not None and outcome.first_token_s < 25.0 for outcome in broken)
        assert all(outcome.replica_id == "r1" for outcome in run.outcomes if outcome.sent_s and outcome.sent_s > 25.0)
        if run.contender != OURS:
            assert any(outcome.attempts == 2 and outcome.ok for outcome in run.outcomes)


def test_our_scheduler_sends_a_request_elsewhere_that_a_death_caught_before_its_first_token() -> None:
    arrivals = [*steady(0), *(Arrival(2 + number, 24.9, BIG.name, 7000, 20) for number in range(2))]
    run = run_ours(box(slots=4, incidents=[Incident(25.0, "r0", "kill")]), arrivals, OURS, {}, seed=1)
    moved = [outcome for outcome in run.outcomes if outcome.attempts == 2]
    assert {(outcome.replica_id, outcome.ok) for outcome in moved} == {("r1", True)}


def test_a_replica_that_is_back_gets_requests_again_and_loads_its_model_anew() -> None:
    incidents = [Incident(25.0, "r0", "kill"), Incident(40.0, "r0", "restore")]
    for run in both(box(incidents=incidents), steady(120, gap_s=0.3, output=200)):
        used = [(outcome.sent_s, outcome.replica_id) for outcome in run.outcomes if outcome.sent_s]
        assert not [sent_s for sent_s, replica_id in used if replica_id == "r0" and 25.0 < sent_s < 40.0]
        assert [sent_s for sent_s, replica_id in used if replica_id == "r0" and sent_s > 41.0]
        assert run.loads == 3


def test_where_all_replicas_are_dead_requests_wait_for_the_first_that_is_back() -> None:
    incidents = [Incident(25.0, "r0", "kill"), Incident(25.0, "r1", "kill"), Incident(28.0, "r1", "restore")]
    arrivals = [*steady(0), Arrival(2, 26.0, BIG.name, 10, 5)]
    run = run_router(box(incidents=incidents), arrivals, Rotation(), seed=1)
    assert (by_number(run)[2].sent_s, by_number(run)[2].replica_id, by_number(run)[2].ok) == (28.0, "r1", True)


def test_a_throttled_gpu_takes_as_much_longer() -> None:
    def took_s(*incidents: Incident) -> float:
        outcome = by_number(run_router(box(incidents=incidents), steady(1, output=300), Rotation(), seed=1))[2]
        assert outcome.end_s is not None
        return outcome.end_s - outcome.arrival.at_s

    plain_s = took_s()
    assert took_s(Incident(10.0, "r0", "throttle", 0.5)) == pytest.approx(2 * plain_s)
    # half of it at full speed, and the other half at half
    assert took_s(Incident(20.0 + plain_s / 2, "r0", "throttle", 0.5)) == pytest.approx(1.5 * plain_s, rel=0.02)


def test_a_router_that_holds_is_asked_again_in_order_whenever_a_request_ends() -> None:
    router = Rotation(most=1)
    run = run_router(box(slots=4), steady(12, gap_s=0.01), router, seed=1)
    order = sorted(run.outcomes, key=lambda outcome: (outcome.sent_s, outcome.arrival.number))
    assert [outcome.arrival.number for outcome in order] == list(range(14))
    assert all(sight.inflight <= 1 for sights in router.sights for sight in sights)
    assert run.decisions > 14


def test_a_router_sees_counts_by_model_and_what_is_loaded_and_hears_of_every_token_and_end() -> None:
    router = Rotation()
    arrivals = [
        Arrival(0, 0.0, BIG.name, 10, 400),
        Arrival(2, 10.0, BIG.name, 10, 1500),
        Arrival(4, 11.0, SMALL.name, 10, 1500),
        Arrival(6, 14.0, SMALL.name, 10, 5),
    ]
    run_router(box(), arrivals, router, seed=1)
    first, last = router.sights[0], router.sights[-1]
    assert [(sight.loaded, sight.inflight) for sight in first] == [(frozenset(), 0)] * 2
    assert [(sight.loaded, sight.inflight, sight.inflight_model) for sight in last] == [
        (frozenset({BIG.name, SMALL.name}), 2, 1),
        (frozenset(), 0, 0),
    ]
    assert sorted(router.told) == sorted((what, number, "r0") for what in ("began", "ended") for number in (0, 2, 4, 6))


def test_a_request_for_a_model_that_is_being_loaded_waits_for_the_load() -> None:
    run = run_router(box(), [Arrival(0, 5.0, BIG.name, 100, 2)], Rotation(), seed=1)
    first_s = run.outcomes[0].first_token_s
    assert first_s is not None
    assert first_s - 5.0 > load_s(BIG)


def test_a_run_ends_although_nobody_is_left_to_answer() -> None:
    dead = box(incidents=[Incident(25.0, "r0", "kill"), Incident(25.0, "r1", "kill")])
    run = run_router(dead, steady(10), Rotation(), seed=1)
    assert [outcome.ok for outcome in run.outcomes].count(False) >= 4
    assert run.end_s >= 25.0


def test_arrivals_need_not_begin_at_zero_nor_be_numbered_in_a_row() -> None:
    arrivals = [replace(arrival, number=7 * arrival.number, at_s=arrival.at_s + 900) for arrival in drawn(40)]
    for run in both(box(), arrivals):
        assert all(outcome.ok for outcome in run.outcomes)
