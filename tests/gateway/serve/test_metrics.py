"""The /metrics page: complete, stable, bounded."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as changed
from prometheus_client.parser import text_string_to_metric_families

from corral.gateway.ended import Attempt, Ended
from corral.gateway.serve.exposition import METRICS
from corral.gateway.serve.metrics import MAX_LOADS, MAX_MODELS, MAX_REASONS, OTHER, Metrics
from corral.gateway.serve.metrics_page import MetricsPage
from corral.gateway.serve.series import GENERATING, token_seconds
from corral.gateway.wire.dialect import StreamEnd
from corral.gateway.wire.routes import _EXACT
from corral.model import Figures, Prediction, Snapshot
from tests.gateway.serve import history

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics.txt"
"""Written anew by a run with UPDATE_GOLDEN=1."""

NOTHING = Snapshot(0.0, "random", (), 0, {}, None, 0)


def page(metrics: Metrics, snapshot: Snapshot, *, process: bool = False) -> str:
    text = MetricsPage(metrics, "1.2.3", process=process).render(snapshot, ready=True).decode()
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


def test_the_names_follow_prometheus_conventions() -> None:
    for name, spec in METRICS.items():
        if name.startswith("corral_"):
            assert (spec.type == "counter") == name.endswith("_total"), name
            assert not re.search(r"_(ms|milliseconds|percent|mib|mb|gb|kib)(_|$)", name), name
            assert not {"tenant", "le", "client", "path"} & set(spec.labels), name


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
    assert 'corral_retries_total{fault="hung"} 0\n' in text
    assert 'corral_refusals_total{reason="no_replica"} 0\n' in text


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


def test_times_are_bounded_too_whatever_models_and_classes_there_are() -> None:
    metrics = Metrics()
    metrics.know_models(f"m:{number}" for number in range(MAX_MODELS + 500))
    for number in range(MAX_MODELS + 500):
        for rank in range(3):
            metrics.request_done(history.ended("chat", f"m:{number}", "a", "ok", rank=rank))
    assert len(metrics.timings) == 3 * (MAX_MODELS + 1)
    assert sum(sum(one.total["ok"].counts) for one in metrics.timings.values()) == 3 * (MAX_MODELS + 500)


def test_what_failed_is_timed_apart_from_what_was_answered() -> None:
    metrics = Metrics()
    for outcome in ("ok", "refused_queue_full", "client_gone"):
        metrics.request_done(history.ended("chat", None, None, outcome))
    (timings,) = metrics.timings.values()
    assert {result: sum(one.counts) for result, one in timings.total.items()} == {"ok": 1, "failed": 2}
    assert timings.outcomes == {"ok": 1, "refused_queue_full": 1, "client_gone": 1}


def test_loads_of_many_models_are_bounded() -> None:
    metrics = Metrics()
    metrics.know_models(f"m:{number}" for number in range(MAX_MODELS))
    for replica in range(5):
        for number in range(MAX_MODELS):
            metrics.unload_ended(f"r{replica}", f"m:{number}", ok=True)
    assert len(metrics.unloads) <= MAX_LOADS + 5
    assert sum(metrics.unloads.values()) == 5 * MAX_MODELS


def test_nothing_is_kept_of_replicas_that_are_gone() -> None:
    metrics = history.metrics()
    metrics.failures["b", "reset"] = metrics.failures["a", "reset"] = 1
    metrics.keep_only(["a"])
    text = page(metrics, NOTHING)
    assert 'replica="a"' in text
    assert 'replica="b"' not in text
    for name in ("requests", "output_tokens", "attempts_failed"):
        assert f'corral_replica_{name}_total{{replica="a"' in text
    assert 'corral_model_loads_total{replica="a"' in text


def test_a_request_that_ends_after_its_replica_has_gone_brings_nothing_of_it_back() -> None:
    metrics = Metrics()
    metrics.keep_only(["a"])
    for id in ("a", "b"):
        metrics.request_done(changed(history.ended("chat", None, id, "ok"), failed=(Attempt(id, "reset", 0.0, 1.0),)))
    text = page(metrics, NOTHING)
    assert 'corral_replica_requests_total{replica="a",outcome="ok"} 1\n' in text
    assert 'corral_replica_attempts_failed_total{replica="a",fault="reset"} 1\n' in text
    assert 'replica="b"' not in text
    assert 'outcome="ok"} 2\n' in text


def test_a_bucket_counts_values_up_to_its_edge_inclusive() -> None:
    metrics = Metrics()
    request(metrics, None, total_s=1.0)
    text = page(metrics, NOTHING)
    labels = 'model="none",class="normal",result="ok"'
    assert f'corral_request_seconds_bucket{{{labels},le="0.5"}} 0\n' in text
    assert f'corral_request_seconds_bucket{{{labels},le="1.0"}} 1\n' in text
    assert f'corral_request_seconds_bucket{{{labels},le="+Inf"}} 1\n' in text


def test_requests_are_told_apart_by_class_and_never_by_tenant() -> None:
    metrics = Metrics()
    for rank in range(3):
        metrics.request_done(changed(history.ended("chat", None, "a", "ok", rank=rank), tenant=f"secret-{rank}"))
    assert {key[1] for key in metrics.timings} == {"interactive", "normal", "batch"}
    assert "secret" not in page(metrics, NOTHING)


def test_the_first_token_is_timed_of_streamed_texts_only() -> None:
    metrics = Metrics()
    for one in (
        history.ended("chat", None, "a", "ok", 0.25),
        history.ended("chat", None, "a", "ok", 2.5, lines=1),  # an answer in one piece: its first byte is its end
        history.ended("embed", None, "a", "ok", 2.5),
        history.ended("chat", None, "a", "client_gone", None),
    ):
        metrics.request_done(one)
    assert [one.first_token.sum for one in metrics.timings.values() if one.first_token] == [0.25]


def test_all_routes_that_answer_with_a_text_are_timed_to_their_first_token() -> None:
    routes = [each for each in _EXACT.values() if each.end is not StreamEnd.NONE]
    assert {route.label for route in routes} == GENERATING


@pytest.mark.parametrize(
    ("figures", "lines", "expected"),
    [
        (Figures(output_tokens=11, decode_s=2.0), 0, 0.2),
        (Figures(output_tokens=11, decode_s=2.0), 12, 0.2),
        (Figures(output_tokens=11), 12, 0.275),
        (Figures(output_tokens=11), 1, None),
        (Figures(output_tokens=1, decode_s=0.0), 2, None),
        (Figures(prompt_tokens=5), 12, None),
    ],
    ids=["told", "told of a stream", "seen", "in one piece", "one token", "no tokens"],
)
def test_the_time_of_a_token_is_the_replicas_own_or_what_the_client_saw(
    figures: Figures, lines: int, expected: float | None
) -> None:
    found = token_seconds(history.ended("chat", None, "a", "ok", 0.25, lines=lines), figures)
    assert found == (None if expected is None else pytest.approx(expected))


def test_predictions_are_held_against_what_came_of_them() -> None:
    series = history.metrics().by_replica["a"]
    first, end = series.foresight
    assert (first.predicted_s, first.actual_s, first.error_s) == (0.3125, 0.1875, 0.125)
    assert (end.predicted_s, end.actual_s) == (2.8125, 2.9375)
    assert sum(first.ratio.counts) == sum(end.ratio.counts) == 1


def test_what_was_not_answered_well_or_not_predicted_says_nothing_of_predictions() -> None:
    metrics = Metrics()
    unknown, known = Prediction(0.5, 0.0, 0.0, 0.0, 0.0, 1.0, 0.5), Prediction(0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 2.0)
    metrics.request_done(history.ended("chat", None, "a", "ok", 0.25, predicted=unknown))
    metrics.request_done(history.ended("chat", None, "a", "broken", 0.25, predicted=known))
    assert [each.actual_s for each in metrics.by_replica["a"].foresight] == [0.0, 0.0]


def test_what_waits_is_shown_by_model_whatever_options_and_names_clients_invent() -> None:
    waiting = replace(
        NOTHING,
        queued_by_model={
            "llama3.1:8b": 1,
            "llama3.1:8b num_ctx=1": 2,
            "invented:1": 1,
            "invented:2 x=1": 1,
            "store": 1,
        },
        oldest_by_model={"llama3.1:8b": 0.5, "llama3.1:8b num_ctx=1": 1.5, "invented:1": 3.0, "store": 2.0},
    )
    metrics = Metrics()
    metrics.know_models(["llama3.1:8b"])
    text = page(metrics, waiting)
    assert re.findall(r'corral_model_queued\{model="(.+)"\} (\d+)', text) == [
        ("llama3.1:8b", "3"),
        ("none", "1"),
        ("other", "2"),
    ]
    assert 'corral_model_queue_oldest_seconds{model="llama3.1:8b"} 1.5\n' in text


def test_copies_are_counted_of_all_installed_models_also_of_those_that_are_nowhere() -> None:
    replicas = tuple(
        replace(one, installed=("llama3.1:8b", "cold:1b"), loaded=("llama3.1:8b",))
        for one in (history.replica("a"), history.replica("b", slots=2))
    )
    metrics = Metrics()
    metrics.know_models(["llama3.1:8b", "cold:1b"])
    text = page(metrics, replace(NOTHING, replicas=replicas))
    assert 'corral_model_copies{model="llama3.1:8b"} 2\n' in text
    assert 'corral_model_copies{model="cold:1b"} 0\n' in text
    assert 'corral_model_slots{model="llama3.1:8b"} 6\n' in text
    unread = page(metrics, replace(NOTHING, replicas=(replace(replicas[0], loaded=None),)))
    assert "\ncorral_model_copies{" not in unread


def test_a_gpu_without_an_energy_meter_has_no_energy() -> None:
    silent = replace(history.SAMPLE, energy_joules=None, utilisation_ratio=None)
    gpu = replace(history.gpus()[0], sample=silent)
    text = page(Metrics(), replace(NOTHING, gpus=(gpu,)))
    for name in ("corral_gpu_energy_joules_total", "ollama_gpu_utilization", "corral_gpu_utilisation_ratio"):
        assert f"\n{name}{{" not in text
    assert '\nollama_gpu_memory_used{gpu="0"} 6442450944\n' in text


def test_links_that_were_not_measured_are_absent() -> None:
    assert "\nollama_inter_gpu_latency{" not in page(Metrics(), history.snapshot())


def test_a_page_that_failed_leaves_nothing_to_the_next() -> None:
    shown = MetricsPage(Metrics(), "1.2.3", process=False)
    expected = shown.render(NOTHING, ready=True)
    with pytest.raises(AttributeError):
        shown.render(None, ready=True)  # type: ignore[arg-type]
    assert shown.render(NOTHING, ready=True) == expected


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
