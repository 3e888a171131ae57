"""The cost of a decision is measured on the scheduler itself, with as many waiting as was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.policies import decide
from bench.policies.busy import Busy
from bench.policies.decide import Cell


def test_it_stays_as_busy_as_wanted() -> None:
    busy = Busy(2, 3)
    busy.fill(50)
    assert busy.scheduler.queued == 50
    for _ in range(100):
        decide._round(busy)
    assert busy.scheduler.queued == pytest.approx(50, abs=8)
    assert busy.scheduler.inflight == len(busy.running)


def test_with_nothing_queued_every_request_goes_at_once() -> None:
    cell = decide.measure(4, 0, 1, 50)
    assert cell.heads == 0
    assert 0 < cell.median_us <= cell.p99_us
    assert cell.median_us == pytest.approx(cell.submit_us + cell.first_byte_us + cell.finish_us, rel=0.5)


def cell(replicas: int, queued: int, heads: int, us: float) -> Cell:
    return Cell(replicas, queued, heads or 1, heads, us, us, us, 0.0, 0.0, None)


def test_growth_is_held_against_replicas_and_heads_and_never_against_the_depth_of_a_queue() -> None:
    cells = [cell(1, 100, 6, 10), cell(8, 100, 6, 20), cell(1, 1000, 6, 13), cell(8, 1000, 6, 21)]
    replicas, queued = decide.growths(cells)
    assert (replicas.times, replicas.allowed, replicas.is_met) == (2, 2, True)
    assert (queued.times, queued.allowed, queued.is_met) == (1.3, 1, False)
    assert decide.growths([cell(1, 0, 0, 10)]) == []


def test_the_command_prints_and_saves_what_bars_quote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--replicas", "1,16", "--queued", "1000", "--models", "2", "--rounds", "20", "--out", str(tmp_path)]
    assert decide.main(argv) == 0
    assert "| 16 | 1,000 | 2 |" in capsys.readouterr().out
    found = decide.judged(decide.saved(tmp_path / decide.FILE))
    assert found is not None
    assert (found.replicas, found.queued) == (16, 1000)
    assert "## Growth" in (tmp_path / "decide.md").read_text()
