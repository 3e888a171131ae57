"""The part of the metrics page that is true at one instant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Final

from corral.gateway.serve.textformat import TextFormat
from corral.model import GpuCondition, GpuSample, GpuState, Health, ProcessState, ReplicaState, Snapshot, Throttle

Label = Callable[[str | None], str]
"""What a model is called on the page."""
Zeros = dict[tuple[str], int]
"""All installed models."""

_UP: Final[dict[Health, int | None]] = {Health.UNKNOWN: None, Health.UP: 1, Health.DOWN: 0, Health.EJECTED: 0}


def write_observed(to: TextFormat, snapshot: Snapshot, label: Label) -> None:
    to.samples("corral_policy_info", [((snapshot.policy,), 1)])
    to.samples("corral_requests_in_flight", [((), snapshot.inflight)])
    to.samples("corral_requests_queued", [((), snapshot.queued)])
    to.samples("corral_queue_oldest_seconds", [((), snapshot.oldest_wait_s)])
    installed = {(label(model),): 0 for model in {model for one in snapshot.replicas for model in one.installed or ()}}
    _queue(to, snapshot, installed, label)
    _models(to, snapshot.replicas, installed, label)
    _replicas(to, snapshot, label)
    _processes(to, snapshot)
    _gpus(to, snapshot.gpus)


def _queue(to: TextFormat, snapshot: Snapshot, installed: Zeros, label: Label) -> None:
    """Lanes are called after a model and its options, both as clients wrote them."""
    queued = Counter(installed)
    oldest: dict[tuple[str], float] = {}
    for lane, number in snapshot.queued_by_model.items():
        model = (_model_of(lane, label),)
        queued[model] += number
        oldest[model] = max(oldest.get(model, 0.0), snapshot.oldest_by_model.get(lane, 0.0))
    to.samples("corral_model_queued", sorted(queued.items()))
    to.samples("corral_model_queue_oldest_seconds", sorted(oldest.items()))


def _model_of(lane: str, label: Label) -> str:
    name = lane.partition(" ")[0]
    return label(name if ":" in name else None)


def _models(to: TextFormat, replicas: Sequence[ReplicaState], installed: Zeros, label: Label) -> None:
    inflight, copies = Counter(installed), Counter(installed)
    slots: dict[tuple[str], int | None] = {}
    for one in replicas:
        for model, number in one.inflight_by_model.items():
            inflight[(label(model),)] += number
        for model in one.loaded or ():
            key = (label(model),)
            copies[key] += 1
            known = slots.get(key, 0)
            slots[key] = None if known is None or one.slots is None else known + one.slots
    is_known = any(one.loaded is not None for one in replicas)
    to.samples("corral_model_in_flight", sorted(inflight.items()))
    to.samples("corral_model_slots", sorted(slots.items()))
    to.samples("corral_model_copies", sorted(copies.items()) if is_known else ())


def _replicas(to: TextFormat, snapshot: Snapshot, label: Label) -> None:
    replicas = snapshot.replicas
    labels = {state.gpu.uuid: state.label for state in snapshot.gpus}
    to.samples("corral_replica_up", [((r.id,), _UP[r.health]) for r in replicas])
    to.samples("corral_replica_health", [((r.id, h.value), int(h is r.health)) for r in replicas for h in Health])
    to.samples("corral_replica_enabled", [((r.id,), int(r.enabled)) for r in replicas])
    to.samples("corral_replica_held", [((r.id,), int(r.held is not None)) for r in replicas])
    to.samples("corral_replica_in_flight", [((r.id,), r.inflight) for r in replicas])
    to.samples("corral_replica_slots", [((r.id,), r.slots) for r in replicas])
    to.samples("corral_replica_weight", [((r.id,), r.weight) for r in replicas])
    to.samples("corral_replica_sample_age_seconds", [((r.id,), r.sample_age_s) for r in replicas])
    loaded = sorted({(r.id, label(model)) for r in replicas for model in r.loaded or ()})
    to.samples("corral_replica_model_loaded", [(pair, 1) for pair in loaded])
    gpus = [(r.id, labels[uuid]) for r in replicas for uuid in r.gpus if uuid in labels]
    to.samples("corral_replica_gpu_info", [(pair, 1) for pair in gpus])


def _processes(to: TextFormat, snapshot: Snapshot) -> None:
    processes = snapshot.processes
    states = [((p.id, s.value), int(s is p.state)) for p in processes for s in ProcessState]
    to.samples("corral_replica_process_state", states)
    to.samples("corral_replica_restarts_total", [((p.id,), p.restarts) for p in processes])


def _gpus(to: TextFormat, gpus: Sequence[GpuState]) -> None:
    """A reading that says nothing about now gives no value but its age."""
    to.samples("corral_gpu_info", [((g.label, g.gpu.uuid, g.gpu.name), 1) for g in gpus])
    known = [g for g in gpus if g.condition is not GpuCondition.UNKNOWN]
    to.samples("corral_gpu_up", [((g.label,), int(g.condition is GpuCondition.OK)) for g in known])
    conditions = [((g.label, c.value), int(c is g.condition)) for g in gpus for c in GpuCondition]
    to.samples("corral_gpu_condition", conditions)
    fresh = [(g.label, g.sample) for g in gpus if g.condition is GpuCondition.OK and g.sample is not None]
    for name, value in _SENSORS.items():
        to.samples(name, [((label,), value(sample)) for label, sample in fresh])
    to.samples("corral_gpu_throttled", list(_throttled(fresh)))
    to.samples("corral_gpu_xids_total", [((g.label,), g.xids) for g in gpus])
    to.samples("corral_gpu_sample_age_seconds", [((g.label,), g.sample_age_s) for g in gpus])


def _throttled(fresh: Iterable[tuple[str, GpuSample]]) -> Iterable[tuple[tuple[str, str], int]]:
    for label, sample in fresh:
        for reason in Throttle:
            if reason in (sample.throttles or ()):
                yield (label, reason.value), 1


def _percent(sample: GpuSample) -> float | None:
    ratio = sample.utilisation_ratio
    return None if ratio is None else round(ratio * 100, 3)


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
    "ollama_gpu_utilization": _percent,
    "ollama_gpu_memory_used": attrgetter("memory_used_bytes"),
}
