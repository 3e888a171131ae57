"""The part of the metrics page that was counted since the gateway's start."""

from __future__ import annotations

from collections.abc import Iterable

from corral.gateway.serve.metrics import Metrics
from corral.gateway.serve.series import PARTS, Series
from corral.gateway.serve.textformat import TextFormat


def write_counted(to: TextFormat, metrics: Metrics) -> None:
    _requests(to, metrics)
    _replicas(to, metrics)
    _predictions(to, metrics)
    _memory(to, metrics)
    _probes(to, metrics)
    _gateway(to, metrics)


def _requests(to: TextFormat, metrics: Metrics) -> None:
    series, timings = sorted(metrics.series.items()), sorted(metrics.timings.items())
    to.samples(
        "corral_requests_total",
        [((*key, outcome), count) for key, one in series for outcome, count in sorted(one.outcomes.items())],
    )
    to.samples(
        "corral_class_requests_total",
        [((*key, outcome), count) for key, one in timings for outcome, count in sorted(one.outcomes.items())],
    )
    to.samples("corral_streamed_lines_total", [(key, one.lines) for key, one in series])
    to.histograms(
        "corral_queue_seconds", [((*key, result), h) for key, one in timings for result, h in one.queue.items()]
    )
    to.histograms(
        "corral_time_to_first_token_seconds",
        [(key, one.first_token) for key, one in timings if one.first_token is not None],
    )
    to.histograms(
        "corral_time_per_output_token_seconds", [(key, one.token) for key, one in timings if one.token is not None]
    )
    to.histograms(
        "corral_request_seconds", [((*key, result), h) for key, one in timings for result, h in one.total.items()]
    )
    to.samples("corral_prompt_tokens_total", [(key, one.prompt_tokens) for key, one in timings])
    to.samples("corral_output_tokens_total", [(key, one.output_tokens) for key, one in timings])
    to.samples("corral_broken_streams_total", [((), _with_outcome(metrics.series.values(), "broken"))])
    to.samples("corral_clients_gone_total", [((), _with_outcome(metrics.series.values(), "client_gone"))])
    to.samples("corral_retries_total", [((f.name.lower(),), n) for f, n in metrics.retries.items()])
    to.samples("corral_refusals_total", [((r.name.lower(),), n) for r, n in metrics.refusals.items()])
    to.samples("corral_decisions_total", sorted(metrics.decisions.items()))


def _replicas(to: TextFormat, metrics: Metrics) -> None:
    replicas = sorted(metrics.by_replica.items())
    to.samples(
        "corral_replica_requests_total",
        [((id, outcome), count) for id, one in replicas for outcome, count in sorted(one.outcomes.items())],
    )
    to.samples("corral_replica_prompt_tokens_total", [((id,), one.prompt_tokens) for id, one in replicas])
    to.samples("corral_replica_output_tokens_total", [((id,), one.output_tokens) for id, one in replicas])
    to.samples("corral_replica_attempts_failed_total", sorted(metrics.failures.items()))
    changes = sorted(((replica, health.value), n) for (replica, health), n in metrics.health_changes.items())
    to.samples("corral_replica_health_changes_total", changes)


def _predictions(to: TextFormat, metrics: Metrics) -> None:
    found = [
        ((id, part), foresight)
        for id, one in sorted(metrics.by_replica.items())
        for part, foresight in zip(PARTS, one.foresight, strict=True)
    ]
    to.samples("corral_predicted_seconds_total", [(key, one.predicted_s) for key, one in found])
    to.samples("corral_predicted_actual_seconds_total", [(key, one.actual_s) for key, one in found])
    to.samples("corral_predicted_error_seconds_total", [(key, one.error_s) for key, one in found])
    to.histograms("corral_predicted_ratio", [(key, one.ratio) for key, one in found])


def _memory(to: TextFormat, metrics: Metrics) -> None:
    to.samples("corral_model_loads_total", sorted(metrics.loads.items()))
    to.histograms("corral_model_load_seconds", [((id,), each) for id, each in sorted(metrics.load_seconds.items())])
    to.samples("corral_model_unloads_total", sorted(metrics.unloads.items()))


def _probes(to: TextFormat, metrics: Metrics) -> None:
    probes = sorted(metrics.probes.items())
    to.samples("corral_probes_total", [(key, one.probes) for key, one in probes])
    to.samples("corral_probe_failures_total", [(key, one.failures) for key, one in probes])
    to.samples("corral_probe_seconds_total", [(key, one.seconds) for key, one in probes])
    to.samples("corral_probe_success", [(key, int(one.last_ok)) for key, one in probes])
    to.samples("corral_probe_last_seconds", [(key, one.last_s) for key, one in probes])
    to.samples("corral_gpu_probe_rounds_total", [((), metrics.gpu_rounds)])
    to.samples("corral_gpu_probe_seconds_total", [((), metrics.gpu_seconds)])


def _gateway(to: TextFormat, metrics: Metrics) -> None:
    reloads = [(("ok",), metrics.reloads[True]), (("refused",), metrics.reloads[False])]
    to.samples("corral_config_reloads_total", reloads)
    to.histograms("corral_event_loop_lag_seconds", [((), metrics.loop_lag)])
    to.samples("corral_event_loop_lag_max_seconds", [((), metrics.loop_lag_max_s)])
    to.samples("corral_held_open", [((kind,), number) for kind, number in sorted(metrics.held().items())])
    to.samples("ollama_inter_gpu_latency", sorted(metrics.link_seconds.items()))


def _with_outcome(series: Iterable[Series], outcome: str) -> int:
    return sum(one.outcomes.get(outcome, 0) for one in series)
