"""The command plays, reports, writes what it says, and gives the same figures for the same seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.policies import __main__ as command

from corral.errors import OperatorError
from corral.laboratory.boxes import BoxSpec
from corral.laboratory.campaign import Scenario, campaign, contender, play, run_one, stage
from corral.laboratory.rivals import RIVALS
from corral.laboratory.workloads import Work

SMALL = ["--requests", "40", "--seeds", "2", "--policies", "corral:weighted-least-load,least-conn"]
SCENARIO = Scenario("small", Work("poisson", 60), BoxSpec(), 0.7)


@pytest.mark.parametrize("name", [*RIVALS, "oracle", "corral:weighted-least-load", "corral:prefer-loaded"])
def test_every_contender_serves_every_request_and_is_reproducible(name: str) -> None:
    first, again = (play(SCENARIO, contender(name), 1) for _ in range(2))
    assert first["failed"] == 0
    assert {**first, "decision_us": 0.0} == {**again, "decision_us": 0.0}
    assert first["ttft_mean"] > 0


def test_nobody_beats_the_bound() -> None:
    results = campaign([SCENARIO], [contender("oracle"), contender("haproxy-maxconn")], [0, 1])
    assert not results[0].failures
    for seed, bound in results[0].bounds.items():
        for name in results[0].figures:
            assert results[0].figures[name][seed]["ttft_mean"] >= bound.ttft_mean_s
            assert results[0].figures[name][seed]["e2e_mean"] >= bound.e2e_mean_s
            assert results[0].figures[name][seed]["makespan_s"] >= bound.makespan_s


def test_the_same_requests_meet_every_contender() -> None:
    runs = [run_one(SCENARIO, contender(name), 3) for name in ("random", "corral:weighted-least-load")]
    arrivals = [[outcome.arrival for outcome in run.outcomes] for run in runs]
    assert arrivals[0] == arrivals[1] == stage(SCENARIO, 3).scaled.arrivals


def test_one_ollama_is_given_the_load_of_eight_gpus() -> None:
    eight = Scenario("eight", Work("poisson", 60), BoxSpec("a100-8"), 1.5)
    one = Scenario("one", Work("poisson", 60), BoxSpec("one-ollama-8"), 1.5, scaled_to="a100-8")
    assert stage(one, 0).scaled.arrivals == stage(eight, 0).scaled.arrivals
    assert len(stage(one, 0).box.replicas) == 1


def test_a_run_that_fails_is_told_and_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Scenario("broken", Work("/nowhere.csv", 10), BoxSpec(), 0.7)
    results = campaign([broken, SCENARIO], [contender("random")], [0])
    assert len(results[0].failures) == 2
    assert list(results[1].figures) == ["random"]
    assert "cannot read the trace /nowhere.csv" in capsys.readouterr().err


def test_the_command_prints_tables_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*SMALL, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "`python -m bench.policies --requests 40" in told
    assert "| corral:weighted-least-load |" in told
    assert "| nobody can beat |" in told
    assert (tmp_path / "policies.md").read_text().startswith("# The policy laboratory")


def test_the_matrix_says_what_must_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*SMALL, "--seeds", "1", "--matrix", "--only", "unequal-4, load"]) == 0
    told = capsys.readouterr().out
    assert "## What must be shown" in told
    assert "| unequal-4, load 0.9 |" in told


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--policies", "nobody"], "rivals:"),
        (["--policies", ""], "nothing to run"),
        (["--matrix", "--only", "no such"], "nothing to run"),
        (["--ours", "lmetric", "--policies", "random"], "not among"),
    ],
)
def test_what_cannot_be_run_is_refused(argv: list[str], said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        command.main(argv)


def test_counts_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.arguments(["--seeds", "0"])
    assert "--seeds must be 1 or more" in capsys.readouterr().err
