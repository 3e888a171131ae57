"""The probe benchmark reads every emulated GPU, counts its rounds, and says what was missed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench import probe
from bench.load import compiler
from bench.probe import Figures, Ping

FIGURES = Figures(
    gpus=8,
    rounds=40,
    misses=0,
    cpu_pct=0.4,
    idle_cpu_pct=0.01,
    round_us=3000,
    round_max_us=4000,
    idle_delays_ms=(0.2, 0.9),
    delays_ms=(0.3, 1.4),
    round_delays_ms=(0.6, 1.4),
)


@pytest.mark.skipif(compiler() is None, reason="no C compiler for the stand-in library")
def test_a_quick_run_reads_every_gpu_and_prints_a_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_STANDIN_NVML", "")  # put back afterwards
    written = tmp_path / "figures.json"
    argv = ["--quick", "--seconds", "0.6", "--interval", "0.1", "--gpus", "3", "--json", str(written)]
    assert probe.main(argv) == 0
    assert "| CPU, beyond an idle process's |" in capfd.readouterr().out
    figures = json.loads(written.read_text())["figures"]
    assert (figures["gpus"], figures["misses"]) == (3, 0)
    assert figures["rounds"] >= 4


def test_a_missed_target_is_written_as_missed() -> None:
    assert "**missed**" not in probe.render(FIGURES, 1)
    late = probe.render(replace(FIGURES, round_delays_ms=(2.0, 7.0)), 1)
    assert "7.00 ms | ≤ 5 ms: **missed**" in late
    assert "1.20 % of a core | < 1 %: **missed**" in probe.render(replace(FIGURES, cpu_pct=1.2), 1)


def test_a_message_that_waits_for_the_end_of_a_round_is_of_that_round() -> None:
    before, waiting, after = Ping(0.5, 0.1), Ping(0.9, 0.2), Ping(2.1, 0.1)
    assert probe.during([before, waiting, after], [(1.0, 2.0)]) == [waiting]
