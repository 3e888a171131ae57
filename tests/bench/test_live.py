"""The live comparison plays the laboratory's requests over HTTP, says what it found, and leaves nothing running."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from bench import machine
from bench.live import report
from bench.live.__main__ import chosen_fronts, main, scenario_named
from bench.live.client import text_of
from bench.live.compare import COMPARED, Comparison
from bench.live.fronts import fronts, whole_weights
from bench.live.play import Usage
from bench.policies import live_result
from bench.policies.matrix import SIX_MODELS, UNEQUAL

from corral.emulator.prefix import common_prefix, tokens_in
from corral.errors import OperatorError
from corral.laboratory.boxes import BoxSpec, make_box
from corral.laboratory.types import Arrival
from corral.laboratory.workloads import BLOCK_TOKENS

SCENARIO = scenario_named(UNEQUAL, None, 20)


def test_a_quick_run_of_corral_alone_writes_the_tables_and_the_file_and_ends_what_it_started(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table, figures = tmp_path / "deep" / "live.md", tmp_path / "live.json"
    before = children()
    options = ["--quick", "--contenders", "corral", "--out", str(table), "--json", str(figures)]
    assert main(options) == 0
    assert children() == before
    printed = capfd.readouterr().out
    assert table.read_text().endswith(printed.rstrip("\n") + "\n")
    for wanted in ("| corral |", "all cores busy", "medians of 1 paired seeds"):
        assert wanted.lower() in printed.lower()
    saved, found = json.loads(figures.read_text()), live_result.saved(figures)
    assert found is not None
    assert (found.ours, set(found.live_s), set(found.lab_s)) == ("corral", {"corral"}, {"corral"})
    live, lab = saved["live"]["corral"]["0"], saved["lab"]["corral"]["0"]
    assert live["missed"] == 0
    assert 1 <= live["loads"] <= 4
    assert all(live[figure] > 0 and lab[figure] > 0 for figure in COMPARED)


def children() -> list[int]:
    return machine.process_tree(os.getpid())[1:]


def test_prompts_have_as_many_tokens_as_they_should_and_share_the_blocks_they_should() -> None:
    one = Arrival(1, 0.0, "m", 3 * BLOCK_TOKENS + 100, 7, blocks=(5, 6, 7))
    other = replace(one, number=2, prompt_tokens=3 * BLOCK_TOKENS + 300, output_tokens=1000, blocks=(5, 6, 8))
    texts = [text_of(arrival).encode() for arrival in (one, other)]
    assert [tokens_in(text) for text in texts] == [one.prompt_tokens, other.prompt_tokens]
    assert 0 <= common_prefix(*texts) - 2 * BLOCK_TOKENS * 4 < 8
    assert [int(text[-8:]) for text in texts] == [7, 1000]
    assert common_prefix(*(text_of(replace(one, number=n, blocks=())).encode() for n in (1, 2))) < 8


@pytest.mark.parametrize(
    ("weights", "most", "whole"),
    [
        ((1.6, 1.0, 0.6, 0.4), 256, [8, 5, 3, 2]),
        ((1.0, 1.0, 1.0, 1.0), 256, [1, 1, 1, 1]),
        ((1.0, 0.37, 0.59, 0.001), 256, [256, 95, 151, 1]),
    ],
)
def test_weights_become_the_whole_numbers_that_nginx_and_haproxy_take(
    weights: tuple[float, ...], most: int, whole: list[int]
) -> None:
    replicas = make_box(BoxSpec("equal-4")).replicas
    weighted = [replace(replica, weight=weight) for replica, weight in zip(replicas, weights, strict=True)]
    assert whole_weights(weighted, most) == whole


def test_every_contender_is_told_the_weights_and_haproxy_the_slots(tmp_path: Path) -> None:
    box = make_box(SCENARIO.box)
    for front in fronts("weighted-least-load").values():
        front.make(box, 20).command(tmp_path, 4000, [4001, 4002, 4003, 4004])
    said = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert "server 127.0.0.1:4001 weight=8 max_fails" in said["nginx.conf"]
    assert "server r3 127.0.0.1:4004 weight 2 maxconn 4\n" in said["haproxy.cfg"]
    replicas = json.loads(said["corral.yaml"])["replicas"]
    assert [(replica["weight"], replica["slots"]) for replica in replicas][::3] == [(1.6, 4), (0.4, 4)]


def compared(live: dict[str, float], lab: dict[str, float]) -> Comparison:
    """The same figures for all; two seeds of which one is twice the other."""

    def by_seed(value: float) -> dict[int, dict[str, float]]:
        return {seed: dict.fromkeys(report.TITLES, value * (1 + seed)) for seed in (0, 1)}

    usage = Usage(0.4, 0.2, 0.1, busy_ratio=0.5, late_p99_s=0.02)
    return Comparison(
        SCENARIO,
        20,
        {name: by_seed(value) for name, value in live.items()},
        {name: by_seed(value) for name, value in lab.items()},
        {name: [usage] for name in live},
    )


def test_a_comparison_says_whether_order_and_ratios_are_the_laboratorys() -> None:
    alike = compared({"corral": 1.1, "nginx": 2.0, "haproxy": 1.6}, {"corral": 1.0, "nginx": 2.0, "haproxy": 1.5})
    assert alike.verdict("ttft_mean").is_same_order
    assert alike.is_within("ttft_mean")
    assert "**" not in report.text(alike, {}, [])
    far = compared({"corral": 1.0, "nginx": 2.0, "haproxy": 2.5}, {"corral": 1.0, "nginx": 2.0, "haproxy": 1.5})
    assert far.is_within("ttft_mean") is False
    assert far.apart("haproxy", "ttft_mean") == pytest.approx(2.5 / 1.5 - 1)
    assert "**+67 %**" in report.text(far, {}, [])
    assert "**no**, but for two that are 33% apart" in report.text(far, {}, [])


def test_two_that_are_nearly_alike_may_change_places() -> None:
    near = compared({"corral": 1.02, "nginx": 2.0, "haproxy": 1.0}, {"corral": 1.0, "nginx": 2.0, "haproxy": 1.03})
    assert near.reversed_ratio("ttft_mean") == pytest.approx(1.03)
    assert "| but for two that are 3% apart |" in report.text(near, {}, [])


def test_a_full_machine_and_what_is_missing_or_failed_are_told() -> None:
    found = compared({"corral": 1.0}, {"corral": 1.0})
    found.usages["corral"] = [Usage(1.4, 0.5, 0.1, busy_ratio=0.99, late_p99_s=0.3)]
    found.failures.append("haproxy, seed 1: it was not ready")
    said = report.text(found, {}, ["nginx"])
    for wanted in ("DISTURBED corral", "nginx is not installed", "FAILED haproxy, seed 1: it was not ready"):
        assert wanted in said
    assert "haproxy" in report.text(Comparison(SCENARIO, 20, failures=["haproxy: none"]), {}, [])


def test_a_scenario_or_contender_that_is_not_there_is_refused_with_what_there_is() -> None:
    assert scenario_named(SIX_MODELS, None, 20).box.models == "6"
    for name in ("no such thing", "unequal-4"):
        with pytest.raises(OperatorError, match="not one scenario; known: unequal-4, load"):
            scenario_named(name, None, 20)
    with pytest.raises(OperatorError, match="no incidents"):
        scenario_named("unequal-4, throttle", None, 20)
    with pytest.raises(OperatorError, match="traefik: choose from corral, nginx, haproxy"):
        chosen_fronts("corral,traefik", "weighted-least-load", real_clock=False)
