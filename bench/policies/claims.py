"""What the scheduler must show in the matrix: each bar beside what was reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.policies import decide, live_result, matrix
from bench.policies.live_result import Live
from bench.policies.report import ORACLE, markdown, standing
from corral.laboratory.campaign import Result
from corral.laboratory.contender import OURS
from corral.laboratory.spread import paired_ratio

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

    def figures(self, title: str, most: float, place: Place, above: str, below: str) -> Bar:
        """One figure ÷ another of the same runs."""
        found = paired_ratio(self.by_seed(*place, above), self.by_seed(*place, below))
        wanted = f"≤ {most:g} ×"  # noqa: RUF001
        return Bar(title, wanted, str(found or "–"), None if found is None else found.median <= most)  # noqa: RUF001

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
        names = [name for name in names if self.by_seed(scenario, name, figure)]
        return pick(names, key=lambda name: median(self.by_seed(scenario, name, figure).values()), default="")


def bars(results: Sequence[Result], ours: str, findings: Path | None = None) -> list[Bar]:
    """``findings``: the folder where the measurements of decisions and of live runs are."""
    judge = Judge(results, ours)
    return [
        *_unequal(judge),
        *_models(judge),
        *_one_ollama(judge),
        *_prefixes(judge),
        *_tenants(judge),
        _gap_closed(judge),
        _losses(judge),
        *_decisions([] if findings is None else decide.saved(findings / decide.FILE)),
        *_live(None if findings is None else live_result.saved(findings / live_result.FILE)),
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
    """Loads that take 6 to 15 s, and the same with models in the page cache."""
    return [
        *_six(judge, matrix.SIX_COLD, matrix.SIX_COLD_BUSY, "2. six models"),
        *_six(judge, matrix.SIX_MODELS, matrix.SIX_BUSY, "2. six models, page cache"),
    ]


def _six(judge: Judge, calm: str, busy: str, title: str) -> list[Bar]:
    rival, ours = (calm, "least-conn-loaded"), (calm, judge.ours)
    return [
        judge.ratio(f"{title}, mean TTFT, least-conn-loaded ÷ ours", 8, rival, ours, "ttft_mean"),
        judge.ratio(f"{title}, loads, least-conn-loaded ÷ ours", 5, rival, ours, "loads"),
        judge.limit(f"{title}, load 0.7, mean TTFT of ours, s", 10, busy, judge.ours, "ttft_mean"),
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
    return [
        judge.ratio(f"4. prefix hits, ours ÷ {best}", 0.9, ours, (place, best), "prefix_hit_ratio"),
        judge.ratio("4. p99 TTFT, ours ÷ least-conn", 1.0, ours, (place, "least-conn"), "ttft_p99", most=True),
    ]


def _tenants(judge: Judge) -> list[Bar]:
    """The light tenants' requests of the flood are the same ones, at the same times, in the run without it."""
    flooded, alone = (matrix.FLOODED, judge.ours), (matrix.NOT_FLOODED, judge.ours)
    title = "4. a flooder: light tenants' p99 slowdown while it floods ÷ without it"
    return [
        judge.ratio(title, 1.3, flooded, alone, "flooded_light_slowdown_p99", most=True),
        judge.ratio("4. the same, of all others all the time", 1.3, flooded, alone, "others_slowdown_p99", most=True),
        judge.figures("4. VTC gap ÷ (quantum + 2 · max cost · slots)", 1, flooded, "vtc_gap_s", "vtc_bound_s"),
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


def _decisions(cells: Sequence[decide.Cell]) -> list[Bar]:
    where = f"{decide.AT_REPLICAS} replicas and {decide.AT_QUEUED:,} queued"
    title, wanted = f"6. a decision with {where}, median, µs", f"≤ {decide.LIMIT_US:g}"
    grown = "6. its growth ÷ that of replicas + heads of queues"
    cell = decide.judged(cells)
    if cell is None:
        return [Bar(title, wanted, "–", None), Bar(grown, "≤ 1", "–", None)]  # noqa: RUF001
    worst = max((one.times / one.allowed for one in decide.growths(cells)), default=0.0)
    return [
        Bar(title, wanted, f"{cell.median_us:.0f} (p99 {cell.p99_us:.0f})", cell.median_us <= decide.LIMIT_US),
        Bar(grown, f"≤ 1 (± {decide.NOISE - 1:.0%})", f"{worst:.2f}", worst <= decide.NOISE),
    ]


def _live(live: Live | None) -> list[Bar]:
    titles = ("7. live, order by mean TTFT", "7. live, ratios to ours: the farthest from the laboratory's")
    wanted = ("the laboratory's", f"≤ {live_result.WITHIN:.0%}")
    if live is None:
        return [Bar(title, want, "–", None) for title, want in zip(titles, wanted, strict=True)]  # noqa: RUF001
    order = " < ".join(sorted(live.live_s, key=live.live_s.__getitem__))
    return [
        Bar(titles[0], wanted[0], order, live.is_same_order),
        Bar(titles[1], wanted[1], f"{live.farthest:.0%}", live.farthest <= live_result.WITHIN),
    ]


def text(results: Sequence[Result], ours: str, findings: Path | None = None) -> str:
    words = {True: "met", False: "**missed**", None: "not run"}
    lines = [[bar.title, bar.wanted, bar.reached, words[bar.is_met]] for bar in bars(results, ours, findings)]
    return markdown(["what must be shown", "wanted", "reached", ""], lines)
