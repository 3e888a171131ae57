"""The ``/metrics`` page: every metric of Corral by name, and how it is read from the counters and the snapshot."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from corral.gateway.serve.metrics import Histogram, Metrics, Series
from corral.model import GpuCondition, GpuSample, GpuState, Health, ProcessState, Snapshot, Throttle

CONTENT_TYPE: Final[str] = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric as a reader of the page sees it."""

    type: str
    labels: tuple[str, ...]
    help: str


def _counter(help: str, *labels: str) -> MetricSpec:
    return MetricSpec("counter", labels, help)


def _gauge(help: str, *labels: str) -> MetricSpec:
    return MetricSpec("gauge", labels, help)


def _histogram(help: str, *labels: str) -> MetricSpec:
    return MetricSpec("histogram", labels, help)


METRICS: Final[dict[str, MetricSpec]] = {
    "corral_build_info": _gauge("Always 1; the labels say what runs.", "version", "python"),
    "corral_policy_info": _gauge("Always 1; the label names the policy that decides.", "policy"),
    "corral_requests_total": _counter("Finished requests.", "kind", "model", "outcome"),
    "corral_replica_requests_total": _counter("Finished requests that a replica answered.", "replica", "outcome"),
    "corral_queue_seconds": _histogram(
        "Time from arrival until a slot was free or the request ended.", "kind", "model"
    ),
    "corral_first_byte_seconds": _histogram("Time from arrival to the first byte of the answer.", "kind", "model"),
    "corral_request_seconds": _histogram("Time from arrival to the end of the answer.", "kind", "model"),
    "corral_streamed_lines_total": _counter("Lines or events of streamed answers.", "kind", "model"),
    "corral_prompt_tokens_total": _counter("Prompt tokens, as the replicas reported them.", "kind", "model"),
    "corral_output_tokens_total": _counter("Generated tokens, as the replicas reported them.", "kind", "model"),
    "corral_retries_total": _counter("Attempts that failed before the first byte, by what went wrong.", "fault"),
    "corral_refusals_total": _counter("Requests the gateway refused itself, by reason.", "reason"),
    "corral_broken_streams_total": _counter("Answers that broke after their first byte; the client was told."),
    "corral_clients_gone_total": _counter("Requests whose client left before the end of the answer."),
    "corral_decisions_total": _counter("Choices of a replica, by the policy's reason.", "replica", "reason"),
    "corral_requests_in_flight": _gauge("Requests that are with a replica now."),
    "corral_requests_queued": _gauge("Requests that wait for a free slot now."),
    "corral_queue_oldest_seconds": _gauge("How long the oldest waiting request has waited; absent when none waits."),
    "corral_replica_up": _gauge("1: healthy. 0: down, or taken out for failing. Absent until known.", "replica"),
    "corral_replica_enabled": _gauge("0 while the operator drains the replica, else 1.", "replica"),
    "corral_replica_in_flight": _gauge("Requests that are with this replica now.", "replica"),
    "corral_replica_slots": _gauge("Requests the replica runs at a time per model; absent until known.", "replica"),
    "corral_replica_weight": _gauge("The weight it was given in the configuration.", "replica"),
    "corral_replica_sample_age_seconds": _gauge("Age of its last reading; absent until there is one.", "replica"),
    "corral_replica_health_changes_total": _counter(
        "Changes of health, by the health it changed to.", "replica", "health"
    ),
    "corral_replica_held": _gauge("1 while the replica's process is not ready for requests, else 0.", "replica"),
    "corral_replica_process_state": _gauge(
        "1 for the state that the process of the replica is in, 0 for the others.", "replica", "state"
    ),
    "corral_replica_restarts_total": _counter("Starts of the replica's process after the first.", "replica"),
    "corral_model_loads_total": _counter("Loads of a model that the gateway asked for.", "replica", "outcome"),
    "corral_model_load_seconds": _histogram("How long those loads took that went well.", "replica"),
    "corral_model_unloads_total": _counter(
        "Requests of the gateway to let go of a model; failed: it stayed.", "replica", "outcome"
    ),
    "corral_gpu_info": _gauge("Always 1; the labels say what is called by the number.", "gpu", "uuid", "name"),
    "corral_gpu_up": _gauge("1: its readings are fresh. 0: stale, hung, failed or lost.", "gpu"),
    "corral_gpu_utilisation_ratio": _gauge("Share of the last moments in which anything ran on it.", "gpu"),
    "corral_gpu_memory_used_bytes": _gauge("Memory in use, without what the driver keeps for itself.", "gpu"),
    "corral_gpu_memory_total_bytes": _gauge("All of its memory.", "gpu"),
    "corral_gpu_temperature_celsius": _gauge("Its temperature.", "gpu"),
    "corral_gpu_slowdown_celsius": _gauge("The temperature at which it slows itself down.", "gpu"),
    "corral_gpu_power_watts": _gauge("What it draws.", "gpu"),
    "corral_gpu_power_limit_watts": _gauge("The most it may draw.", "gpu"),
    "corral_gpu_energy_joules_total": _counter("What it drew since its driver was loaded.", "gpu"),
    "corral_gpu_sm_clock_hertz": _gauge("The clock of its processors.", "gpu"),
    "corral_gpu_throttled": _gauge("1 for each reason for which it runs slower than it could.", "gpu", "reason"),
    "corral_gpu_uncorrected_ecc_errors_total": _counter("Memory errors it could not correct.", "gpu"),
    "corral_gpu_xids_total": _counter("Errors its driver reported since the gateway's start.", "gpu"),
    "corral_gpu_sample_age_seconds": _gauge("Age of its last reading; absent until there is one.", "gpu"),
    "corral_gpu_probe_rounds_total": _counter("Readings of all GPUs."),
    "corral_gpu_probe_seconds_total": _counter("Time spent reading the GPUs, off the event loop."),
    "corral_probes_total": _counter("Probes sent to a replica.", "replica", "part"),
    "corral_probe_failures_total": _counter("Probes without a usable answer.", "replica", "part"),
    "corral_probe_seconds_total": _counter("Time spent waiting for answers to probes.", "replica", "part"),
    "corral_config_reloads_total": _counter("Configuration files read again, by result.", "result"),
}


