"""The benchmark of the gateway's own pages asks for all of them in all situations, and prints them."""

from __future__ import annotations

import pytest
from bench import pages


def test_the_benchmark_asks_for_every_page_and_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert pages.main(["--rounds", "3"]) == 0
    printed = capsys.readouterr().out
    for page in pages.PAGES:
        assert f"| `{page}` |" in printed
    assert "one Ollama | gateway | right after a request | one frozen | after requests to one that is late" in printed
    assert "slowest page's p99" in printed
