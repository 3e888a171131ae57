"""How demand is measured, and how it spreads over replicas: as water does, by a reckoning of another kind."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.gateway.schedule.demand import Arrivals, queues, spread

IDS = ("a", "b", "c", "d")
speeds_of = st.fixed_dictionaries({id: st.sampled_from((0.4, 0.6, 1.0, 1.6, 3.0)) for id in IDS})
homes_of = st.dictionaries(st.sampled_from("klmn"), st.lists(st.sampled_from(IDS), min_size=1, unique=True))
demands_of = st.dictionaries(st.sampled_from("klmn"), st.floats(0, 5))
SAME = 1e-6


def poured(work: float, homes: list[str], used: dict[str, float], speeds: dict[str, float]) -> dict[str, float]:
    """The same by halving: to which level do these rise, so that all of the work is done?"""
    low, high = 0.0, max(used.values()) + work / min(speeds.values()) + 1.0
    for _ in range(80):
        level = (low + high) / 2
        taken = sum(max(0.0, level - used[home]) * speeds[home] for home in homes)
        low, high = (level, high) if taken < work else (low, level)
    return used | {home: max(used[home], high) for home in homes if work > 0}


@given(homes_of, demands_of, speeds_of)
def test_each_keys_work_fills_the_least_busy_of_its_homes(
    homes: dict[str, list[str]], demands: dict[str, float], speeds: dict[str, float]
) -> None:
    expected = dict.fromkeys(IDS, 0.0)
    for key in sorted(homes, key=lambda key: len(homes[key])):
        expected = poured(demands.get(key, 0.0), homes[key], expected, speeds)
    used = spread(demands, homes, speeds)
    assert used == pytest.approx(expected, abs=SAME)


@given(homes_of, demands_of, speeds_of)
def test_all_work_is_done_and_none_where_it_has_no_home(
    homes: dict[str, list[str]], demands: dict[str, float], speeds: dict[str, float]
) -> None:
    used = spread(demands, homes, speeds)
    done = sum(used[id] * speeds[id] for id in IDS)
    assert done == pytest.approx(sum(demands.get(key, 0.0) for key in homes), abs=SAME)
    for id in IDS:
        most = sum(demands.get(key, 0.0) for key, there in homes.items() if id in there)
        assert -SAME <= used[id] * speeds[id] <= most + SAME


@given(st.floats(0.01, 5), speeds_of)
def test_with_one_key_everywhere_all_are_equally_busy(work: float, speeds: dict[str, float]) -> None:
    used = spread({"m": work}, {"m": list(IDS)}, speeds)
    assert used == pytest.approx(dict.fromkeys(IDS, work / sum(speeds.values())))


@given(homes_of, demands_of, speeds_of, st.sampled_from(IDS))
def test_one_more_home_for_the_only_key_never_lengthens_the_queues(
    homes: dict[str, list[str]], demands: dict[str, float], speeds: dict[str, float], id: str
) -> None:
    for key, there in homes.items():
        before = queues(spread(demands, {key: there}, speeds), speeds)
        after = queues(spread(demands, {key: sorted({*there, id})}, speeds), speeds)
        assert after <= before * (1 + SAME) + SAME or speeds[id] < min(speeds[home] for home in there)


def test_queues_grow_with_work_and_beyond_what_can_be_done() -> None:
    lengths = [queues({"a": share}, {"a": 1.0}) for share in (0.0, 0.1, 0.5, 0.89, 0.9, 0.91, 1.0, 2.0)]
    assert lengths[0] == 0.0
    assert lengths == sorted(lengths)
    assert all(length < float("inf") for length in lengths)


@pytest.mark.parametrize("hertz", [0.2, 1.0, 10.0])
def test_the_rate_of_arrivals_is_found_and_fades(hertz: float) -> None:
    rng, now_s = Random(3), 0.0
    arrivals = Arrivals(now_s)
    while now_s < 600.0:
        now_s += rng.expovariate(hertz)
        arrivals.arrived(now_s)
    assert arrivals.hertz(now_s) == pytest.approx(hertz, rel=0.4)
    assert arrivals.hertz(now_s + 300.0) < 0.02 * hertz
    assert not arrivals.is_gone(now_s)
    assert arrivals.is_gone(now_s + 3600.0)


def test_a_young_rate_is_not_thought_to_be_low() -> None:
    arrivals = Arrivals(0.0)
    for second in range(10):
        arrivals.arrived(float(second))
    assert arrivals.hertz(9.0) == pytest.approx(1.0, rel=0.3)
