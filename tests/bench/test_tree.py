"""Two levels against one, in virtual time: the same GPUs, the same requests."""

from __future__ import annotations

from statistics import fmean

import pytest
from bench.tree.__main__ import main, play
from bench.tree.tree import run_tree

from corral.laboratory.boxes import BoxSpec, make_box
from corral.laboratory.workloads import Work, workload


def test_a_tree_balances_as_well_as_one_corral_over_the_same_gpus() -> None:
    ones, trees = play(("unequal-4", 2, "1", "bursty", 0.7), requests=400, seeds=2)
    one, two = (fmean(each["ttft_mean"] for each in figures) for figures in (ones, trees))
    assert two <= 1.1 * one
    assert {each["failed"] for each in trees} == {0.0}


def test_every_gpu_of_a_tree_works_and_every_request_ends() -> None:
    box = make_box(BoxSpec("mixed-8", "3"))
    scaled = workload(Work("poisson", 300), box, 0.7, 1)
    run = run_tree(box, scaled.arrivals, 4, 1)
    assert all(outcome.ok for outcome in run.outcomes)
    assert {outcome.replica_id for outcome in run.outcomes} == {replica.id for replica in box.replicas}


def test_the_command_prints_a_row_for_the_case_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--box", "unequal-4", "--nodes", "2", "--requests", "60", "--seeds", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| unequal-4, 2 nodes | 1 | poisson 0.7 |" in printed
    assert "Mean TTFT of all 1 runs" in printed
