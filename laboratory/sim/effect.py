"""What one run came to, as figures that a process can hand over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from corral.gateway.schedule.waiting import QueueLimits
from corral.laboratory.contender import Contender
from corral.laboratory.engine import run_ours, run_router
from corral.laboratory.measures import measure
from corral.laboratory.oracle import Oracle, run_oracle
from corral.laboratory.rivals import RIVALS
from corral.laboratory.spread import percentile
from corral.laboratory.types import Arrival, Box, Run

_MEASURED = (
    *(f"ttft_{point}" for point in ("mean", "p50", "p95", "p99")),
    *(f"e2e_{point}" for point in ("mean", "p50", "p95", "p99")),
    "good_slowest_ratio",
    "output_tok_s",
    "makespan_s",
    "loads",
    "prefix_hit_ratio",
    "jain",
    "decision_us",
)


@dataclass(frozen=True, slots=True)
class Job:
    """One run: who decides about which requests."""

    who: Contender
    box: Box
    arrivals: list[Arrival]
    limits: QueueLimits
    seed: int
    warm_up_s: float


@dataclass(slots=True)
class Effect:
    """Figures by name, and by replica."""

    figures: dict[str, float]
    shares: dict[str, float]
    """Of the requests that were answered, by the replica that did."""
    busy: dict[str, float]
    """Share of the time in which the GPU computed."""
    reasons: dict[str, float] = field(default_factory=dict)
    """Share of the decisions."""
    policy_error: str | None = None
    """The last thing that the policy did wrong."""


def play(job: Job) -> Effect:
    """Called in a process of its own."""
    return effect_of(_run(job), job.warm_up_s)


def _run(job: Job) -> Run:
    who, box, arrivals, seed = job.who, job.box, job.arrivals, job.seed
    if who.policy is not None:
        options = dict(who.options)
        return run_ours(
            box, arrivals, who.policy, options, seed, limits=job.limits, path=who.path, switches=who.switches
        )
    if who.name == Oracle.name:
        return run_oracle(box, arrivals, seed)
    return run_router(box, arrivals, RIVALS[who.name](box, seed), seed)


def effect_of(run: Run, warm_up_s: float) -> Effect:
    measured = measure(run, warm_up_s)
    figures = {name: measured[name] for name in _MEASURED}
    waits = sorted(
        outcome.sent_s - outcome.arrival.at_s
        for outcome in run.outcomes
        if outcome.sent_s is not None and outcome.arrival.at_s >= warm_up_s
    )
    refused = sum(not outcome.ok and not outcome.attempts for outcome in run.outcomes)
    failed = sum(not outcome.ok for outcome in run.outcomes) - refused
    figures |= {
        "wait_mean": fmean(waits) if waits else 0.0,
        "wait_p95": percentile(waits, 0.95) if waits else 0.0,
        "refused": float(refused),
        "failed": float(failed),
        "unloads": float(run.unloads),
    }
    served = Counter(outcome.replica_id for outcome in run.outcomes if outcome.ok)
    total, makespan_s = max(1, served.total()), figures["makespan_s"]
    return Effect(
        figures,
        {one.id: served[one.id] / total for one in run.box.replicas},
        {one.id: min(1.0, run.busy_s[one.id] / makespan_s) for one in run.box.replicas},
        {reason: count / run.reasons.total() for reason, count in run.reasons.most_common()},
        run.policy_error,
    )


def middle(effects: Sequence[Effect]) -> Effect:
    """The median of each figure, over the seeds."""

    def of(dicts: Sequence[dict[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for each in dicts for name in each)
        return {name: median(each.get(name, 0.0) for each in dicts) for name in names}

    return Effect(
        of([each.figures for each in effects]),
        of([each.shares for each in effects]),
        of([each.busy for each in effects]),
        of([each.reasons for each in effects]),
        next((each.policy_error for each in effects if each.policy_error), None),
    )
