"""Figures of a run are right by hand, and what failed never looks good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corral.laboratory.bounds import best_hits, bounds, least_gpu_s, mean_flow_s
from corral.laboratory.boxes import BoxSpec, make_box
from corral.laboratory.fairness import QUANTUM_S, light_tenants, vtc_bound_s, vtc_gap_s
from corral.laboratory.measures import FAILED_S, measure, seen
from corral.laboratory.speeds import Solos, solo
from corral.laboratory.spread import jain, paired_ratio, percentile
from corral.laboratory.types import Arrival, Box, Outcome, Run
from corral.laboratory.workloads import FLOODER, generate, with_models

BOX = make_box(BoxSpec("unequal-4"))
MODEL = BOX.models[0].name


def ask(number: int, at_s: float = 0.0, tenant: str = "", blocks: tuple[int, ...] = ()) -> Arrival:
    return Arrival(number, at_s, MODEL, 512, 101, tenant, blocks)


def served(arrival: Arrival, ttft_s: float, tpot_s: float, replica_id: str = "gpu0") -> Outcome:
    first_s = arrival.at_s + ttft_s
    return Outcome(arrival, replica_id, arrival.at_s, first_s, first_s + 100 * tpot_s, ok=True, attempts=1)


def run_of(outcomes: list[Outcome], box: Box = BOX, **others: float) -> Run:
    end_s = max((outcome.end_s or 0.0) for outcome in outcomes)
    busy = {replica.id: others.get(replica.id, 0.0) for replica in box.replicas}
    return Run(box, "x", 0, outcomes, end_s, busy, 3, 1000, 250, 0.001, 10)


def test_times_and_shares_are_those_of_the_outcomes() -> None:
    outcomes = [served(ask(n, float(n)), 1.0, 0.01) for n in range(10)]
    found = measure(run_of(outcomes))
    assert found["ttft_mean"] == pytest.approx(1.0)
    assert found["e2e_p50"] == pytest.approx(2.0)
    assert found["norm_latency_s"] == pytest.approx(2 / 101)
    assert found["makespan_s"] == pytest.approx(11)
    assert found["served_rps"] == pytest.approx(10 / 11)
    assert found["output_tok_s"] == pytest.approx(1010 / 11)
    assert found["prefix_hit_ratio"] == 0.25
    assert found["decision_us"] == pytest.approx(100)
    assert (found["loads"], found["failed"], found["retried"]) == (3, 0, 0)


def test_goodput_needs_both_the_first_token_and_the_pace() -> None:
    alone = Solos(BOX).of(ask(0))
    slack_s = max(2.0, 2 * alone.ttft_s + 1)
    outcomes = [
        served(ask(0), slack_s - 0.01, alone.tpot_s * 1.9),
        served(ask(1), slack_s + 0.01, alone.tpot_s * 1.9),
        served(ask(2), slack_s - 0.01, alone.tpot_s * 2.1),
        Outcome(ask(3), "gpu0", 0.0, 0.1, 0.2, ok=False, attempts=1),
    ]
    assert [one.is_good for one in seen(run_of(outcomes))] == [True, False, False, False]
    assert measure(run_of(outcomes))["good_ratio"] == 0.25


def test_a_slow_gpu_can_keep_the_slo_of_the_slowest_and_not_that_of_the_best() -> None:
    best, slowest = Solos(BOX).best_and_slowest(ask(0))
    assert slowest.tpot_s > 2 * best.tpot_s
    found = measure(run_of([served(ask(0), slowest.ttft_s, slowest.tpot_s)]))
    assert (found["good_ratio"], found["good_slowest_ratio"]) == (0, 1)
    assert measure(run_of([served(ask(0), 0.1, slowest.tpot_s * 2.1)]))["good_slowest_ratio"] == 0


def test_prediction_errors_are_shares_of_what_it_took_from_sending() -> None:
    right = replace(served(ask(0), 1.0, 0.01), predicted_ttft_s=1.0, predicted_e2e_s=2.0)
    late = replace(served(ask(1), 3.0, 0.01), sent_s=1.0, predicted_ttft_s=1.0, predicted_e2e_s=3.0)
    unknown = served(ask(2), 5.0, 0.01)
    failed = replace(right, arrival=ask(3), ok=False, predicted_ttft_s=99.0)
    found = measure(run_of([right, late, unknown, failed]))
    assert [found["ttft_mape"], found["ttft_mdape"]] == pytest.approx([0.25, 0.25])
    assert found["e2e_mape"] == pytest.approx(0)
    assert not {"ttft_mape", "e2e_mdape"} & measure(run_of([unknown])).keys()


def test_a_request_that_failed_early_counts_as_a_client_that_gave_up() -> None:
    outcomes = [served(ask(0), 1, 0.01), Outcome(ask(1), end_s=0.01), Outcome(ask(2))]
    found = measure(run_of(outcomes))
    assert found["failed"] == 2
    assert found["ttft_p99"] == pytest.approx(FAILED_S)
    waited = Outcome(ask(3), end_s=500.0)
    assert seen(run_of([waited]))[0].e2e_s == 500


def test_balance_counts_the_gpus_that_one_ollama_leaves_idle() -> None:
    outcomes = [served(ask(0), 9.0, 0.01)]
    assert measure(run_of(outcomes, gpu0=5.0, gpu1=5.0, gpu2=5.0, gpu3=5.0))["busy_std_pct"] == 0
    assert measure(run_of(outcomes, gpu0=10.0, gpu1=10.0))["busy_std_pct"] == pytest.approx(50)
    one = make_box(BoxSpec("one-ollama-8"))
    assert measure(run_of(outcomes, one, gpu0=10.0))["busy_std_pct"] == pytest.approx(100 * (7 / 64) ** 0.5)


def test_the_warm_up_is_told_apart_and_still_counts_as_served_or_failed() -> None:
    outcomes = [Outcome(ask(0), end_s=1.0), served(ask(1, 1.0), 9, 0.01), served(ask(2, 10.0), 1, 0.01)]
    found = measure(run_of(outcomes), warm_up_s=5)
    assert found["ttft_mean"] == pytest.approx(1)
    assert found["cold_ttft_mean"] == pytest.approx((FAILED_S + 9) / 2)
    assert found["failed"] == 1
    assert found["served_rps"] == pytest.approx(2 / found["makespan_s"])


def test_a_run_without_requests_has_no_figures() -> None:
    with pytest.raises(ValueError, match="without requests"):
        measure(Run(BOX, "x", 0, [], 0.0, {}, 0, 0, 0))


def test_tenants_served_alike_are_fair_and_one_kept_waiting_is_not() -> None:
    alike = [served(ask(n, 0.0, f"t{n % 2}"), 1.0, 0.01) for n in range(10)]
    assert measure(run_of(alike))["jain"] == pytest.approx(1)
    unlike = [served(ask(n, 0.0, f"t{n % 2}"), 1.0 + 60 * (n % 2), 0.01) for n in range(10)]
    assert measure(run_of(unlike))["jain"] < 0.6


def test_light_tenants_are_those_below_an_equal_share() -> None:
    assert light_tenants([("a", 10), ("b", 1), ("c", 1)]) == {"b", "c"}
    assert light_tenants([("", 3), ("", 4)]) == {""}
    outcomes = [served(ask(n, 0.0, "heavy"), 50, 0.01) for n in range(9)] + [served(ask(9, 0.0, "light"), 1, 0.01)]
    alone_s = Solos(BOX).of(ask(0)).total_s
    assert measure(run_of(outcomes))["light_slowdown_p99"] == pytest.approx(2 / alone_s)


def test_who_is_light_does_not_depend_on_a_flooder_and_the_flood_is_the_middle_third() -> None:
    heavy = [served(ask(n, float(n), "heavy"), 1, 0.01) for n in range(0, 90, 2)]
    light = [served(ask(n, float(n), "light"), 9.0 if 30 <= n <= 60 else 1.0, 0.01) for n in range(1, 91, 10)]
    flood = [served(ask(n, 40.0, FLOODER), 50, 0.01) for n in range(100, 160)]
    alone_s = Solos(BOX).of(ask(0)).total_s
    calm, flooded = (measure(run_of(sorted(outcomes, key=lambda one: one.arrival.at_s)))
                     for outcomes in (heavy + light, heavy + light + flood))  # fmt: skip
    assert calm["light_slowdown_p99"] == flooded["light_slowdown_p99"]
    assert flooded["flooded_light_slowdown_p99"] == pytest.approx(10 / alone_s)
    assert flooded["others_slowdown_p99"] < flooded["flooded_light_slowdown_p99"] + 1e-9


def test_the_bound_of_the_gap_is_the_quantum_and_what_one_replica_can_have_under_way() -> None:
    assert vtc_bound_s([1.0, 3.0], BOX) == pytest.approx(QUANTUM_S + 2 * 3 * 4)


def test_the_gap_grows_while_one_waiting_tenant_is_served_alone() -> None:
    def begun(number: int, tenant: str, first_s: float) -> tuple[Outcome, float]:
        return served(ask(number, 0.0, tenant), first_s, 0.01), 2.0

    unfair = [begun(n, "a", 1.0 + n) for n in range(5)] + [begun(5 + n, "b", 10.0 + n) for n in range(5)]
    fair = [begun(n, "ab"[n % 2], 1.0 + n) for n in range(10)]
    assert vtc_gap_s(unfair) == pytest.approx(10)
    assert vtc_gap_s(fair) <= 4
    assert vtc_gap_s([begun(0, "a", 1.0)]) == 0


def test_percentiles_jain_and_ratios_by_hand() -> None:
    assert [percentile([1, 2, 3, 4, 5], p) for p in (0, 0.5, 0.9, 1)] == pytest.approx([1, 3, 4.6, 5])
    with pytest.raises(ValueError):
        percentile([], 0.5)
    assert jain([2, 2, 2]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([0, 0]) == 1
    found = paired_ratio({0: 2.0, 1: 3.0, 2: 4.0, 9: 1.0}, {0: 1.0, 1: 1.0, 2: 1.0})
    assert found is not None
    assert (found.median, found.low, found.high) == (3, 2, 4)
    assert paired_ratio({0: 1.0}, {1: 1.0}) is None
    assert paired_ratio({0: 1.0}, {0: 0.0}) is None


def test_the_shortest_remaining_first_bound_by_hand() -> None:
    assert mean_flow_s([(0, 2), (0, 1)]) == pytest.approx((1 + 3) / 2)
    assert mean_flow_s([(0, 10), (1, 1)]) == pytest.approx((11 + 1) / 2)
    assert mean_flow_s([(0, 1), (5, 1)]) == pytest.approx(1)
    assert mean_flow_s([]) == 0


def test_the_best_hits_are_the_blocks_seen_before_in_a_row() -> None:
    asks = [
        Arrival(0, 0, "m", 1100, 1, "", (0, 1)),
        Arrival(1, 1, "m", 1600, 1, "", (0, 1, 2)),
        Arrival(2, 2, "m", 1600, 1, "", (0, 9, 2)),
        Arrival(3, 3, "n", 1024, 1, "", (0, 1)),
        Arrival(4, 4, "m", 1024, 1, "", (0, 1)),
    ]
    assert best_hits(asks) == [0, 1024, 512, 0, 1023]


def test_the_bound_is_below_a_request_alone_and_grows_when_all_come_at_once() -> None:
    calm = with_models(generate("poisson", 200, 0), [MODEL], 0)
    low = bounds(BOX, calm)
    alone = [Solos(BOX).of(arrival) for arrival in calm]
    assert low.ttft_mean_s == pytest.approx(sum(one.ttft_s for one in alone) / 200)
    assert low.loads == 1
    rush = bounds(BOX, [Arrival(a.number, 0.0, a.model, a.prompt_tokens, a.output_tokens) for a in calm])
    assert rush.e2e_mean_s > 2 * low.e2e_mean_s
    assert rush.makespan_s < low.makespan_s


@pytest.mark.parametrize("slots", [1, 4])
def test_the_least_share_of_a_gpu_is_never_more_than_all_of_it(slots: int) -> None:
    box = make_box(BoxSpec("equal-4", slots=slots))
    for arrival in with_models(generate("poisson", 100, 1), [MODEL], 0):
        assert least_gpu_s(box.replicas[0], box.models[0], arrival) <= solo(
            box.replicas[0], box.models[0], arrival
        ).total_s * (1 + 1e-9)
