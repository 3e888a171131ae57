"""`python -m bench.policies.decide`: what a decision of the scheduler costs, and how that grows."""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from time import thread_time_ns
from typing import TypeVar

from bench import machine
from bench.policies.busy import Busy
from bench.policies.report import markdown
from corral.errors import OperatorError
from corral.laboratory.spread import percentile

R = TypeVar("R")

LIMIT_US = 100.0
AT_REPLICAS, AT_QUEUED = 16, 1000
"""Where the limit holds."""
NOISE = 1.25
"""So many times more than allowed is still called the same."""
FILE = "decide.json"


@dataclass(frozen=True, slots=True)
class Cell:
    """One size of scheduler. Microseconds are those of the CPU: what else a machine does meanwhile is not its cost."""

    replicas: int
    queued: int
    models: int
    heads: int
    """Lanes in which somebody waits."""
    median_us: float
    """A decision: all that the scheduler does for one request: its arrival, its first byte, and its end, which lets the
    next one go. Of the calmest fifth of the rounds, as the parts; the others are of all rounds."""
    p99_us: float
    submit_us: float
    """Medians of the parts."""
    first_byte_us: float
    finish_us: float
    tick_us: float | None
    """Four times a second, whatever the requests; None: none was due."""


def measure(replicas: int, queued: int, models: int, rounds: int, policy: str = "weighted-least-load") -> Cell:
    """Keeps as many waiting as there were: whoever ends lets one go, and a new one of the same model comes."""
    busy = Busy(replicas, models, policy)
    busy.fill(queued)
    for _ in range(max(300, 2 * len(busy.running))):  # until costs are learned everywhere
        _round(busy)
    gc.collect()
    gc.disable()
    try:
        lives = [_round(busy) for _ in range(rounds)]
    finally:
        gc.enable()
    sums = sorted(life.whole_us for life in lives)
    ticks = [life.tick_us for life in lives if life.tick_us is not None]
    calm = _calmest(lives)
    return Cell(
        replicas,
        queued,
        models,
        heads=len(busy.scheduler.snapshot(busy.now_s).queued_by_model),
        median_us=median(life.whole_us for life in calm),
        p99_us=percentile(sums, 0.99),
        submit_us=median(life.submit_us for life in calm),
        first_byte_us=median(life.first_byte_us for life in calm),
        finish_us=median(life.finish_us for life in calm),
        tick_us=median(ticks) if ticks else None,
    )


@dataclass(frozen=True, slots=True)
class _Life:
    """What one round cost: a request ended, another came, and whoever was sent by that got its first byte."""

    submit_us: float
    first_byte_us: float
    finish_us: float
    tick_us: float | None

    @property
    def whole_us(self) -> float:
        return self.submit_us + self.first_byte_us + self.finish_us


