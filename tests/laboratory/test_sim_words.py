"""What `corral policy sim` says of the differences, from figures that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corral.laboratory.contender import Contender
from corral.laboratory.sim.effect import Effect, middle
from corral.laboratory.sim.words import changes, seconds

FIGURES = {
    "ttft_mean": 1.0,
    "ttft_p99": 4.0,
    "e2e_mean": 5.0,
    "good_slowest_ratio": 0.9,
    "refused": 0.0,
    "failed": 0.0,
    "loads": 3.0,
}
BASE = Effect(FIGURES, {"a": 0.5, "b": 0.5}, {"a": 0.7, "b": 0.7})
WHOS = [Contender("new"), Contender("old")]


def said(**changed: float) -> str:
    (line,) = changes(WHOS, [replace(BASE, figures=FIGURES | changed), BASE])
    return line


def test_better_worse_and_alike_are_told_apart() -> None:
    assert "the first token comes 50 % sooner on average (0.500 s instead of 1.00 s)" in said(ttft_mean=0.5)
    assert "the first token comes 50 % later on average (1.50 s instead of 1.00 s)" in said(ttft_mean=1.5)
    assert "the first token comes 3.0 times as late on average" in said(ttft_mean=3.0)
    assert "the first token comes about as soon on average (1.02 s)" in said(ttft_mean=1.02)
    assert "99 % sooner" in said(ttft_mean=0.0001)


def test_refusals_failures_loads_and_the_slo_are_told_only_where_they_differ() -> None:
    assert "refused" not in said()
    assert "1 request is refused instead of 0" in said(refused=1.0)
    assert "12 requests are failed instead of 0" in said(failed=12.0)
    assert "models are loaded once instead of 3 times" in said(loads=1.0)
    assert "5 of 100 requests more are within the SLO" in said(good_slowest_ratio=0.95)
    assert "20 of 100 requests fewer are within the SLO" in said(good_slowest_ratio=0.7)


def test_the_replica_that_gains_most_is_named() -> None:
    (line,) = changes(WHOS, [replace(BASE, shares={"a": 0.8, "b": 0.2}), BASE])
    assert line.endswith("a answers 80 % of the requests instead of 50 %.")


def test_one_alone_is_compared_with_nothing() -> None:
    assert changes(WHOS[:1], [BASE]) == ["new is compared with nothing: --against NAME"]


def test_a_divisor_of_zero_is_no_bug() -> None:
    (line,) = changes(WHOS, [BASE, replace(BASE, figures=dict.fromkeys(FIGURES, 0.0))])
    assert "comes later on average (1.00 s instead of 0 s)" in line


def test_the_median_of_the_seeds_is_taken_figure_by_figure() -> None:
    three = [replace(BASE, figures=FIGURES | {"ttft_mean": value}, reasons={"x": value}) for value in (1.0, 9.0, 2.0)]
    three[0].reasons["once"] = 1.0
    found = middle(three)
    assert found.figures["ttft_mean"] == 2.0
    assert found.reasons == {"x": 2.0, "once": 0.0}


@pytest.mark.parametrize(("value", "text"), [(0.0, "0 s"), (0.25, "0.250 s"), (4.207, "4.21 s"), (83.4, "83 s")])
def test_seconds_have_as_many_digits_as_help(value: float, text: str) -> None:
    assert seconds(value) == text
