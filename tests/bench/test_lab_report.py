"""Reports give medians, paired ratios and losses as they are; the bars are judged by the right scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.policies import claims, matrix, plots
from bench.policies.boxes import BoxSpec, make_box
from bench.policies.campaign import DEFAULT, Contender, Result, Scenario, contender
from bench.policies.measures import measure
from bench.policies.report import COLUMNS, COMPARED, matrix_text, standing, tables
from bench.policies.types import Arrival, Outcome, Run
from bench.policies.workloads import Work

from corral.errors import OperatorError

OURS = "corral:weighted-least-load"


def result(name: str, load: float = 0.7, **times_worse: float) -> Result:
    """All figures of all contenders are the seed's number plus one, times what is given for the contender."""
    found = Result(Scenario(name, Work("poisson"), BoxSpec(), load))
    for who, factor in times_worse.items():
        who = OURS if who == "ours" else who.replace("_", "-")
        found.figures[who] = {
            seed: {c.figure: (seed + 1) * (1 / factor if c.figure in MORE else factor) for c in COLUMNS}
            for seed in range(5)
        }
    return found


MORE = ("good_ratio", "served_rps", "prefix_hit_ratio")


def test_every_figure_that_is_shown_is_measured() -> None:
    box = make_box(BoxSpec())
    arrival = Arrival(0, 0.0, box.models[0].name, 100, 10)
    outcome = Outcome(arrival, "gpu0", 0.0, 0.1, 0.5, ok=True, attempts=1)
    measured = measure(Run(box, "x", 0, [outcome], 0.5, {"gpu0": 0.5}, 1, 100, 0))
    assert {column.figure for column in COLUMNS} <= measured.keys()
    assert set(COMPARED) <= measured.keys()


def test_a_table_says_scenario_medians_and_paired_ratios() -> None:
    told = tables(result("four", ours=1, least_conn=2), OURS)
    assert "### four" in told
    assert "box unequal-4, models 1, 4 slots, 2 resident; 2000 requests of poisson; load 0.7" in told
    assert f"| {OURS} | 3.00 |" in told
    assert "| least-conn | 6.00 |" in told
    assert "| least-conn | 2.00 (2.00–2.00) |" in told  # noqa: RUF001


def test_a_failed_run_is_told() -> None:
    found = result("four", ours=1)
    found.failures.append("lmetric, seed 3: ValueError: no")
    assert "- FAILED lmetric, seed 3: ValueError: no" in tables(found, OURS)


def test_ours_stands_beside_the_best_rival_and_the_oracle_is_none() -> None:
    found = standing(result("x", ours=2, least_conn=1.5, lmetric=3, oracle=1), OURS, "ttft_mean", more_is_better=False)
    assert found is not None
    assert (found.best_name, found.ours, found.best) == ("least-conn", 6, 4.5)
    assert found.is_loss
    better = standing(result("x", ours=1, least_conn=2), OURS, "good_ratio", more_is_better=True)
    assert better is not None
    assert better.times_better is not None
    assert better.times_better.median == 2
    assert standing(result("x", least_conn=2), OURS, "ttft_mean", more_is_better=False) is None


def test_the_matrix_prints_losses_in_bold_and_counts_them() -> None:
    told = matrix_text([result("won", ours=1, least_conn=2), result("lost", ours=2, least_conn=1)], OURS)
    assert "2 of 4 comparisons" in told
    assert "**0.50 (0.50–0.50)**" in told  # noqa: RUF001
    assert "2.00 (2.00–2.00)" in told  # noqa: RUF001


def test_a_bar_is_met_missed_or_not_run() -> None:
    unequal = result(matrix.UNEQUAL, ours=1, weighted_least_conn=1.6, haproxy_maxconn=1.2, least_conn=2, oracle=0.8)
    met = {bar.title: bar.is_met for bar in claims.bars([unequal], OURS)}
    assert met["1. mean TTFT, weighted-least-conn ÷ ours"] is True
    assert met["1. mean TTFT, haproxy-maxconn ÷ ours"] is False
    assert met["1. p99 TTFT, ours ÷ best (haproxy-maxconn)"] is True
    assert met["2. six models, mean TTFT, least-conn-loaded ÷ ours"] is None
    assert met["5. of the gap from least-conn to the oracle closed, mean TTFT"] is True
    assert met["5. losses of more than 5 % at loads up to 0.8"] is True
    told = claims.text([unequal], OURS)
    assert "| ≥ 1.3 × | 1.20 (1.20–1.20) | **missed** |" in told  # noqa: RUF001
    assert "| 83 % | met |" in told


def test_losses_above_a_load_of_point_eight_are_no_bar() -> None:
    judged = claims.bars([result("a", 0.9, ours=2, least_conn=1), result("b", 0.8, ours=2, least_conn=1)], OURS)
    assert judged[-1].reached == "2 of 2"


@pytest.mark.parametrize("folder", [None, Path("/nowhere")])
def test_the_matrix_has_every_dimension_and_needs_no_trace(folder: Path | None) -> None:
    found = matrix.matrix(folder, 100)
    names = [scenario.name for scenario in found]
    assert len(set(names)) == len(names)
    assert {matrix.UNEQUAL, matrix.SIX_MODELS, matrix.SIX_BUSY, matrix.EIGHT, matrix.ONE} <= set(names)
    assert {matrix.MOONCAKE, matrix.FLOODED, matrix.NOT_FLOODED} <= set(names)
    assert {s.box.slots for s in found} == {1, 2, 4, 8}
    assert {s.box.models for s in found} == {"1", "3", "6", "6-large"}
    assert {s.box.incident for s in found} == {"none", "throttle", "kill"}


def test_a_contender_is_a_rival_or_a_policy_with_options() -> None:
    assert contender("least-conn") == Contender("least-conn")
    text = "corral:weighted-least-load?cold_penalty=8.5"
    assert contender(text) == Contender(text, "weighted-least-load", (("cold_penalty", 8.5),))
    assert all(contender(name).name == name for name in DEFAULT)
    for wrong, said in (
        ("least", "rivals: round-robin"),
        ("corral:least", "no policy"),
        (f"{OURS}?warm=1", "no such option"),
    ):
        with pytest.raises(OperatorError, match=said):
            contender(wrong)


def test_without_matplotlib_there_are_no_plots_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert plots.draw([result("x", ours=1)], OURS, tmp_path, "x") is None
    assert not list(tmp_path.iterdir())