def _calmest(lives: Sequence[_Life]) -> Sequence[_Life]:
    """The fifth of the time in which the machine disturbed least; a shared one has bad moments."""
    length = max(1, len(lives) // 5)
    fifths = [lives[start : start + length] for start in range(0, len(lives) - length + 1, length)]
    return min(fifths, key=lambda fifth: median(life.whole_us for life in fifth))


def _round(busy: Busy) -> _Life:
    scheduler, now_s = busy.scheduler, busy.pass_time()
    tick_us = None
    sent = []
    if busy.is_tick_due():
        tick_us, effects = _timed(lambda: scheduler.tick(now_s))
        sent += busy.carry_out(effects)
    ended = busy.running.popleft()
    figures, coming = busy.figures(ended), busy.ticket(ended.request.model)
    finish_us, effects = _timed(lambda: scheduler.finish(ended, now_s, ok=True, figures=figures))
    sent += busy.carry_out(effects)
    submit_us, effects = _timed(lambda: scheduler.submit(coming, now_s))
    sent += busy.carry_out(effects)
    first_byte_us = sum(_timed(partial(scheduler.first_byte, ticket, now_s))[0] for ticket in sent)
    return _Life(submit_us, first_byte_us, finish_us, tick_us)


def _timed(call: Callable[[], R]) -> tuple[float, R]:
    began_ns = thread_time_ns()
    found = call()
    return (thread_time_ns() - began_ns) / 1000, found


# -- what it comes to --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Growth:
    """Two cells that differ in one size."""

    what: str
    times: float
    allowed: float
    """As replicas + heads of queues grow; 1 where neither does."""

    @property
    def is_met(self) -> bool:
        return self.times <= self.allowed * NOISE


def growths(cells: Sequence[Cell]) -> list[Growth]:
    """From the smallest to the largest of each size, the others as they are; of several the one that grew most."""
    found = [[_growth(name, *pair) for pair in _pairs(cells, name)] for name in ("replicas", "queued", "models")]
    return [max(grown, key=lambda one: one.times / one.allowed) for grown in found if grown]


def _pairs(cells: Sequence[Cell], name: str) -> list[tuple[Cell, Cell]]:
    """Least and most by that size. Queues that are empty have no heads that could grow with them."""
    lines: dict[tuple[int, ...], list[Cell]] = {}
    for cell in cells:
        if name == "replicas" or cell.queued:
            others = tuple(getattr(cell, other) for other in ("replicas", "queued", "models") if other != name)
            lines.setdefault(others, []).append(cell)
    ordered = [sorted(line, key=lambda cell: int(getattr(cell, name))) for line in lines.values()]
    return [(line[0], line[-1]) for line in ordered if len(line) > 1]


def _growth(name: str, less: Cell, more: Cell) -> Growth:
    sizes = [f"{other} {getattr(less, other)}" for other in ("replicas", "queued", "models") if other != name]
    what = f"{name} {getattr(less, name)} → {getattr(more, name)} ({', '.join(sizes)})"
    allowed = (more.replicas + more.heads) / (less.replicas + less.heads)
    return Growth(what, more.median_us / less.median_us, allowed)


def judged(cells: Sequence[Cell]) -> Cell | None:
    """The dearest of the size at which the limit holds."""
    there = [cell for cell in cells if (cell.replicas, cell.queued) == (AT_REPLICAS, AT_QUEUED)]
    return max(there, key=lambda cell: cell.median_us, default=None)


def report(cells: Sequence[Cell]) -> str:
    titles = ["replicas", "queued", "models", "lanes that wait", "median, µs", "p99, µs"]
    titles += ["arrival", "first byte", "end and the next one", "tick, µs"]
    lines = [
        [str(cell.replicas), f"{cell.queued:,}", str(cell.models), str(cell.heads)]
        + [f"{us:.0f}" for us in (cell.median_us, cell.p99_us, cell.submit_us, cell.first_byte_us, cell.finish_us)]
        + ["–" if cell.tick_us is None else f"{cell.tick_us:.0f}"]  # noqa: RUF001
        for cell in cells
    ]
    grown = [
        [one.what, f"{one.times:.2f}", f"{one.allowed:.2f}", "met" if one.is_met else "**missed**"]
        for one in growths(cells)
    ]
    parts = [markdown(titles, lines), "## Growth", GROWTH, markdown(["from → to", "times", "allowed", ""], grown)]
    if (cell := judged(cells)) is not None:
        word = "met" if cell.median_us <= LIMIT_US else "**missed**"
        where = f"{AT_REPLICAS} replicas and {AT_QUEUED:,} queued requests"
        parts.append(
            f"With {where}: {cell.median_us:.0f} µs ({cell.models} models); wanted: ≤ {LIMIT_US:.0f} µs: {word}."
        )
    return "\n\n".join(parts)


def save(cells: Sequence[Cell], path: Path) -> None:
    path.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")


def saved(path: Path) -> list[Cell]:
    """What was measured last; empty where nothing was. An OperatorError where the file says something else."""
    if not path.exists():
        return []
    try:
        return [Cell(**cell) for cell in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise OperatorError(f"{path} is not what python -m bench.policies.decide writes: {error}") from error


GROWTH = (
    "From the smallest to the largest of one size, the others as they are; of all such pairs the one that grew most. "
    "Allowed is what replicas + lanes that wait grow by; how many wait in a lane must not matter."
)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.policies.decide", description=__doc__)
    add = parser.add_argument
    add("--replicas", type=_numbers, default=[1, 4, 16, 64], metavar="N,…", help="(1,4,16,64)")
    add("--queued", type=_numbers, default=[0, 100, 1000, 10_000], metavar="N,…", help="(0,100,1000,10000)")
    add("--models", type=_numbers, default=[1, 6, 24], metavar="N,…", help="(1,6,24)")
    add("--rounds", type=int, default=500, metavar="N", help="requests timed for each size (500)")
    add("--policy", default="weighted-least-load", metavar="NAME", help="(weighted-least-load)")
    add("--out", type=Path, metavar="DIR", help=f"write decide.md and {FILE} there; the matrix quotes the latter")
    return parser.parse_args(argv)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    sizes = list(product(options.replicas, options.queued, options.models))
    cells = []
    for replicas, queued, models in sizes:
        cells.append(measure(replicas, queued, models, options.rounds, options.policy))
        print(f"{len(cells)}/{len(sizes)} {cells[-1].median_us:.0f} µs", file=sys.stderr)
    command = shlex.join(["python", "-m", "bench.policies.decide", *argv])
    facts = [f"- {name}: {fact}" for name, fact in machine.describe().items()]
    head = ["# What a decision costs", f"`{command}`, {time.strftime('%Y-%m-%d')}; {ABOUT}", "\n".join(facts)]
    text = "\n\n".join([*head, report(cells)]) + "\n"
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "decide.md").write_text(text)
        save(cells, options.out / FILE)
    return 0


ABOUT = (
    "the gateway's own scheduler, all slots in use, costs learned. A decision is all that it does for one request: its "
    "arrival, its first byte, and its end with its figures, which lets the next one go. CPU time; medians are of the "
    "calmest fifth of the rounds, p99 is of all. Garbage is collected between the sizes only. A tick is due four times "
    "a second, whatever the requests."
)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
