"""The clairvoyant reference forecasts as the emulator computes, and uses what it knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corral.laboratory.boxes import BoxSpec, make_box
from corral.laboratory.engine import run_router
from corral.laboratory.forecast import forecast, work_of
from corral.laboratory.oracle import Oracle, run_oracle
from corral.laboratory.rivals import RIVALS
from corral.laboratory.speeds import solo
from corral.laboratory.types import Arrival, Run, Sight

BOX = make_box(BoxSpec("unequal-4"))
MODEL = BOX.models[0]
FAST = BOX.replicas[0]


def ask(number: int, prompt: int = 1024, output: int = 200, model: str = MODEL.name) -> Arrival:
    return Arrival(number, 0.0, model, prompt, output)


def sights(loaded: tuple[str, ...] = (MODEL.name,)) -> list[Sight]:
    return [Sight(r.id, r.weight, r.slots, 0, 0, frozenset(loaded)) for r in BOX.replicas]


def test_a_request_alone_is_forecast_as_it_runs_alone() -> None:
    one, alone = work_of(ask(0)), solo(FAST, MODEL, ask(0))
    forecast(FAST, {MODEL.name: MODEL}, [one], float("inf"))
    assert one.first_s == pytest.approx(alone.ttft_s)
    assert one.end_s == pytest.approx(alone.total_s, rel=0.001)


def test_a_forecast_in_two_parts_is_the_whole() -> None:
    models = {MODEL.name: MODEL}
    whole, parts = [work_of(ask(n)) for n in range(3)], [work_of(ask(n)) for n in range(3)]
    forecast(FAST, models, whole, 1.0)
    forecast(FAST, models, parts, 0.3)
    forecast(FAST, models, parts, 0.7)
    left = [(w.prefill_tokens, w.decode_tokens) for w in parts]
    assert [(w.prefill_tokens, w.decode_tokens) for w in whole] == [pytest.approx(pair, rel=0.01) for pair in left]


def test_the_fifth_of_four_slots_waits_for_the_shortest_answer() -> None:
    works = [work_of(ask(n, 100, 400 if n else 50)) for n in range(5)]
    forecast(FAST, {MODEL.name: MODEL}, works, float("inf"))
    assert works[4].first_s > works[0].end_s
    assert works[4].first_s < min(w.end_s for w in works[1:4])


def test_it_takes_the_fastest_and_spreads_what_comes_at_once() -> None:
    oracle = Oracle(BOX, 0)
    chosen = [oracle.choose(ask(n), sights(), 0.0) for n in range(12)]
    assert chosen[0] == "gpu0"
    assert len(set(chosen)) > 1
    assert chosen.count("gpu0") > chosen.count("gpu3")


def test_it_knows_which_answers_are_long() -> None:
    oracle = Oracle(make_box(BoxSpec("equal-4", slots=1)), 0)
    seen = sights()
    first = {oracle.choose(ask(n, 100, length), seen, 0.0): length for n, length in enumerate((900, 900, 40, 900))}
    assert first[oracle.choose(ask(9, 100, 100), seen, 0.0)] == 40


def test_what_ended_and_time_that_passed_are_forgotten() -> None:
    oracle = Oracle(BOX, 0)
    for n in range(4):
        oracle.choose(ask(n), sights()[:1], 0.0)
    for n in range(4):
        oracle.began(ask(n), "gpu0", 0.5)
        oracle.ended(ask(n), "gpu0", 1.0, ok=True)
    assert oracle.choose(ask(9), sights(), 1.0) == "gpu0"


def test_a_load_counts_and_is_not_begun_where_the_model_is() -> None:
    seen = sights(())
    seen[3] = replace(seen[3], loaded=frozenset({MODEL.name}))
    assert Oracle(BOX, 0).choose(ask(0, 64, 8), seen, 0.0) == "gpu3"


def test_a_model_leaves_only_for_one_that_is_nowhere() -> None:
    others = frozenset({"a", "b"})
    full = [replace(sight, loaded=others) for sight in sights()]
    assert Oracle(BOX, 0).choose(ask(0), full, 0.0) is not None
    busy = replace(full[3], loaded=frozenset({MODEL.name}), inflight_model=4)
    assert Oracle(BOX, 0).choose(ask(0), [*full[:3], busy], 0.0) is None


def test_shortest_first_with_true_lengths_is_better_on_average_than_first_come() -> None:
    box = make_box(BoxSpec("equal-4", slots=1))
    rush = [replace(ask(n, 200, 20 if n % 3 else 800), at_s=n * 0.05) for n in range(60)]
    oracle = run_oracle(box, rush, 0)
    haproxy = run_router(box, rush, RIVALS["haproxy-maxconn"](box, 0), 0)

    def mean_s(run: Run) -> float:
        return sum((one.first_token_s or 1e9) - one.arrival.at_s for one in run.outcomes) / len(rush)

    assert all(one.ok for one in oracle.outcomes)
    assert mean_s(oracle) < 0.7 * mean_s(haproxy)