class MetricsPage:
    """Renders the counters, a snapshot and the process's own figures as Prometheus text."""

    def __init__(self, metrics: Metrics, version: str, *, process: bool = True) -> None:
        self._collector = _Collector(metrics, version)
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)
        if process:
            ProcessCollector(registry=self._registry)

    def render(self, snapshot: Snapshot) -> bytes:
        self._collector.snapshot = snapshot
        return generate_latest(self._registry)


class _Collector(Collector):
    def __init__(self, metrics: Metrics, version: str) -> None:
        self.metrics = metrics
        self.version = version
        self.snapshot: Snapshot | None = None

    def collect(self) -> Iterator[Family]:
        yield _family("corral_build_info", [((self.version, platform.python_version()), 1)])
        yield from self._requests()
        yield from self._events()
        if self.snapshot is not None:
            yield from _state(self.snapshot)

    def describe(self) -> Iterable[Family]:
        return ()

    def _requests(self) -> Iterator[Family]:
        series = sorted(self.metrics.series.items())
        yield _family(
            "corral_requests_total",
            [((*key, outcome), count) for key, one in series for outcome, count in sorted(one.outcomes.items())],
        )
        yield _family("corral_replica_requests_total", sorted(self.metrics.by_replica.items()))
        yield _histograms("corral_queue_seconds", [(key, one.queue) for key, one in series])
        yield _histograms("corral_first_byte_seconds", [(key, one.first_byte) for key, one in series])
        yield _histograms("corral_request_seconds", [(key, one.total) for key, one in series])
        yield _family("corral_streamed_lines_total", [(key, one.lines) for key, one in series])
        yield _family("corral_prompt_tokens_total", [(key, one.prompt_tokens) for key, one in series])
        yield _family("corral_output_tokens_total", [(key, one.output_tokens) for key, one in series])
        yield _family("corral_broken_streams_total", [((), _with_outcome(series, "broken"))])
        yield _family("corral_clients_gone_total", [((), _with_outcome(series, "client_gone"))])

    def _events(self) -> Iterator[Family]:
        metrics = self.metrics
        yield _family("corral_retries_total", [((f.name.lower(),), n) for f, n in metrics.retries.items()])
        yield _family("corral_refusals_total", [((r.name.lower(),), n) for r, n in metrics.refusals.items()])
        yield _family("corral_decisions_total", sorted(metrics.decisions.items()))
        changes = sorted(((replica, health.value), n) for (replica, health), n in metrics.health_changes.items())
        yield _family("corral_replica_health_changes_total", changes)
        yield _family("corral_model_loads_total", sorted(metrics.loads.items()))
        seconds = sorted(metrics.load_seconds.items())
        yield _histograms("corral_model_load_seconds", [((replica,), each) for replica, each in seconds])
        yield _family("corral_model_unloads_total", sorted(metrics.unloads.items()))
        probes = sorted(metrics.probes.items())
        yield _family("corral_probes_total", [(key, one.probes) for key, one in probes])
        yield _family("corral_probe_failures_total", [(key, one.failures) for key, one in probes])
        yield _family("corral_probe_seconds_total", [(key, one.seconds) for key, one in probes])
        reloads = [(("ok",), metrics.reloads[True]), (("refused",), metrics.reloads[False])]
        yield _family("corral_config_reloads_total", reloads)
        yield _family("corral_gpu_probe_rounds_total", [((), metrics.gpu_rounds)])
        yield _family("corral_gpu_probe_seconds_total", [((), metrics.gpu_seconds)])


