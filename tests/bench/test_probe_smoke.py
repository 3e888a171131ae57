"""The benchmark of GPU probes reads every GPU in each of its rounds, and prints its targets."""

from __future__ import annotations

import os

import pytest
from bench import probe

from corral.emulator.nvml import state


def test_the_benchmark_reads_all_gpus_and_prints_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(state.VARIABLE, os.devnull)  # so that what it sets is taken back
    results = probe.measure(seconds=0.3, runs=1, interval_s=0.05)
    for idle, reading in (*results.cpu, *results.lateness):
        assert idle.feed.samples == idle.feed.misses == reading.feed.misses == 0
        assert len(reading.feed.rounds) > 1
        assert reading.feed.samples >= 8 * len(reading.feed.rounds)
    reading = results.lateness[0][1]
    assert 0 < reading.largest_s(0) <= reading.late_s(1)
    text = probe.report(results, 0.05)
    assert "| < 1 |" in text
    assert "| < 5 |" in text
