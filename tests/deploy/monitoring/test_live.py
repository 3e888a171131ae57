"""A real Prometheus scrapes a real demo, evaluates every rule, and answers every query of every dashboard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.deploy.monitoring.files import (
    boards,
    needs_prometheus,
    panel_queries,
    panels,
    rules,
    without_variables,
)
from tests.deploy.monitoring.live import Prometheus, demo, play, prometheus, until

pytestmark = needs_prometheus

NOBODY_REFUSED = 'outcome=~"refused_.*"}[5m]))'
MAY_BE_EMPTY = {
    "corral_model_queue_oldest_seconds": "nobody waits",
    "corral_replica_restarts_total": "the demo's Ollamas are not Corral's own",
    "corral_replica_attempts_failed_total": "no replica failed",
    "corral_model_unloads_total": "nothing had to leave",
    "corral_gpu_throttled": "no GPU is slowed down",
    "corral_replica_enabled": "asked only for those that are drained",
    "corral_replica_held": "asked only for those that are held",
    "corral_gpu_uncorrected_ecc_errors_total": "these GPUs have no such memory",
}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen a demo at work, and has evaluated all rules since."""
    folder = tmp_path_factory.mktemp("monitoring")
    with ExitStack() as running:
        url, admin = running.enter_context(demo(folder))
        seen = running.enter_context(prometheus(folder, urlsplit(admin).netloc))
        until(lambda: seen.now("corral_build_info"), 40.0, "scrape of the demo")
        asyncio.run(play(url))
        until(lambda: seen.now('corral_requests_total{outcome="client_gone"}'), 40.0, "request that was left")
        asyncio.run(play(url))  # a rate is of what has grown since it was first seen
        until(lambda: seen.now('sum(rate(corral_requests_total{outcome="client_gone"}[5m])) > 0'), 40.0, "requests")
        until(lambda: seen.now("instance_replica:corral_output_token_joules:ratio5m"), 40.0, "rule that was evaluated")
        yield seen


def test_the_gateway_is_scraped_without_error_and_quickly(watched: Prometheus) -> None:
    (target,) = watched.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["labels"]["job"] == "corral"
    (samples,) = watched.now("scrape_samples_post_metric_relabeling")
    assert int(samples["value"][1]) > 300


def test_every_rule_is_evaluated_without_error_and_nothing_is_alarmed(watched: Prometheus) -> None:
    shown = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]
    assert len(shown) == len(rules())
    for rule in shown:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
    firing = [rule["name"] for rule in shown if rule.get("state") == "firing"]
    assert firing == []


def test_every_recorded_series_has_values(watched: Prometheus) -> None:
    for name in {rule["record"] for rule in rules() if "record" in rule}:
        assert until(lambda name=name: watched.now(name), 15.0, f"value of {name}"), name  # type: ignore[misc]


def test_every_panel_is_answered_and_has_data_where_the_demo_has_some(watched: Prometheus) -> None:
    empty = []
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel.get("targets", ()):
                query = without_variables(target["expr"])
                found = watched.now(query) if target.get("instant") else watched.lately(query)
                if not found and not _may_be_empty(query):
                    empty.append(f"{name}: {panel['title']}: {query}")
    assert empty == []


def test_every_variable_has_values_to_choose_from(watched: Prometheus) -> None:
    names = [query for where, query in panel_queries() if "$" in where.partition(": ")[2]]
    assert len(names) == 7
    for query in names:
        selector, _, label = without_variables(query).removeprefix("label_values(").removesuffix(")").rpartition(", ")
        assert watched.ask(f"label/{label}/values", **{"match[]": selector}), query


def test_prometheus_says_what_a_panel_with_a_wrong_query_would_show(watched: Prometheus) -> None:
    with pytest.raises(AssertionError, match="parse error"):
        watched.now("sum(rate(corral_requests_total)")
    assert watched.now("corral_no_such_metric") == []


def test_guides_for_several_gpus_find_the_names_they_scrape(watched: Prometheus) -> None:
    deadline_s = time.monotonic() + 10.0
    while time.monotonic() < deadline_s:
        ours, theirs = watched.now("corral_gpu_utilisation_ratio"), watched.now("ollama_gpu_utilization / 100")
        same = {(each["metric"]["gpu"], float(each["value"][1])) for each in ours}
        if same and same == {(each["metric"]["gpu"], float(each["value"][1])) for each in theirs}:
            break
    else:
        pytest.fail("they never agree")
    assert len(watched.now("ollama_gpu_memory_used == corral_gpu_memory_used_bytes")) == 3
    assert watched.now("ollama_inter_gpu_latency") == []


def _may_be_empty(query: str) -> bool:
    return any(name in query for name in MAY_BE_EMPTY) or query.endswith(NOBODY_REFUSED)
