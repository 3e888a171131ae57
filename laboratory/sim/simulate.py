"""From what was asked for to the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from corral.gateway.config import Config
from corral.gateway.layout.plan import Facts
from corral.gateway.schedule.waiting import QueueLimits
from corral.laboratory.sim.asked import Pace, Play, Trace, played, read
from corral.laboratory.sim.box import Seats, configured_box, gpus_given, named_box, needs_facts
from corral.laboratory.sim.contest import Progress, contenders, run_all, switched
from corral.laboratory.sim.effect import Job, middle
from corral.laboratory.sim.report import Report
from corral.laboratory.sim.sizes import specs_given, specs_of
from corral.laboratory.types import Box
from corral.model import normalise_model

USUAL_MODEL = "llama3.1:8b"
_FEW = 50
"""So few requests have no warm-up."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    trace: str
    policy: str | None
    against: tuple[str, ...]
    pace: Pace
    models: tuple[str, ...]
    gpus: tuple[str, ...]
    box: str | None
    requests: int
    seeds: int
    processes: int


def simulate(asked: Asked, config: Config, facts: Callable[[], Facts], progress: Progress) -> Report:
    """Raises OperatorError, with all that can be wrong found before anything is run."""
    whos = contenders(asked.policy, asked.against, config.policy)
    whos = [switched(who, () if config.placement.enabled else ("no-placement",)) for who in whos]
    trace = read(asked.trace)
    box, seats = _box(asked, config, trace, facts)
    plays = [played(trace, box, asked.pace, asked.requests, seed) for seed in range(asked.seeds)]
    warm_up_s = _warm_up_s(plays[0])
    limits = limits_of(config)
    jobs = [
        Job(who, box, play.arrivals, limits, seed, _warm_up_s(play)) for who in whos for seed, play in enumerate(plays)
    ]
    effects = run_all(jobs, asked.processes, progress)
    of_each = [middle(effects[start : start + asked.seeds]) for start in range(0, len(effects), asked.seeds)]
    return Report(trace, box, seats, asked.pace, plays, warm_up_s, whos, of_each)


def _box(asked: Asked, config: Config, trace: Trace, facts: Callable[[], Facts]) -> tuple[Box, Seats]:
    given, gpus = specs_given(asked.models), gpus_given(asked.gpus)
    known = facts() if asked.box is None and needs_facts(config, gpus) else None
    names = trace.models or list(given) or _named_by(config)
    models = specs_of(names, given, () if known is None else known.models)
    if asked.box is not None:
        return named_box(asked.box, models)
    return configured_box(config, models, gpus, known)


def _named_by(config: Config) -> list[str]:
    """The models that the configuration speaks of; else a usual one."""
    names = [name for one in config.replicas for name in (*one.models, *one.pin)]
    return list(dict.fromkeys(map(normalise_model, [*names, *config.warmup.models]))) or [USUAL_MODEL]


def _warm_up_s(play: Play) -> float:
    """A tenth of the time, two minutes at most: models load, and whoever learns learns."""
    if len(play.arrivals) < _FEW:
        return 0.0
    return min(120.0, play.span_s / 10)


def limits_of(config: Config) -> QueueLimits:
    queue = config.queue
    return replace(
        QueueLimits(),
        max_requests=queue.max_requests,
        max_wait_s=queue.max_wait_s,
        order=queue.order,
        fair=queue.fair,
        quantum_s=queue.quantum_s,
        age_s=queue.age_s,
    )
