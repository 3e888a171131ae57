"""A small fixed history of a gateway, for the pages that show one."""

from __future__ import annotations

from corral.errors import Fault, Refusal
from corral.gateway.ended import Attempt, Ended
from corral.gateway.serve.metrics import Metrics
from corral.model import (
    Choice,
    Decision,
    Figures,
    Gpu,
    GpuCondition,
    GpuLoad,
    GpuProcess,
    GpuSample,
    GpuState,
    GpuVendor,
    Health,
    Need,
    Prediction,
    ProcessState,
    ProcessStatus,
    ReplicaState,
    ReplicaView,
    RequestKind,
    RunningRequest,
    Snapshot,
    Throttle,
    WaitingRequest,
)


def replica(
    id: str,
    *,
    health: Health = Health.UP,
    enabled: bool = True,
    slots: int | None = 4,
    held: str | None = None,
    gpus: tuple[str, ...] = (),
) -> ReplicaState:
    known = health is not Health.UNKNOWN
    return ReplicaState(
        id=id,
        weight=2.5,
        slots=slots,
        health=health,
        enabled=enabled,
        held=held,
        reason="answers its probe" if health is Health.UP else "connection refused",
        inflight=1,
        inflight_by_model={"llama3.1:8b": 1},
        version="0.32.15" if known else None,
        installed=("llama3.1:8b",) if known else None,
        loaded=("llama3.1:8b",) if known else None,
        sample_age_s=0.5 if known else None,
        gpus=gpus,
    )


GPU = Gpu("GPU-0a", 0, GpuVendor.NVIDIA, "RTX 4090", 24 << 30)
SAMPLE = GpuSample(
    "GPU-0a",
    99.0,
    utilisation_ratio=0.75,
    memory_used_bytes=6 << 30,
    memory_total_bytes=24 << 30,
    temperature_celsius=61.0,
    slowdown_celsius=88.0,
    power_watts=310.5,
    power_limit_watts=450.0,
    energy_joules=1000.0,
    sm_clock_hz=2.5e9,
    uncorrected_ecc_errors=0,
    throttles=frozenset({Throttle.POWER_CAP, Throttle.THERMAL}),
    processes=(GpuProcess(4321, 5 << 30),),
)
"""A GPU that does not tell its highest clock."""


def gpus() -> tuple[GpuState, ...]:
    lost = Gpu("GPU-1b", 1, GpuVendor.NVIDIA, "RTX 3060", 12 << 30)
    return (
        GpuState(GPU, "0", GpuCondition.OK, "is read", SAMPLE, 1.0),
        GpuState(lost, "1", GpuCondition.LOST, "fell off the bus", SAMPLE, 60.0, xid=79, xids=2),
        GpuState(Gpu("GPU-2c", 2, GpuVendor.NVIDIA, "T4", None), "2", GpuCondition.UNKNOWN, "not read yet", None, None),
    )


def processes() -> tuple[ProcessStatus, ...]:
    return (
        ProcessStatus("a", ProcessState.RUNNING, "answers", 4321, 21001, 1, 90.0, True, "/state/logs/a.log", None),
        ProcessStatus(
            "c", ProcessState.BACKING_OFF, "exit code 1", None, 21002, 3, 98.0, False, "/state/logs/c.log", 104.0
        ),
    )


def snapshot() -> Snapshot:
    return Snapshot(
        taken_at_s=100.0,
        policy="weighted-least-load",
        replicas=(
            replica("a", gpus=("GPU-0a",)),
            replica("b", health=Health.DOWN, enabled=False),
            replica("c", health=Health.UNKNOWN, slots=None, held="backing off: exit code 1", gpus=("GPU-1b",)),
        ),
        queued=2,
        queued_by_model={"llama3.1:8b": 2},
        oldest_wait_s=1.25,
        oldest_by_model={"llama3.1:8b": 1.25},
        inflight=3,
        waiting=(
            WaitingRequest(7, "llama3.1:8b", RequestKind.INFERENCE, 0, 1.25, 1, Need.SLOT, ("a",)),
            WaitingRequest(9, "llama3.1:8b", RequestKind.INFERENCE, 2, 0.5, 2, Need.SLOT, ("a",)),
        ),
        running=(RunningRequest(3, "llama3.1:8b", RequestKind.INFERENCE, 1, "a", 2.5, 0.25, True, 4.0),),
        gpus=gpus(),
        processes=processes(),
        advice=("big:70b runs partly on the CPU",),
    )


