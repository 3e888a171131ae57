"""What a comparison came to: tables for a reader, and a file for the laboratory's list of what must be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import median

from bench import machine
from bench.live.compare import COMPARED, DRAWS, BySeed, Comparison
from bench.live.fronts import OUR_NAME
from bench.live.play import Usage
from bench.policies.live_result import WITHIN
from bench.policies.report import markdown, scenario_text
from corral.laboratory.campaign import Result
from corral.laboratory.measures import FAILED_S

TITLES = {
    "ttft_mean": "TTFT mean, s",
    "ttft_p99": "TTFT p99, s",
    "e2e_mean": "end to end mean, s",
    "e2e_p99": "end to end p99, s",
    "missed": "missed",
    "loads": "loads",
}
TIE_RATIO = 1.05
LATE_S = 0.1
"""Where requests are sent later than this (p99), the machine, not the contender, is measured."""


def text(comparison: Comparison, versions: Mapping[str, str], missing: list[str]) -> str:
    """The whole report."""
    seeds = max((len(figures) for figures in comparison.live.values()), default=0)
    head = [
        f"### {comparison.scenario.name}, live at {comparison.speed:g} × the speed",  # noqa: RUF001
        scenario_text(Result(comparison.scenario)),
        f"Medians of {seeds} paired seeds, live / laboratory, in seconds of the emulated machines. The laboratory's "
        f"are the medians of {DRAWS} runs of each seed with other throws of the contender's dice. Missed: refused, "
        f"failed, or later than {FAILED_S:g} s.",
    ]
    parts = [*head, _figures(comparison)] if comparison.live else head
    if OUR_NAME in comparison.live and len(comparison.live) > 1:
        parts += [_ratio_head(), _ratios(comparison), _verdicts(comparison)]
    parts += [_machine(comparison)] if comparison.usages else []
    notes = [f"- {name}: {fact}" for name, fact in {**machine.describe(), **versions}.items()]
    notes += [f"- {name} is not installed and left out (Debian: apt-get install {name})" for name in missing]
    notes += [f"- FAILED {failure}" for failure in comparison.failures] + _disturbed(comparison)
    return "\n\n".join([*parts, "\n".join(notes)]) + "\n"


def _figures(comparison: Comparison) -> str:
    names = comparison.contenders()
    lines = [[name, *(_pair(comparison, name, figure) for figure in TITLES)] for name in names]
    return markdown(["", *TITLES.values()], lines)


def _pair(comparison: Comparison, name: str, figure: str) -> str:
    digits = 0 if figure in ("missed", "loads") else 2
    live, lab = (comparison.medians(figures, figure)[name] for figures in (comparison.live, comparison.lab))
    return f"{live:.{digits}f} / {lab:.{digits}f}"


def _ratio_head() -> str:
    return (
        f"Each contender's figure ÷ that of {OUR_NAME}: medians of the paired ratios, 95 % bootstrap interval; "
        "live / laboratory, and how far the one is from the other."
    )


def _ratios(comparison: Comparison) -> str:
    rivals = [name for name in comparison.contenders() if name != OUR_NAME]
    lines = [[name, *(_ratio(comparison, name, figure) for figure in COMPARED)] for name in rivals]
    return markdown([f"÷ {OUR_NAME}", *(TITLES[figure].removesuffix(", s") for figure in COMPARED)], lines)


def _ratio(comparison: Comparison, name: str, figure: str) -> str:
    live, lab = comparison.ratio(comparison.live, name, figure), comparison.ratio(comparison.lab, name, figure)
    apart = comparison.apart(name, figure)
    if live is None or lab is None or apart is None:
        return "–"  # noqa: RUF001
    told = f"{apart * 100:+.0f} %"
    return f"{live} / {lab.median:.2f}: {told if abs(apart) <= WITHIN else f'**{told}**'}"


def _verdicts(comparison: Comparison) -> str:
    lines = []
    for figure in COMPARED:
        verdict = comparison.verdict(figure)
        orders = (" < ".join(sorted(times, key=times.__getitem__)) for times in (verdict.live_s, verdict.lab_s))
        is_same = "yes" if verdict.is_same_order else _near(comparison.reversed_ratio(figure))
        lines.append([TITLES[figure], *orders, is_same, _yes(comparison.is_within(figure))])
    columns = ["", "order live", "in the laboratory", "the same", f"ratios within {WITHIN:.0%}"]
    return markdown(columns, lines)


def _near(reversed_ratio: float) -> str:
    """Two that are nearly alike may change places by chance."""
    told = f"but for two that are {reversed_ratio - 1:.0%} apart"
    return told if reversed_ratio <= TIE_RATIO else f"**no**, {told}"


def _yes(is_so: bool | None) -> str:
    return {True: "yes", False: "**no**", None: "–"}[is_so]  # noqa: RUF001


def _machine(comparison: Comparison) -> str:
    lines = []
    for name, usages in comparison.usages.items():
        middle = _middle(usages)
        cores = [f"{value:.2f}" for value in (middle.emulators_cores, middle.front_cores, middle.client_cores)]
        lines.append([name, *cores, f"{middle.busy_ratio * 100:.0f}", f"{middle.late_p99_s:.3f}"])
    columns = ["cores used by", "emulators", "the contender", "client", "all cores busy, %", "sent late, p99, s"]
    return markdown(columns, lines)


def _middle(usages: list[Usage]) -> Usage:
    rows = [asdict(usage) for usage in usages]
    return Usage(**{key: median(row[key] for row in rows) for key in rows[0]})


def _disturbed(comparison: Comparison) -> list[str]:
    """Contenders share the machine with what is emulated: where it is full, they are slow for no fault of theirs."""
    return [
        f"- DISTURBED {name}: the machine was full; lower --speed, wait until nobody else uses it, or try --real-time"
        for name, usages in comparison.usages.items()
        if _middle(usages).late_p99_s > LATE_S
    ]


def as_json(comparison: Comparison, command: str, versions: Mapping[str, str]) -> dict[str, object]:
    """Its first three keys are what the laboratory reads; the others are for whoever wants to know more."""
    verdict = comparison.verdict("ttft_mean")
    return {
        "ours": verdict.ours,
        "live_s": verdict.live_s,
        "lab_s": verdict.lab_s,
        "command": command,
        "scenario": comparison.scenario.name,
        "speed": comparison.speed,
        "machine": machine.describe(),
        "versions": dict(versions),
        "live": _by_contender(comparison.live),
        "lab": _by_contender(comparison.lab),
        "usage": {name: [asdict(usage) for usage in usages] for name, usages in comparison.usages.items()},
        "verdicts": {
            figure: {
                "is_same_order": comparison.verdict(figure).is_same_order,
                "is_within": comparison.is_within(figure),
                "reversed_ratio": comparison.reversed_ratio(figure),
                "farthest": comparison.verdict(figure).farthest,
            }
            for figure in COMPARED
            if OUR_NAME in comparison.live
        },
        "failures": comparison.failures,
    }


def _by_contender(figures: Mapping[str, BySeed]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {str(seed): {figure: one[figure] for figure in TITLES} for seed, one in by_seed.items()}
        for name, by_seed in figures.items()
    }
