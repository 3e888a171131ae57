"""A small fixed history of a gateway, for the pages that show one."""

from __future__ import annotations

from corral.errors import Fault, Refusal
from corral.gateway.serve.metrics import Metrics
from corral.model import Health, ReplicaState, Snapshot


def replica(id: str, *, health: Health = Health.UP, enabled: bool = True, slots: int | None = 4) -> ReplicaState:
    known = health is not Health.UNKNOWN
    return ReplicaState(
        id=id,
        weight=2.5,
        slots=slots,
        health=health,
        enabled=enabled,
        reason="answers its probe" if health is Health.UP else "connection refused",
        inflight=1,
        inflight_by_model={"llama3.1:8b": 1},
        version="0.32.15" if known else None,
        installed=("llama3.1:8b",) if known else None,
        loaded=("llama3.1:8b",) if known else None,
        sample_age_s=0.5 if known else None,
    )


def snapshot() -> Snapshot:
    return Snapshot(
        taken_at_s=100.0,
        policy="weighted-least-load",
        replicas=(
            replica("a"),
            replica("b", health=Health.DOWN, enabled=False),
            replica("c", health=Health.UNKNOWN, slots=None),
        ),
        queued=2,
        queued_by_model={"llama3.1:8b": 2},
        oldest_wait_s=1.25,
        inflight=3,
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
    counters.reloaded(True)
    counters.reloaded(False)
    return counters


def _requests(counters: Metrics) -> None:
    def done(kind: str, model: str | None, replica_id: str | None, outcome: str, first_byte_s: float | None) -> None:
        counters.request_done(
            kind,
            model,
            replica_id,
            outcome,
            queue_s=0.0625,
            first_byte_s=first_byte_s,
            total_s=3.0,
            lines=10,
            prompt_tokens=7 if outcome == "ok" else None,
            output_tokens=9 if outcome == "ok" else None,
        )

    done("chat", "llama3.1:8b", "a", "ok", 0.25)
    done("chat", "llama3.1:8b", "a", "ok", 700.0)
    done("chat", "llama3.1:8b", "b", "broken", 0.5)
    done("openai_chat", "a-name-no-replica-has", None, "refused_queue_full", None)
    done("tags", None, "a", "client_gone", None)
