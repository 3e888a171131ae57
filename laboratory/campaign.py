"""Plays scenarios to contenders: every contender meets the same requests, seed by seed, in processes side by side."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache

from corral.laboratory.bounds import Bounds, bounds
from corral.laboratory.boxes import BoxSpec, make_box
from corral.laboratory.contender import DEFAULT, OURS, Contender, contender
from corral.laboratory.engine import run_ours, run_router
from corral.laboratory.measures import Figures, measure
from corral.laboratory.oracle import Oracle, run_oracle
from corral.laboratory.rivals import RIVALS
from corral.laboratory.types import Box, Run
from corral.laboratory.workloads import Scaled, Work, workload

__all__ = ["DEFAULT", "OURS", "Contender", "Result", "Scenario", "Stage", "campaign", "contender", "play", "run_one"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload, a box, and how busy the one makes the other."""

    name: str
    work: Work
    box: BoxSpec
    load: float
    scaled_to: str | None = None
    """The box whose capacity ``load`` is a share of; None: its own."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A scenario for one seed."""

    box: Box
    scaled: Scaled

    @property
    def warm_up_s(self) -> float:
        """A tenth of the time, two minutes at most: models load, and whoever learns learns."""
        return min(120.0, self.scaled.span_s / 10)


@dataclass(slots=True)
class Result:
    """What a scenario gave: figures by contender and seed."""

    scenario: Scenario
    figures: dict[str, dict[int, Figures]] = field(default_factory=dict)
    bounds: dict[int, Bounds] = field(default_factory=dict)
    factors: dict[int, float] = field(default_factory=dict)
    capacity_rps: dict[int, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """Runs that could not be made."""

    def by_seed(self, contender: str, figure: str) -> dict[int, float]:
        """Without the seeds in which there was nothing to measure."""
        found = self.figures.get(contender, {})
        return {seed: figures[figure] for seed, figures in found.items() if figure in figures}


@lru_cache(maxsize=8)
def stage(scenario: Scenario, seed: int) -> Stage:
    """The same for every contender."""
    reference = scenario.box if scenario.scaled_to is None else replace(scenario.box, name=scenario.scaled_to)
    scaled = workload(scenario.work, make_box(reference), scenario.load, seed)
    return Stage(make_box(scenario.box, scaled.span_s), scaled)


def run_one(scenario: Scenario, who: Contender, seed: int) -> Run:
    set_up = stage(scenario, seed)
    box, arrivals = set_up.box, set_up.scaled.arrivals
    if who.policy is not None:
        return run_ours(box, arrivals, who.policy, dict(who.options), seed, path=who.path, switches=who.switches)
    if who.name == Oracle.name:
        return run_oracle(box, arrivals, seed)
    return run_router(box, arrivals, RIVALS[who.name](box, seed), seed)


def play(scenario: Scenario, who: Contender, seed: int) -> Figures:
    return measure(run_one(scenario, who, seed), stage(scenario, seed).warm_up_s)


def limits(scenario: Scenario, seed: int) -> tuple[Bounds, float, float]:
    """The bounds, the factor of time, and the capacity in requests a second."""
    set_up = stage(scenario, seed)
    limit = bounds(set_up.box, set_up.scaled.arrivals, set_up.warm_up_s)
    return limit, set_up.scaled.factor, set_up.scaled.capacity_rps


def campaign(
    scenarios: Sequence[Scenario], contenders: Sequence[Contender], seeds: Sequence[int], processes: int = 2
) -> list[Result]:
    """Every contender in every scenario with every seed. A run that fails is told and is no figure."""
    results = [Result(scenario) for scenario in scenarios]
    # processes that begin afresh: a fork of one with threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        pending: list[tuple[Result, str, Callable[[], None]]] = []
        for result in results:
            for seed in seeds:
                pending += _submit(pool, result, contenders, seed)
        for done, (result, what, collect) in enumerate(pending, 1):
            try:
                collect()
            except Exception as error:  # whatever it was, the other runs still count
                result.failures.append(f"{what}: {type(error).__name__}: {error}")
                sys.stderr.write(f"\nFAILED {result.scenario.name}, {what}: {error}\n")
            _progress(done, len(pending), f"{result.scenario.name}, {what}")
    return results


def _submit(
    pool: ProcessPoolExecutor, result: Result, contenders: Iterable[Contender], seed: int
) -> list[tuple[Result, str, Callable[[], None]]]:
    scenario = result.scenario
    limit = pool.submit(limits, scenario, seed)
    runs = [(who, pool.submit(play, scenario, who, seed)) for who in contenders]

    def collect_limits() -> None:
        result.bounds[seed], result.factors[seed], result.capacity_rps[seed] = limit.result()

    def collect(name: str, get: Callable[[], Figures]) -> None:
        result.figures.setdefault(name, {})[seed] = get()

    jobs: list[tuple[Result, str, Callable[[], None]]] = [(result, f"bounds, seed {seed}", collect_limits)]
    for who, future in runs:
        jobs.append((result, f"{who.name}, seed {seed}", lambda n=who.name, f=future: collect(n, f.result)))  # type: ignore[misc]
    return jobs


def _progress(done: int, total: int, what: str) -> None:
    end = "\n" if done == total or not sys.stderr.isatty() else ""
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{start}{done}/{total} {what}{end}")
    sys.stderr.flush()
