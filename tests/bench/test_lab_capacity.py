"""The greatest load that keeps the SLO is found by halving, and said to be beyond what was tried where it is."""

from __future__ import annotations

import pytest
from bench.policies import __main__ as command
from bench.policies import capacity
from bench.policies.capacity import LEAST, MOST, STEP, Wanted, greatest_load

from corral.laboratory.boxes import BoxSpec
from corral.laboratory.campaign import Scenario, contender, play
from corral.laboratory.workloads import Work

SCENARIO = Scenario("small, load 0.7", Work("poisson", 60), BoxSpec("equal-4"), 0.7)


@pytest.mark.parametrize("edge", [0.06, 0.31, 0.7, 1.58])
def test_halving_finds_the_edge(edge: float) -> None:
    found = greatest_load(lambda load: 1.0 if load <= edge else 0.5, 0.95)
    assert found is not None
    assert edge - STEP <= found <= edge


def test_beyond_what_is_tried_there_is_no_number() -> None:
    assert greatest_load(lambda load: 0.5, 0.95) is None
    assert greatest_load(lambda load: 1.0, 0.95) == MOST
    told = capacity.text(SCENARIO, {"a": {0: (None, None)}, "b": {0: (MOST, 9.0)}}, "b", Wanted())
    assert f"| a | < {LEAST:g} |" in told
    assert f"| b | ≥ {MOST:g} |" in told
    assert "Yardstick: the slowest GPU" in told


def test_a_capacity_keeps_the_slo_and_a_little_more_does_not() -> None:
    who, wanted = contender("least-conn"), Wanted(0.9, "best")
    load, rate = capacity.capacity(SCENARIO, who, 0, wanted)
    assert load is not None
    assert rate is not None
    assert rate > 0
    good = [play(capacity.at(SCENARIO, tried), who, 0)["good_ratio"] for tried in (load, load + STEP)]
    assert good[0] >= 0.9 > good[1]


def test_the_command_finds_capacities(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--capacity", "--goodput", "0.8", "--seeds", "1", "--requests", "30", "--policies", "least-conn,random"]
    assert command.main([*argv, "--box", "equal-4"]) == 0
    told = capsys.readouterr().out
    assert "at least 80%" in told
    assert "| random |" in told
    for wrong in (["--capacity", "--matrix"], ["--goodput", "0"], ["--goodput", "1.1"]):
        with pytest.raises(SystemExit):
            command.arguments(wrong)
