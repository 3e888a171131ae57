"""The laboratory's report: medians over seeds, paired ratios with their intervals, the matrix with its losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from corral.laboratory.campaign import Result
from corral.laboratory.contender import OURS
from corral.laboratory.spread import Ratio, paired_ratio

ORACLE = "oracle"
WORSE_RATIO = 1.05
"""From here on the matrix calls it a loss."""


@dataclass(frozen=True, slots=True)
class Column:
    figure: str
    title: str
    digits: int = 2
    scale: float = 1.0


TIMES = (
    Column("ttft_mean", "TTFT mean, s"),
    Column("ttft_p50", "p50"),
    Column("ttft_p95", "p95"),
    Column("ttft_p99", "p99"),
    Column("cold_ttft_mean", "in the warm-up"),
    Column("e2e_mean", "end to end mean, s"),
    Column("e2e_p50", "p50"),
    Column("e2e_p95", "p95"),
    Column("e2e_p99", "p99"),
    Column("norm_latency_s", "per token, s", 3),
    Column("slowdown_p99", "slowdown p99", 1),
)
WORTH = (
    Column("good_ratio", "within SLO, %", 1, 100),
    Column("good_slowest_ratio", "of the slowest GPU, %", 1, 100),
    Column("good_rps", "goodput/s"),
    Column("failed", "failed", 0),
    Column("makespan_s", "makespan, s", 0),
    Column("served_rps", "served/s"),
    Column("loads", "loads", 0),
    Column("busy_std_pct", "busy std, points", 1),
    Column("prefix_hit_ratio", "prefix hits, %", 1, 100),
    Column("jain", "Jain", 3),
    Column("light_slowdown_p99", "light p99 slowdown", 1),
    Column("flooded_light_slowdown_p99", "in the flood", 1),
    Column("others_slowdown_p99", "all but the flooder", 1),
    Column("vtc_gap_s", "VTC gap, GPU-s", 0),
    Column("vtc_bound_s", "its bound", 0),
    Column("ttft_mape", "TTFT predicted, mean error, %", 0, 100),
    Column("ttft_mdape", "median", 0, 100),
    Column("e2e_mape", "end predicted, mean error, %", 0, 100),
    Column("e2e_mdape", "median", 0, 100),
    Column("decision_us", "decision, µs", 0),
)
COLUMNS = (*TIMES, *WORTH)
COMPARED = ("ttft_mean", "ttft_p99", "e2e_mean", "e2e_p99", "good_ratio", "loads")
"""Ratios to ours are given of these."""


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def scenario_text(result: Result) -> str:
    """What was played, in one line: box, trace, factor."""
    scenario = result.scenario
    box, work = scenario.box, scenario.work
    said = [
        f"box {box.name}, models {box.models}, {box.slots} slots, {box.max_loaded} resident",
        f"{work.requests} requests of {work.name}",
        f"load {scenario.load:g}" + (f" of {scenario.scaled_to}" if scenario.scaled_to else ""),
    ]
    said += [f"incident: {box.incident}"] if box.incident != "none" else []
    said += ["weights not told"] if box.equal_weights else []
    said += ["with a flooder"] if work.flooder and not work.only_light else []
    said += ["without the flooder"] if work.only_light else []
    if result.factors:
        said.append(f"time × {_range(result.factors.values())}")  # noqa: RUF001
        said.append(f"capacity {_range(result.capacity_rps.values())} requests/s")
    return "; ".join(said)


def _range(values: Iterable[float]) -> str:
    ordered = sorted(values)
    low, high = f"{ordered[0]:.3g}", f"{ordered[-1]:.3g}"
    return low if low == high else f"{low}–{high}"  # noqa: RUF001


def tables(result: Result, ours: str) -> str:
    """All tables of one scenario; ``ours`` is the contender the others are compared with."""
    parts = [
        f"### {result.scenario.name}",
        scenario_text(result),
        _figures(result, TIMES, bound=True),
        _figures(result, WORTH, bound=False),
    ]
    if len(result.figures) > 1 and ours in result.figures:
        parts.append(f"Each contender's figure ÷ that of {ours}: median of the paired ratios, 95 % bootstrap interval.")
        parts.append(_ratios(result, ours))
    parts += [f"- FAILED {failure}" for failure in result.failures]
    return "\n\n".join(parts)


def _figures(result: Result, columns: Sequence[Column], *, bound: bool) -> str:
    lines = [
        [name, *(_cell(result.by_seed(name, column.figure).values(), column) for column in columns)]
        for name in result.figures
    ]
    if bound and result.bounds:
        least = {
            "ttft_mean": median(one.ttft_mean_s for one in result.bounds.values()),
            "e2e_mean": median(one.e2e_mean_s for one in result.bounds.values()),
        }
        cells = [f"{least[c.figure]:.{c.digits}f}" if c.figure in least else "" for c in columns]
        lines.append(["nobody can beat", *cells])
    return markdown(["", *(column.title for column in columns)], lines)


def _cell(values: Iterable[float], column: Column) -> str:
    found = list(values)
    return f"{median(found) * column.scale:,.{column.digits}f}" if found else "–"  # noqa: RUF001


def _ratios(result: Result, ours: str) -> str:
    titles = [column.title for figure in COMPARED for column in COLUMNS if column.figure == figure]
    titles[:4] = ["TTFT mean", "TTFT p99", "end to end mean", "end to end p99"]
    lines = []
    for name in result.figures:
        if name == ours:
            continue
        found = [ratio(result, name, ours, figure) for figure in COMPARED]
        lines.append([name, *("–" if one is None else str(one) for one in found)])  # noqa: RUF001
    return markdown(["÷ " + ours, *titles], lines)


def ratio(result: Result, above: str, below: str, figure: str) -> Ratio | None:
    return paired_ratio(result.by_seed(above, figure), result.by_seed(below, figure))


# -- the matrix -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """Ours beside the best rival of one scenario by one figure."""

    ours: float
    best: float
    best_name: str
    times_better: Ratio | None
    """Above 1: ours is better."""

    @property
    def is_loss(self) -> bool:
        return self.times_better is not None and self.times_better.median < 1 / WORSE_RATIO


def standing(result: Result, ours: str, figure: str, *, more_is_better: bool) -> Standing | None:
    """None where ours or every rival is missing."""
    found = {name: result.by_seed(name, figure).values() for name in result.figures}
    medians = {name: median(values) for name, values in found.items() if values}
    # the oracle knows what nobody can know: it is no rival
    rivals = {name: value for name, value in medians.items() if not name.startswith(OURS) and name != ORACLE}
    if ours not in medians or not rivals:
        return None
    pick: Callable[..., str] = max if more_is_better else min
    best = pick(rivals, key=lambda name: rivals[name])
    pair = (ours, best) if more_is_better else (best, ours)
    return Standing(medians[ours], rivals[best], best, ratio(result, *pair, figure))


def matrix_text(results: Sequence[Result], ours: str) -> str:
    """One line a scenario: ours against the best rival there, whichever that is, losses in bold."""
    lines, losses = [], 0
    for result in results:
        ttft = standing(result, ours, "ttft_mean", more_is_better=False)
        p99 = standing(result, ours, "ttft_p99", more_is_better=False)
        good = standing(result, ours, "good_ratio", more_is_better=True)
        losses += sum(one is not None and one.is_loss for one in (ttft, good))
        loads = [f"{median(found):.0f}" for found in [result.by_seed(ours, "loads").values()] if found]
        cells = [*_standing(ttft, 2, 1), *_standing(p99, 2, 1), *_standing(good, 1, 100)]
        lines.append([result.scenario.name, *cells, *(loads or ["–"])])  # noqa: RUF001
    columns = ["TTFT mean, s", "best rival", "times better", "p99, s", "best rival", "times better"]
    columns += ["within SLO, %", "best rival", "times better", "loads"]
    told = f"{losses} of {2 * len(results)} comparisons of mean TTFT and goodput are losses of more than 5 %."
    return markdown(["scenario", *columns], lines) + "\n\n" + told


def _standing(found: Standing | None, digits: int, scale: float) -> list[str]:
    if found is None:
        return ["–", "–", "–"]  # noqa: RUF001
    better = "–" if found.times_better is None else str(found.times_better)  # noqa: RUF001
    best = f"{found.best * scale:.{digits}f} {found.best_name}"
    return [f"{found.ours * scale:.{digits}f}", best, f"**{better}**" if found.is_loss else better]
