"""The /metrics page: complete, stable, bounded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from corral.gateway.ended import Ended
from corral.gateway.serve.exposition import METRICS, MetricsPage
from corral.gateway.serve.metrics import MAX_MODELS, MAX_REASONS, OTHER, Metrics
from corral.model import Snapshot
from tests.gateway.serve import history

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics.txt"
"""Written anew by a run with UPDATE_GOLDEN=1."""

NOTHING = Snapshot(0.0, "random", (), 0, {}, None, 0)


def page(metrics: Metrics, snapshot: Snapshot, *, process: bool = False) -> str:
    text = MetricsPage(metrics, "1.2.3", process=process).render(snapshot).decode()
    return re.sub(r'python="[^"]*"', 'python="X.Y.Z"', text)


def test_the_page_of_a_known_history_is_the_golden_one() -> None:
    text = page(history.metrics(), history.snapshot())
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_every_metric_of_the_table_is_on_the_page_with_its_type_and_help_and_no_other() -> None:
    families = list(text_string_to_metric_families(page(history.metrics(), history.snapshot())))
    shown = {f.name + ("_total" if f.type == "counter" else ""): (f.type, f.documentation) for f in families}
    assert shown == {name: (spec.type, spec.help) for name, spec in METRICS.items()}


def test_every_sample_carries_the_labels_of_the_table() -> None:
    for family in text_string_to_metric_families(page(history.metrics(), history.snapshot())):
        wanted = set(METRICS[family.name + ("_total" if family.type == "counter" else "")].labels)
        assert {frozenset(sample.labels) - {"le"} for sample in family.samples} == {frozenset(wanted)}


def test_the_process_shows_its_own_figures() -> None:
    assert "process_resident_memory_bytes" in page(Metrics(), NOTHING, process=True)


def test_what_is_not_known_is_absent_and_never_zero() -> None:
    text = page(history.metrics(), history.snapshot())
    for name in ("up", "slots", "sample_age_seconds"):
        assert f'corral_replica_{name}{{replica="a"}}' in text
        assert f'corral_replica_{name}{{replica="c"}}' not in text
    assert "\ncorral_queue_oldest_seconds " not in page(Metrics(), NOTHING)


def test_every_fault_and_refusal_is_there_before_it_first_happens() -> None:
    text = page(Metrics(), NOTHING)
    assert 'corral_retries_total{fault="hung"} 0.0' in text
    assert 'corral_refusals_total{reason="no_replica"} 0.0' in text


def test_names_that_clients_invent_add_no_series() -> None:
    metrics = Metrics()
    for number in range(5_000):
        request(metrics, f"invented:{number}")
    assert list(metrics.series) == [("chat", OTHER)]
    assert metrics.series["chat", OTHER].outcomes == {"ok": 5_000}


def test_even_names_the_replicas_have_are_bounded() -> None:
    metrics = Metrics()
    metrics.know_models(f"m:{number}" for number in range(MAX_MODELS + 500))
    for number in range(MAX_MODELS + 500):
        request(metrics, f"m:{number}")
    assert len(metrics.series) == MAX_MODELS + 1
    assert metrics.series["chat", OTHER].outcomes == {"ok": 500}


def test_reasons_that_a_policy_invents_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_REASONS * 2):
        metrics.decided("a", f"reason {number}")
    assert len(metrics.decisions) == MAX_REASONS + 1
    assert metrics.decisions["a", OTHER] == MAX_REASONS


def test_a_bucket_counts_values_up_to_its_edge_inclusive() -> None:
    metrics = Metrics()
    request(metrics, None, total_s=1.0)
    text = page(metrics, NOTHING)
    assert 'corral_request_seconds_bucket{kind="chat",le="0.5",model="none"} 0.0' in text
    assert 'corral_request_seconds_bucket{kind="chat",le="1.0",model="none"} 1.0' in text
    assert 'corral_request_seconds_bucket{kind="chat",le="+Inf",model="none"} 1.0' in text


def request(metrics: Metrics, model: str | None, *, total_s: float = 0.5) -> None:
    metrics.request_done(
        Ended(
            id="r-1",
            at=0.0,
            kind="chat",
            method="POST",
            path="/api/chat",
            outcome="ok",
            status=200,
            model=model,
            total_s=total_s,
        )
    )