def choices() -> tuple[Choice, ...]:
    """One by weights alone, one by predictions, and one for a request without a model."""
    hot = GpuLoad(1.25, 2.0, utilisation_ratio=0.75)
    here, nothing = frozenset({"llama3.1:8b"}), frozenset[str]()
    first = (ReplicaView("a", 2.5, 4, 3, 2, here, gpu=hot), ReplicaView("b", 1.0, 4, 1, 1, None))
    predicted = (
        ReplicaView("a", 2.5, 4, 3, 2, here, predicted=Prediction(0.0, 0.1128, 0.3, 0.05, 0.4, 1.0, 0.4378)),
        ReplicaView("b", 1.0, 4, 1, 1, nothing, predicted=Prediction(1.5, 0.45, 0.75, 0.0, 0.0, 1.2, 10.25)),
    )
    return (
        Choice(88.0, "llama3.1:8b", RequestKind.INFERENCE, 0.0, Decision("b", "least load"), first),
        Choice(97.5, "llama3.1:8b", RequestKind.INFERENCE, 1.25, Decision("a", "least time"), predicted, id="r-2"),
        Choice(99.0, None, RequestKind.OTHER, 0.0, Decision("b", "only candidate"), first[1:]),
    )


def metrics() -> Metrics:
    counters = Metrics()
    counters.know_models(["llama3.1:8b"])
    _requests(counters)
    counters.decided("a", "least busy")
    counters.decided("a", "least busy")
    counters.decided("b", "only candidate")
    counters.retried(Fault.RESET)
    counters.refused(Refusal.QUEUE_FULL)
    counters.health_changed("b", Health.DOWN)
    counters.probe("a", "version", 0.25, True)
    counters.probe("b", "version", 0.5, False)
    counters.load_ended("a", "llama3.1:8b", 4.5, ok=True)
    counters.load_ended("b", "llama3.1:8b", 0.0, ok=False)
    counters.unload_ended("a", "llama3.1:8b", ok=True)
    counters.unload_ended("b", "a-name-no-replica-has", ok=False)
    counters.reloaded(True)
    counters.reloaded(False)
    counters.gpu_rounds, counters.gpu_seconds = 7, 0.125
    counters.link_seconds["0", "1"] = 1.5e-05
    counters.loop_lag.observe(0.0015)
    counters.loop_lag_max_s = 0.0015
    counters.held = lambda: {"tasks": 12, "client connections": 3}
    return counters


def ended(
    kind: str,
    model: str | None,
    replica_id: str | None,
    outcome: str,
    first_byte_s: float | None = None,
    *,
    rank: int = 1,
    lines: int = 10,
    failed: tuple[Attempt, ...] = (),
    figures: Figures | None = None,
    predicted: Prediction | None = None,
) -> Ended:
    return Ended(
        id="r-1",
        at=1_700_000_000.0,
        kind=kind,
        method="POST",
        path="/api/chat",
        outcome=outcome,
        model=model,
        rank=rank,
        replica=replica_id,
        predicted=predicted,
        failed=failed,
        queue_s=0.0625,
        first_byte_s=first_byte_s,
        total_s=3.0,
        lines=lines,
        figures=figures,
    )


def _requests(counters: Metrics) -> None:
    told = Figures(prompt_tokens=7, output_tokens=9, decode_s=2.0)
    untold = Figures(prompt_tokens=7, output_tokens=9)
    predicted = Prediction(0.125, 0.125, 2.0, 0.05, 0.4, 1.25, 4.0)
    reset = (Attempt("b", "reset", 0.01, 0.05),)
    for one in (
        ended("chat", "llama3.1:8b", "a", "ok", 0.25, rank=0, figures=told, predicted=predicted),
        ended("chat", "llama3.1:8b", "a", "ok", 700.0, figures=untold, failed=reset),
        ended("chat", "llama3.1:8b", "b", "broken", 0.5),
        ended("openai_chat", "a-name-no-replica-has", None, "refused_queue_full", rank=2, lines=0),
        ended("tags", None, "a", "client_gone"),
    ):
        counters.request_done(one)
