"""The effect as a table for people, or as JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from corral.gateway.cli.messages import visible
from corral.laboratory.contender import Contender
from corral.laboratory.sim.asked import Pace, Play, Trace, reality
from corral.laboratory.sim.box import Seats
from corral.laboratory.sim.effect import Effect
from corral.laboratory.sim.words import POLICY_FAILED, changes, seconds
from corral.laboratory.types import Box

SCHEMA = 1
_PIPE_WIDTH = 200


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is told."""

    trace: Trace
    box: Box
    seats: Seats
    pace: Pace
    plays: Sequence[Play]
    """Of each seed."""
    warm_up_s: float
    whos: Sequence[Contender]
    effects: Sequence[Effect]

    @property
    def play(self) -> Play:
        return self.plays[0]


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.1f} %"


def _whole(count: float) -> str:
    return f"{count:.0f}"


Shape = Callable[[float], str]
_ROWS: tuple[tuple[str, str, Shape], ...] = (
    ("first token: mean", "ttft_mean", seconds),
    ("  p50", "ttft_p50", seconds),
    ("  p95", "ttft_p95", seconds),
    ("  p99", "ttft_p99", seconds),
    ("end: mean", "e2e_mean", seconds),
    ("  p50", "e2e_p50", seconds),
    ("  p95", "e2e_p95", seconds),
    ("  p99", "e2e_p99", seconds),
    ("wait in Corral: mean", "wait_mean", seconds),
    ("  p95", "wait_p95", seconds),
    ("within the SLO", "good_slowest_ratio", _percent),
    ("output tokens/s", "output_tok_s", _whole),
    ("refused", "refused", _whole),
    ("failed", "failed", _whole),
    ("models loaded", "loads", _whole),
    ("models unloaded", "unloads", _whole),
)
SLO = (
    "within the SLO: the first token within 2 s, or twice what it takes alone and 1 s, and each token in twice the "
    "time that it takes alone on the slowest GPU with the memory for the model"
)


def show(report: Report) -> None:
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, markup=False)
    for text in lines_before(report):
        console.print(Text(text))
    console.print(_table(report))
    for text in changes(report.whos, report.effects):
        console.print(Text(visible(text)))
    console.print()
    for text in lines_after(report):
        console.print(Text(text, style="dim"))


def lines_before(report: Report) -> list[str]:
    play, trace = report.play, report.trace
    load = "" if play.load is None else f", {play.load:.2f} of what the box can do"
    seeds = "" if len(report.plays) == 1 else f"; medians of {len(report.plays)} seeds"
    asked = f"{len(play.arrivals)} requests in {play.span_s:.0f} s{load}{seeds}"
    lines = [f"{visible(trace.name)} ({trace.kind}): {asked}", _pace_words(report)]
    lines += [
        f"  {visible(one.id)}: {visible(report.seats.gpus[one.id])}; {one.slots} slots" for one in report.box.replicas
    ]
    models = ", ".join(f"{visible(model.name)} ({model.file_bytes / 1e9:.1f} GB)" for model in report.box.models)
    return [*lines, f"  models: {models}", *(f"  {visible(text)}" for text in report.seats.said), *_overload(play)]


def _pace_words(report: Report) -> str:
    pace, is_log = report.pace, report.trace.log is not None
    models = "models, tenants and classes as in the log" if is_log else "models by popularity, as --models lists them"
    if pace.load is not None or (pace.speed is None and not is_log):
        return f"  times are scaled to the load; {models}"
    if pace.speed in (None, 1.0):
        return f"  times are as they were; {models}"
    return f"  times are {pace.speed:g} times as fast as they were; {models}"


def _overload(play: Play) -> list[str]:
    if play.load is None or play.load <= 1:
        return []
    return ["  That is more than the box can do for long: requests wait longer and longer, whatever the policy."]


def _table(report: Report) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for who in report.whos:
        table.add_column(Text(visible(who.name)), justify="right", overflow="fold")
    for title, figure, shape in _ROWS:
        table.add_row(title, *(shape(effect.figures[figure]) for effect in report.effects))
    for number, one in enumerate(report.box.replicas):
        cells = (f"{effect.shares[one.id] * 100:.0f} %, {effect.busy[one.id] * 100:.0f} %" for effect in report.effects)
        table.add_row(Text(f"{visible(one.id)}{'' if number else ': share, busy'}"), *cells)
    return table


def lines_after(report: Report) -> list[str]:
    lines = [f"All of it is simulated: emulated GPUs, real scheduler, virtual time. {SLO[0].upper()}{SLO[1:]}."]
    if report.warm_up_s:
        lines.append(f"Times are without the first {report.warm_up_s:.0f} s, in which models are loaded and learned.")
    if any(effect.figures["refused"] + effect.figures["failed"] for effect in report.effects):
        lines.append("A request that was refused or failed counts as 120 s, or what it waited if that is more.")
    if report.play.cut_s:
        lines.append(f"Pauses were shortened by {report.play.cut_s:.0f} s in all: nothing happens in them.")
    lines += [
        _failure(who, effect) for who, effect in zip(report.whos, report.effects, strict=True) if effect.policy_error
    ]
    return [*lines, *_of_the_log(report)]


def _failure(who: Contender, effect: Effect) -> str:
    share = effect.reasons.get(POLICY_FAILED, 0.0)
    drew = f" In {_percent(share)} of its decisions Corral drew a replica." if share else ""
    return f"{visible(who.name)} failed: {visible(effect.policy_error or '')}.{drew}"


def _of_the_log(report: Report) -> list[str]:
    log = report.trace.log
    if log is None:
        return []
    lines = []
    if log.skipped:
        lines.append(f"Left out of the log: {', '.join(f'{count} {why}' for why, count in log.skipped.items())}.")
    was = reality(log, report.warm_up_s)
    first = f"first byte {seconds(was['ttft_mean'])} on average, " if "ttft_mean" in was else ""
    if "e2e_mean" in was:
        lines.append(f"In the log itself, without as much of its beginning: {first}end {seconds(was['e2e_mean'])}.")
    lines.append("A log does not tell which prompts begin alike, so here none do.")
    return lines


def page(report: Report) -> dict[str, Any]:
    """For programs. Seconds, and shares of 1."""
    trace, play = report.trace, report.play
    return {
        "schema": SCHEMA,
        "trace": {
            "name": trace.name,
            "kind": trace.kind,
            "requests": len(play.arrivals),
            "seconds": play.span_s,
            "load": play.load,
            "cut_s": play.cut_s,
            "skipped": {} if trace.log is None else trace.log.skipped,
            "was": None if trace.log is None else reality(trace.log, report.warm_up_s),
        },
        "box": {
            "name": report.box.name,
            "replicas": [
                {"id": one.id, "gpu": report.seats.gpus[one.id], "slots": one.slots, "weight": one.weight}
                for one in report.box.replicas
            ],
            "models": [{"name": model.name, "bytes": model.file_bytes} for model in report.box.models],
            "assumed": report.seats.said,
        },
        "seeds": len(report.plays),
        "warm_up_s": report.warm_up_s,
        "policies": [_policy(who, effect) for who, effect in zip(report.whos, report.effects, strict=True)],
        "changes": changes(report.whos, report.effects),
    }


def _policy(who: Contender, effect: Effect) -> dict[str, Any]:
    replicas = {key: {"share": effect.shares[key], "busy": effect.busy[key]} for key in effect.shares}
    return {
        "name": who.name,
        **effect.figures,
        "replicas": replicas,
        "reasons": effect.reasons,
        "error": effect.policy_error,
    }
