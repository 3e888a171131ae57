"""Plots of the laboratory's results, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from bench.policies.report import standing
from corral.laboratory.campaign import Result

_SHOWN = (("ttft_mean", "mean TTFT, s"), ("ttft_p99", "p99 TTFT, s"), ("good_ratio", "share within SLO"))


def draw(results: Sequence[Result], ours: str, folder: Path, name: str) -> list[Path] | None:
    """Writes one picture and says where; None without matplotlib."""
    if find_spec("matplotlib") is None:
        return None
    import_module("matplotlib").use("svg")
    pyplot = import_module("matplotlib.pyplot")
    figure = _matrix(pyplot, results, ours) if len(results) > 1 else _scenario(pyplot, results[0], ours)
    path = folder / f"{name}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return [path]


def _scenario(pyplot: Any, result: Result, ours: str) -> Any:
    """A bar a contender, with the least and greatest seed."""
    figure, axes = pyplot.subplots(1, len(_SHOWN), figsize=(13, 0.32 * len(result.figures) + 1.2), sharey=True)
    names = list(reversed(result.figures))
    for axis, (key, title) in zip(axes, _SHOWN, strict=True):
        values = [list(result.by_seed(name, key).values()) for name in names]
        middles = [median(found) for found in values]
        spans = [[m - min(v) for m, v in zip(middles, values, strict=True)]]
        spans.append([max(v) - m for m, v in zip(middles, values, strict=True)])
        colours = ["#c0392b" if name == ours else "#7f8c8d" for name in names]
        axis.barh(names, middles, xerr=spans, color=colours, height=0.7)
        axis.set_title(title, fontsize=10)
    figure.suptitle(result.scenario.name, fontsize=11)
    return figure


def _matrix(pyplot: Any, results: Sequence[Result], ours: str) -> Any:
    """How many times better than the best rival of each scenario, on a logarithmic axis; left of 1 are losses."""
    figure, axis = pyplot.subplots(figsize=(9, 0.3 * len(results) + 1.2))
    rows = []
    for result in reversed(results):
        found = standing(result, ours, "ttft_mean", more_is_better=False)
        if found is not None and found.times_better is not None:
            rows.append((f"{result.scenario.name} ({found.best_name})", found.times_better))
    for place, (_, better) in enumerate(rows):
        colour = "#c0392b" if better.median < 1 else "#27ae60"
        axis.plot([better.low, better.high], [place, place], color=colour)
        axis.plot([better.median], [place], "o", color=colour)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axis.set_title(f"mean TTFT: times better than the best rival, {ours}", fontsize=10)
    return figure
