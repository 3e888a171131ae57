"""Reports give medians, paired ratios and losses as they are; the bars are judged by the right scenarios."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.policies import claims, decide, live_result, matrix, plots
from bench.policies.report import COLUMNS, COMPARED, matrix_text, standing, tables

from corral.errors import OperatorError
from corral.laboratory.boxes import BoxSpec, make_box
from corral.laboratory.campaign import Result, Scenario
from corral.laboratory.measures import measure
from corral.laboratory.types import Arrival, Outcome, Run
from corral.laboratory.workloads import Work

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
    outcome = Outcome(arrival, "gpu0", 0.0, 0.1, 0.5, ok=True, attempts=1, predicted_ttft_s=0.2, predicted_e2e_s=0.4)
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
    assert next(bar for bar in judged if "losses" in bar.title).reached == "2 of 2"


def test_where_nothing_was_measured_a_table_has_a_dash_and_a_standing_nobody() -> None:
    found = result("four", ours=1, least_conn=2)
    for figures in found.figures["least-conn"].values():
        del figures["ttft_mape"], figures["ttft_mean"]
    assert found.by_seed("least-conn", "ttft_mape") == {}
    assert "| least-conn | – | 6.00 |" in tables(found, OURS)  # noqa: RUF001
    assert standing(found, OURS, "ttft_mean", more_is_better=False) is None


def test_a_flooder_is_judged_by_the_light_ones_in_the_flood_and_the_gap_by_its_bound() -> None:
    flooded, alone = result(matrix.FLOODED, ours=1.2), result(matrix.NOT_FLOODED, ours=1)
    for seed, figures in flooded.figures[OURS].items():
        figures["vtc_gap_s"], figures["vtc_bound_s"] = 90.0 + seed, 80.0
    judged = {bar.title: bar for bar in claims.bars([flooded, alone], OURS)}
    light = judged["4. a flooder: light tenants' p99 slowdown while it floods ÷ without it"]
    assert (light.reached, light.is_met) == ("1.20 (1.20–1.20)", True)  # noqa: RUF001
    assert judged["4. VTC gap ÷ (quantum + 2 · max cost · slots)"].is_met is False


def test_what_others_measured_is_judged_where_there_is_a_file(tmp_path: Path) -> None:
    def judged() -> dict[str, tuple[str, bool | None]]:
        return {bar.title: (bar.reached, bar.is_met) for bar in claims.bars([], OURS, tmp_path) if bar.title[0] in "67"}

    assert [met for _, met in judged().values()] == [None] * 4
    cells = [
        decide.Cell(replicas, queued, 6, 6, us, 2 * us, 1.0, 1.0, us - 2, None)
        for replicas, queued, us in ((1, 100, 40.0), (16, 100, 60.0), (16, 1000, 110.0))
    ]
    decide.save(cells, tmp_path / decide.FILE)
    live = {"ours": "corral", "live_s": {"corral": 1.0, "nginx": 2.0}, "lab_s": {"corral": 0.5, "nginx": 1.5}}
    (tmp_path / live_result.FILE).write_text(json.dumps(live))
    assert list(judged().values()) == [
        ("110 (p99 220)", False),
        ("1.83", False),
        ("corral < nginx", True),
        ("33%", False),
    ]
    for name in (decide.FILE, live_result.FILE):
        (tmp_path / name).write_text('{"ours": 1}')
        with pytest.raises(OperatorError, match=name):
            judged()
        (tmp_path / name).unlink()


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


def test_without_matplotlib_there_are_no_plots_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert plots.draw([result("x", ours=1)], OURS, tmp_path, "x") is None
    assert not list(tmp_path.iterdir())
