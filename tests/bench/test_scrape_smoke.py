"""The benchmark of a scrape fills a page, times it, and says whether that is quick enough."""

from __future__ import annotations

import pytest
from bench import scrape


def test_the_benchmark_times_scrapes_of_a_full_page_and_the_counting_of_a_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert scrape.main(["--rounds", "3", "--warm-up", "2000"]) == 0
    printed = capsys.readouterr().out
    assert "16 replicas and GPUs, 50 models, 3 classes: " in printed
    for line in ("all that the event loop does", "over HTTP", "written by prometheus_client"):
        assert line in printed
    assert "counting one request: " in printed
    assert "wanted: ≤ 5 ms a scrape: " in printed
