"""The page ``/snapshot``: replicas, GPUs, queue and what is under way at one instant, as JSON."""

from __future__ import annotations

from typing import Any, Final, Protocol

from msgspec import to_builtins

from corral.model import GpuProcess, GpuSample, GpuState, ProcessStatus, ReplicaState, Snapshot

SNAPSHOT_SCHEMA: Final = 1
"""Grows when a key of ``/snapshot`` goes or changes its meaning; new keys may come without."""


class Control(Protocol):
    """What the page needs of a running gateway."""

    @property
    def version(self) -> str: ...

    def snapshot(self) -> Snapshot: ...

    def ready(self) -> tuple[bool, str]: ...


def snapshot_page(control: Control) -> dict[str, Any]:
    """All of ``/snapshot``."""
    ready, reason = control.ready()
    about = {"schema": SNAPSHOT_SCHEMA, "version": control.version, "ready": ready, "reason": reason}
    return about | snapshot_json(control.snapshot())


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """The part of ``/snapshot`` that comes from the scheduler; its keys are listed in docs/operations.md."""
    return {
        "policy": snapshot.policy,
        "requests": {
            "in_flight": snapshot.inflight,
            "queued": snapshot.queued,
            "queued_by_model": snapshot.queued_by_model,
            "oldest_wait_s": snapshot.oldest_wait_s,
            "waiting": to_builtins(snapshot.waiting),
            "running": to_builtins(snapshot.running),
        },
        "replicas": replicas_json(snapshot),
        "gpus": [_gpu_json(state) for state in snapshot.gpus],
        "advice": list(snapshot.advice),
    }


def replicas_json(snapshot: Snapshot) -> list[dict[str, Any]]:
    processes = {process.id: _process_json(process, snapshot.taken_at_s) for process in snapshot.processes}
    return [_replica_json(replica) | {"process": processes.get(replica.id)} for replica in snapshot.replicas]


def _process_json(process: ProcessStatus, now_s: float) -> dict[str, Any]:
    next_start_s = process.next_start_s
    return {
        "state": process.state.value,
        "reason": process.reason,
        "for_s": round(max(0.0, now_s - process.since_s), 3),
        "pid": process.pid,
        "port": process.port,
        "restarts": process.restarts,
        "next_start_in_s": None if next_start_s is None else round(max(0.0, next_start_s - now_s), 3),
        "adopted": process.adopted,
        "log": process.log,
    }


def _gpu_json(state: GpuState) -> dict[str, Any]:
    gpu = state.gpu
    return {
        "gpu": state.label,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "vendor": gpu.vendor.value,
        "memory_bytes": gpu.memory_bytes,
        "condition": state.condition.value,
        "reason": state.reason,
        "xid": state.xid,
        "sample_age_s": state.sample_age_s,
        "sample": None if state.sample is None else _sample_json(state.sample),
    }


def _sample_json(sample: GpuSample) -> dict[str, Any]:
    names = [name for name in sample.__slots__ if name not in ("uuid", "taken_at_s", "throttles", "processes")]
    plain = {name: getattr(sample, name) for name in names}
    throttles, processes = sample.throttles, sample.processes
    plain["throttles"] = None if throttles is None else sorted(reason.value for reason in throttles)
    plain["processes"] = None if processes is None else [_user_json(process) for process in processes]
    return plain


def _user_json(process: GpuProcess) -> dict[str, Any]:
    return {"pid": process.pid, "memory_bytes": process.memory_bytes}


def _replica_json(replica: ReplicaState) -> dict[str, Any]:
    return {
        "id": replica.id,
        "health": replica.health.value,
        "enabled": replica.enabled,
        "held": replica.held,
        "reason": replica.reason,
        "weight": replica.weight,
        "slots": replica.slots,
        "in_flight": replica.inflight,
        "in_flight_by_model": replica.inflight_by_model,
        "version": replica.version,
        "installed": None if replica.installed is None else list(replica.installed),
        "loaded": None if replica.loaded is None else list(replica.loaded),
        "changing": replica.changing,
        "loading": replica.loading,
        "leaving": list(replica.leaving),
        "sample_age_s": replica.sample_age_s,
        "models": None if replica.models is None else list(replica.models),
        "gpus": list(replica.gpus),
        "found_by": replica.found_by,
        "below": None if replica.below is None else list(replica.below),
    }
