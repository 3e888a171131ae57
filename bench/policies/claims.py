"""What the scheduler must show in the matrix: each bar beside what was reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.policies import matrix
from bench.policies.campaign import OURS, Result
from bench.policies.report import ORACLE, markdown, standing
from bench.policies.spread import paired_ratio

AFFINITY = ("bounded-hash", "lmetric")
"""Rivals that follow prefixes."""
Place = tuple[str, str]
"""A scenario and a contender in it."""


@dataclass(frozen=True, slots=True)
class Bar:
    title: str
    wanted: str
    reached: str
    is_met: bool | None
    """None: the runs it needs are missing."""


class Judge:
    """Looks figures up by scenario and contender."""

    def __init__(self, results: Sequence[Result], ours: str) -> None:
        self.results = {result.scenario.name: result for result in results}
        self.ours = ours

    def by_seed(self, scenario: str, who: str, figure: str) -> Mapping[int, float]:
        found = self.results.get(scenario)
        return {} if found is None else found.by_seed(who, figure)

    def ratio(self, title: str, limit: float, above: Place, below: Place, figure: str, *, most: bool = False) -> Bar:
        """``above`` / ``below`` is ``limit`` or more (``most``: or less)."""
        found = paired_ratio(self.by_seed(*above, figure), self.by_seed(*below, figure))
        wanted = f"{'≤' if most else '≥'} {limit:g} ×"  # noqa: RUF001
        if found is None:
            return Bar(title, wanted, "–", None)  # noqa: RUF001
        return Bar(title, wanted, str(found), found.median <= limit if most else found.median >= limit)

    def limit(self, title: str, most: float, scenario: str, who: str, figure: str) -> Bar:
        values = self.by_seed(scenario, who, figure).values()
        if not values:
            return Bar(title, f"≤ {most:g}", "–", None)  # noqa: RUF001
        return Bar(title, f"≤ {most:g}", f"{median(values):.2f}", median(values) <= most)

    def best(self, scenario: str, figure: str, pick: Callable[..., str], among: Sequence[str] | None = None) -> str:
        """The best rival there."""
        found = self.results.get(scenario)
        names = [] if found is None else [name for name in found.figures if not name.startswith(OURS)]
        names = [name for name in names if name != ORACLE and (among is None or name in among)]
        return pick(names, key=lambda name: median(self.by_seed(scenario, name, figure).values()), default="")


def bars(results: Sequence[Result], ours: str) -> list[Bar]:
    judge = Judge(results, ours)
    return [
        *_unequal(judge),
        *_models(judge),
        *_one_ollama(judge),
        *_prefixes(judge),
        _gap_closed(judge),
        _losses(judge),
    ]


def _unequal(judge: Judge) -> list[Bar]:
    place, ours = matrix.UNEQUAL, (matrix.UNEQUAL, judge.ours)
    best = judge.best(place, "ttft_p99", min)
    return [
        judge.ratio("1. mean TTFT, weighted-least-conn ÷ ours", 1.5, (place, "weighted-least-conn"), ours, "ttft_mean"),
        judge.ratio("1. mean TTFT, haproxy-maxconn ÷ ours", 1.3, (place, "haproxy-maxconn"), ours, "ttft_mean"),
        judge.ratio(f"1. p99 TTFT, ours ÷ best ({best})", 1.0, ours, (place, best), "ttft_p99", most=True),
    ]


def _models(judge: Judge) -> list[Bar]:
    rival, ours = (matrix.SIX_MODELS, "least-conn-loaded"), (matrix.SIX_MODELS, judge.ours)
    return [
        judge.ratio("2. six models, mean TTFT, least-conn-loaded ÷ ours", 8, rival, ours, "ttft_mean"),
        judge.ratio("2. six models, loads, least-conn-loaded ÷ ours", 5, rival, ours, "loads"),
        judge.limit("2. six models, load 0.7, mean TTFT of ours, s", 10, matrix.SIX_BUSY, judge.ours, "ttft_mean"),
    ]


def _one_ollama(judge: Judge) -> list[Bar]:
    one, ours = (matrix.ONE, judge.best(matrix.ONE, "served_rps", max)), (matrix.EIGHT, judge.ours)
    return [
        judge.ratio("3. served/s, eight ÷ one Ollama", 7.5, ours, one, "served_rps"),
        judge.limit("3. GPUs' busy shares, standard deviation, points", 3, *ours, "busy_std_pct"),
    ]


def _prefixes(judge: Judge) -> list[Bar]:
    place, ours = matrix.MOONCAKE, (matrix.MOONCAKE, judge.ours)
    best = judge.best(place, "prefix_hit_ratio", max, AFFINITY)
    with_it, alone = (matrix.FLOODED, judge.ours), (matrix.NOT_FLOODED, judge.ours)
    return [
        judge.ratio(f"4. prefix hits, ours ÷ {best}", 0.9, ours, (place, best), "prefix_hit_ratio"),
        judge.ratio("4. p99 TTFT, ours ÷ least-conn", 1.0, ours, (place, "least-conn"), "ttft_p99", most=True),
        judge.ratio(
            "4. a flooder: the others' p99 slowdown ÷ alone", 1.3, with_it, alone, "others_slowdown_p99", most=True
        ),
    ]


def _gap_closed(judge: Judge) -> Bar:
    """Of the way from least-connections to the oracle."""
    title, wanted = "5. of the gap from least-conn to the oracle closed, mean TTFT", "≥ 70 %"
    theirs, ours, best = (judge.by_seed(matrix.UNEQUAL, who, "ttft_mean") for who in ("least-conn", judge.ours, ORACLE))
    seeds = theirs.keys() & ours.keys() & best.keys()
    if not seeds or any(theirs[seed] == best[seed] for seed in seeds):
        return Bar(title, wanted, "–", None)  # noqa: RUF001
    closed = median((theirs[seed] - ours[seed]) / (theirs[seed] - best[seed]) for seed in seeds)
    return Bar(title, wanted, f"{closed * 100:.0f} %", closed >= 0.7)


def _losses(judge: Judge) -> Bar:
    """By mean TTFT and by goodput, wherever at most 0.8 of the capacity is asked for."""
    compared = losses = 0
    for result in judge.results.values():
        if result.scenario.load > 0.8:
            continue
        for figure, more in (("ttft_mean", False), ("good_ratio", True)):
            found = standing(result, judge.ours, figure, more_is_better=more)
            compared += found is not None
            losses += found is not None and found.is_loss
    return Bar("5. losses of more than 5 % at loads up to 0.8", "0", f"{losses} of {compared}", not losses)


def text(results: Sequence[Result], ours: str) -> str:
    words = {True: "met", False: "**missed**", None: "not run"}
    lines = [[bar.title, bar.wanted, bar.reached, words[bar.is_met]] for bar in bars(results, ours)]
    return markdown(["what must be shown", "wanted", "reached", ""], lines)
