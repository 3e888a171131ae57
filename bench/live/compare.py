"""Live and in the laboratory: the same contenders and the same requests, and how far the two are apart."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median

from bench.contenders import NotReady
from bench.live.fronts import OUR_NAME, Front
from bench.live.play import Usage, first_in_line, play
from bench.live.replica import LiveError
from bench.policies.live_result import WITHIN, Live
from corral.laboratory.campaign import Contender, Scenario, contender, stage
from corral.laboratory.engine import run_ours, run_router
from corral.laboratory.measures import FAILED_S, Figures, measure
from corral.laboratory.rivals import RIVALS
from corral.laboratory.spread import Ratio, paired_ratio
from corral.laboratory.types import Run

COMPARED = ("ttft_mean", "ttft_p99", "e2e_mean", "e2e_p99")
PATIENCE_S = 1200.0
"""Of the emulated machines: then the client gives up. Whoever waited longer than FAILED_S already counts as late, but
the laboratory's clients wait on, so these must, too."""
DRAWS = 5
BySeed = dict[int, Figures]


@dataclass(slots=True)
class Comparison:
    """Figures by contender and seed."""

    scenario: Scenario
    speed: float
    live: dict[str, BySeed] = field(default_factory=dict)
    lab: dict[str, BySeed] = field(default_factory=dict)
    usages: dict[str, list[Usage]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """Runs that could not be made."""

    def contenders(self) -> list[str]:
        """Those with live figures."""
        return list(self.live)

    def medians(self, figures: Mapping[str, BySeed], figure: str) -> dict[str, float]:
        return {name: median(one[figure] for one in figures[name].values()) for name in self.live}

    def ratio(self, figures: Mapping[str, BySeed], name: str, figure: str) -> Ratio | None:
        """To ours, seed by seed, of the seeds that were played live."""
        above, below = (
            {seed: figures[who][seed][figure] for seed in self.live.get(who, ()) if seed in figures.get(who, ())}
            for who in (name, OUR_NAME)
        )
        return paired_ratio(above, below)

    def apart(self, name: str, figure: str) -> float | None:
        """How far the live ratio is from the laboratory's, as a share of that."""
        live, lab = self.ratio(self.live, name, figure), self.ratio(self.lab, name, figure)
        return None if live is None or lab is None else live.median / lab.median - 1

    def verdict(self, figure: str) -> Live:
        """Order and ratios by the medians."""
        return Live(OUR_NAME, self.medians(self.live, figure), self.medians(self.lab, figure))

    def reversed_ratio(self, figure: str) -> float:
        """Of all pairs that stand the other way round live, how far they are apart in the laboratory; 1: none does."""
        live, lab = self.medians(self.live, figure), self.medians(self.lab, figure)
        pairs = [(one, other) for one in live for other in live if live[one] < live[other] and lab[one] > lab[other]]
        return max((lab[one] / lab[other] for one, other in pairs), default=1.0)

    def is_within(self, figure: str) -> bool | None:
        """None: there is nothing to compare."""
        found = [self.apart(name, figure) for name in self.live if name != OUR_NAME]
        known = [abs(apart) for apart in found if apart is not None]
        return max(known) <= WITHIN if known else None


def compare(
    scenario: Scenario, fronts: Sequence[Front], seeds: Sequence[int], speed: float, *, real_time: bool = False
) -> Comparison:
    """Within a seed every contender has its turn, and who is first changes. A run that fails is told, and no figure."""
    comparison = Comparison(scenario, speed)
    for number, seed in enumerate(seeds):
        turn = number % len(fronts)
        for front in (*fronts[turn:], *fronts[:turn]):
            try:
                _one(comparison, front, seed, real_time=real_time)
            except (NotReady, LiveError, OSError) as error:
                comparison.failures.append(f"{front.name}, seed {seed}: {error}")
                print(f"FAILED {front.name}, seed {seed}: {error}", file=sys.stderr)
    return comparison


def _one(comparison: Comparison, front: Front, seed: int, *, real_time: bool) -> None:
    scenario = comparison.scenario
    lab = in_laboratory(scenario, contender(front.laboratory), seed)
    with first_in_line() if real_time else nullcontext():
        played = play(scenario, front, seed, comparison.speed, PATIENCE_S)
    live = _figures(scenario, played.run, seed)
    comparison.lab.setdefault(front.name, {})[seed] = lab
    comparison.live.setdefault(front.name, {})[seed] = live
    comparison.usages.setdefault(front.name, []).append(played.usage)
    told = " ".join(f"{figure}={live[figure]:.2f}/{lab[figure]:.2f}" for figure in (*COMPARED, "loads", "missed"))
    print(f"{front.name}, seed {seed}, live/laboratory: {told}", file=sys.stderr)


def in_laboratory(scenario: Scenario, who: Contender, seed: int, draws: int = DRAWS) -> Figures:
    """Medians of runs that differ in the contender's own throws of the dice alone: where models come and go, these
    decide about half of the time or twice of it, and a live run has its own."""
    box, arrivals = stage(scenario, seed).box, stage(scenario, seed).scaled.arrivals
    found = []
    for draw in (seed + 1000 * number for number in range(draws)):
        if who.policy is not None:
            run = run_ours(box, arrivals, who.policy, dict(who.options), draw)
        else:
            run = run_router(box, arrivals, RIVALS[who.name](box, draw), draw)
        found.append(_figures(scenario, run, seed))
    return {figure: median(figures[figure] for figures in found) for figure in found[0]}


def _figures(scenario: Scenario, run: Run, seed: int) -> Figures:
    return {**measure(run, stage(scenario, seed).warm_up_s), "missed": float(sum(_missed(run)))}


def _missed(run: Run) -> Iterator[bool]:
    """Whoever got no answer, or waited too long for it."""
    for outcome in run.outcomes:
        yield not outcome.ok or outcome.end_s is None or outcome.end_s - outcome.arrival.at_s > FAILED_S