def _state(snapshot: Snapshot) -> Iterator[Family]:
    replicas = snapshot.replicas
    yield _family("corral_policy_info", [((snapshot.policy,), 1)])
    yield _family("corral_requests_in_flight", [((), snapshot.inflight)])
    yield _family("corral_requests_queued", [((), snapshot.queued)])
    yield _family("corral_queue_oldest_seconds", [((), snapshot.oldest_wait_s)])
    yield _family("corral_replica_up", [((r.id,), _UP[r.health]) for r in replicas])
    yield _family("corral_replica_enabled", [((r.id,), int(r.enabled)) for r in replicas])
    yield _family("corral_replica_in_flight", [((r.id,), r.inflight) for r in replicas])
    yield _family("corral_replica_slots", [((r.id,), r.slots) for r in replicas])
    yield _family("corral_replica_weight", [((r.id,), r.weight) for r in replicas])
    yield _family("corral_replica_sample_age_seconds", [((r.id,), r.sample_age_s) for r in replicas])
    yield _family("corral_replica_held", [((r.id,), int(r.held is not None)) for r in replicas])
    states = [((p.id, s.value), int(s is p.state)) for p in snapshot.processes for s in ProcessState]
    yield _family("corral_replica_process_state", states)
    yield _family("corral_replica_restarts_total", [((p.id,), p.restarts) for p in snapshot.processes])
    yield from _gpus(snapshot.gpus)


def _gpus(gpus: Sequence[GpuState]) -> Iterator[Family]:
    """A reading that says nothing about now gives no value but its age."""
    yield _family("corral_gpu_info", [((g.label, g.gpu.uuid, g.gpu.name), 1) for g in gpus])
    known = [g for g in gpus if g.condition is not GpuCondition.UNKNOWN]
    yield _family("corral_gpu_up", [((g.label,), int(g.condition is GpuCondition.OK)) for g in known])
    fresh = [(g.label, g.sample) for g in gpus if g.condition is GpuCondition.OK and g.sample is not None]
    for name, value in _SENSORS.items():
        yield _family(name, [((label,), value(sample)) for label, sample in fresh])
    reasons = [((label, reason.value), 1) for label, sample in fresh for reason in Throttle if reason in _why(sample)]
    yield _family("corral_gpu_throttled", reasons)
    yield _family("corral_gpu_xids_total", [((g.label,), g.xids) for g in gpus])
    yield _family("corral_gpu_sample_age_seconds", [((g.label,), g.sample_age_s) for g in gpus])


def _why(sample: GpuSample) -> frozenset[Throttle]:
    return sample.throttles or frozenset()


_SENSORS: Final[dict[str, Callable[[GpuSample], float | None]]] = {
    "corral_gpu_utilisation_ratio": attrgetter("utilisation_ratio"),
    "corral_gpu_memory_used_bytes": attrgetter("memory_used_bytes"),
    "corral_gpu_memory_total_bytes": attrgetter("memory_total_bytes"),
    "corral_gpu_temperature_celsius": attrgetter("temperature_celsius"),
    "corral_gpu_slowdown_celsius": attrgetter("slowdown_celsius"),
    "corral_gpu_power_watts": attrgetter("power_watts"),
    "corral_gpu_power_limit_watts": attrgetter("power_limit_watts"),
    "corral_gpu_energy_joules_total": attrgetter("energy_joules"),
    "corral_gpu_sm_clock_hertz": attrgetter("sm_clock_hz"),
    "corral_gpu_uncorrected_ecc_errors_total": attrgetter("uncorrected_ecc_errors"),
}


_UP: Final[dict[Health, int | None]] = {Health.UNKNOWN: None, Health.UP: 1, Health.DOWN: 0, Health.EJECTED: 0}


def _with_outcome(series: Iterable[tuple[tuple[str, str], Series]], outcome: str) -> int:
    return sum(one.outcomes.get(outcome, 0) for _, one in series)


def _family(name: str, samples: Iterable[tuple[tuple[str, ...], float | None]]) -> Family:
    """A family of ``samples`` (label values, value); what is not known (None) is absent, never a number."""
    spec = METRICS[name]
    kind = CounterMetricFamily if spec.type == "counter" else GaugeMetricFamily
    family = kind(name, spec.help, labels=spec.labels)
    for labels, value in samples:
        if value is not None:
            family.add_metric(labels, value)
    return family


def _histograms(name: str, samples: Iterable[tuple[tuple[str, ...], Histogram]]) -> Family:
    spec = METRICS[name]
    family = HistogramMetricFamily(name, spec.help, labels=spec.labels)
    for labels, histogram in samples:
        edges = [str(bound) for bound in histogram.bounds] + ["+Inf"]
        buckets = list(zip(edges, accumulate(histogram.counts), strict=True))
        family.add_metric(labels, buckets, histogram.sum)
    return family
