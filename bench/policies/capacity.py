"""How much a box can be asked for: the greatest load at which a contender keeps the SLO for nearly all requests."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from statistics import median

from bench.policies.report import markdown, scenario_text
from corral.laboratory.campaign import Contender, Result, Scenario, play, stage
from corral.laboratory.spread import paired_ratio

YARDSTICKS = {"slowest": "good_slowest_ratio", "best": "good_ratio"}
"""Whose pace alone the SLO is a multiple of, and the figure that says how many kept it."""
LEAST, MOST, STEP = 0.05, 1.6, 0.02
"""Loads that are tried, and how exactly the greatest is found."""
ABOUT = """\
A contender's capacity is the greatest load at which at least {share:.0%} of the requests are within the SLO, found by \
halving between {least:g} and {most:g} to {step:g}, for each seed by itself; goodput is taken to fall as load grows. \
Yardstick: the {yardstick} GPU of the box. A request is within the SLO if its first token comes within max(2 s, 2 × \
what it takes alone there + 1 s) and each further token takes at most twice what it takes alone there.

The yardstick is the same for all contenders and does not depend on where a request went. Of the *best* GPU: what a \
client could hope for; on unequal boxes a slow GPU can never keep that, however idle, so that hardly any load is low \
enough for 95 %. Of the *slowest* GPU that has the memory for the model (the default): what each GPU of the box can \
keep, so that missing it is the fault of waiting and sharing, and using slow GPUs is no fault in itself. There is no \
yardstick "the GPU that served it": it would call the same answer late on a fast GPU and in time on a slow one, and so \
reward whoever sends requests to slow GPUs.
"""  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Wanted:
    """What has to be kept, and by whose pace."""

    share: float = 0.95
    yardstick: str = "slowest"


def greatest_load(good_at: Callable[[float], float], share: float) -> float | None:
    """By halving; ``good_at`` gives the share that is good at a load. None: not even at the least load.
    :data:`MOST`: also at the most."""
    if good_at(LEAST) < share:
        return None
    if good_at(MOST) >= share:
        return MOST
    low, high = LEAST, MOST
    while high - low > STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if good_at(middle) >= share else (low, middle)
    return low


def capacity(scenario: Scenario, who: Contender, seed: int, wanted: Wanted) -> tuple[float | None, float | None]:
    """The greatest load, and the requests a second that it is."""
    figure = YARDSTICKS[wanted.yardstick]
    load = greatest_load(lambda load: play(at(scenario, load), who, seed)[figure], wanted.share)
    if load is None:
        return None, None
    return load, load * stage(at(scenario, load), seed).scaled.capacity_rps


def at(scenario: Scenario, load: float) -> Scenario:
    return replace(scenario, load=load)


Found = dict[str, dict[int, tuple[float | None, float | None]]]
"""By contender and seed."""


def capacities(
    scenario: Scenario, contenders: Sequence[Contender], seeds: Sequence[int], wanted: Wanted, processes: int = 2
) -> Found:
    # processes that begin afresh: a fork of one with threads may hang
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {
            (who.name, seed): pool.submit(capacity, scenario, who, seed, wanted) for who in contenders for seed in seeds
        }
        found: Found = {}
        for number, ((name, seed), job) in enumerate(jobs.items(), 1):
            found.setdefault(name, {})[seed] = job.result()
            print(f"{number}/{len(jobs)} {name}, seed {seed}", file=sys.stderr)
    return found


def text(scenario: Scenario, found: Found, ours: str, wanted: Wanted) -> str:
    """A line a contender: median over the seeds, least and greatest seed, and the paired ratio to ours."""
    loads = {name: {seed: load for seed, (load, _) in by_seed.items()} for name, by_seed in found.items()}
    lines = []
    for name, by_seed in found.items():
        rates = [rate for _, rate in by_seed.values()]
        times = "" if name == ours else _times(loads[name], loads[ours])
        lines.append([name, *_loads(list(loads[name].values())), _middle(rates), times])
    about = ABOUT.format(share=wanted.share, least=LEAST, most=MOST, step=STEP, yardstick=wanted.yardstick)
    titles = ["", "greatest load", "by seed", "requests/s", f"÷ {ours}"]
    said = scenario_text(Result(replace(scenario, load=0))).replace("; load 0", "")
    return "\n\n".join(
        [
            f"### Capacity: {scenario.name.rpartition(', load')[0] or scenario.name}",
            said,
            about.strip(),
            markdown(titles, lines),
        ]
    )


def _loads(loads: Sequence[float | None]) -> tuple[str, str]:
    words = [_word(load) for load in sorted(loads, key=lambda load: load or 0.0)]
    known = sorted(load or 0.0 for load in loads)
    return _word(median(known) or None), f"{words[0]} to {words[-1]}"


def _word(load: float | None) -> str:
    if load is None:
        return f"< {LEAST:g}"
    return f"≥ {MOST:g}" if load >= MOST else f"{load:.2f}"


def _middle(rates: Sequence[float | None]) -> str:
    known = [rate for rate in rates if rate is not None]
    return f"{median(known):.2f}" if len(known) == len(rates) else "–"  # noqa: RUF001


def _times(theirs: dict[int, float | None], ours: dict[int, float | None]) -> str:
    if None in theirs.values() or None in ours.values():
        return "–"  # noqa: RUF001
    found = paired_ratio(
        {seed: load or 0.0 for seed, load in theirs.items()}, {s: load or 0.0 for s, load in ours.items()}
    )
    return str(found or "–")  # noqa: RUF001
