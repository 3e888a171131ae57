"""The figures as a table for people, as Markdown to paste, or as JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from corral.gateway.cli.bench.client import Question
from corral.gateway.cli.bench.figures import FairnessFigures, LevelFigures, Spread
from corral.gateway.cli.bench.machine import EMULATED
from corral.gateway.cli.bench.rounds import ROUNDS
from corral.gateway.cli.messages import visible

SCHEMA: Final = 1
_PIPE_WIDTH: Final = 200
_HEAD: Final = (
    "address",
    "at a time",
    "first token, s: p50 / p95",
    "end, s: p50 / p95",
    "tok/s of one",
    "tok/s in all",
    "answered / refused / errors",
)
_FAIR_HEAD: Final = ("address", "first token alone, s: p50 / p95", "in the flood, s: p50 / p95", "times", "failed")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is told."""

    command: str
    when: str
    machine: dict[str, str]
    targets: Sequence[dict[str, Any]]
    """Each with name, URL, version, and how long its load and warm-up took."""
    question: Question
    levels: Sequence[LevelFigures]
    fairness: Sequence[FairnessFigures]


def show(report: Report) -> None:
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, markup=False)
    for line in head_lines(report):
        console.print(Text(line))
    console.print(_table(_HEAD, map(_cells, report.levels)))
    for line in notes(report):
        console.print(Text(line))
    if report.fairness:
        console.print(Text(f"\n{_fair_words(report)}"))
        console.print(_table(_FAIR_HEAD, map(_fair_cells, report.fairness)))


def markdown(report: Report) -> str:
    parts = [
        f"`{report.command}`, {report.when}",
        "\n".join(f"- {line}" for line in head_lines(report)),
        _markdown_table(_HEAD, map(_cells, report.levels)),
        "\n".join(f"- {line}" for line in notes(report)),
    ]
    if report.fairness:
        parts += [_fair_words(report), _markdown_table(_FAIR_HEAD, map(_fair_cells, report.fairness))]
    return "\n\n".join(part for part in parts if part)


def head_lines(report: Report) -> list[str]:
    asked = report.question
    lines = [
        f"{one['name']}: {one['url']}, version {visible(one['version'])}{_emulated(one)}; model loaded in "
        f"{one['load_s']:.1f} s, warmed up for {one['warm_up_s']:.1f} s"
        for one in report.targets
    ]
    lines += [f"{name}: {visible(fact)}" for name, fact in report.machine.items()]
    return [
        *lines,
        f"model {visible(asked.model)}, about {asked.prompt_tokens} tokens in, at most {asked.output_tokens} out; each "
        f"answer whole; {ROUNDS} rounds in turns, medians",
    ]


def _emulated(one: dict[str, Any]) -> str:
    return f" ({EMULATED})" if one["emulated"] else ""


def notes(report: Report) -> list[str]:
    """What the table has no room for."""
    lines = []
    for level in report.levels:
        at = f"{level.target} at {level.concurrency}"
        if level.errors:
            whys = ", ".join(f"{count} × {visible(why)}" for why, count in level.errors.items())  # noqa: RUF001
            lines.append(f"{at}: errors: {whys}")
        if len(level.replicas) > 1:
            shares = ", ".join(f"{visible(name)} {share * 100:.0f} %" for name, share in level.replicas.items())
            lines.append(f"{at}: answered by {shares}")
    return [*lines, *beside(report)]


def beside(report: Report) -> list[str]:
    """The first address beside the second, at each concurrency where both answered."""
    names = [one["name"] for one in report.targets]
    if len(names) < 2:
        return []
    by = {(level.target, level.concurrency): level for level in report.levels}
    lines = []
    for level in report.levels:
        other = by.get((names[1], level.concurrency))
        if level.target != names[0] or other is None or not other.tok_s or level.ttft is None or other.ttft is None:
            continue
        lines.append(
            f"{names[0]} beside {names[1]} at {level.concurrency}: {level.tok_s / other.tok_s:.2f} times the tokens/s; "
            f"first token after {_figure(level.ttft.p50_s)} s instead of {_figure(other.ttft.p50_s)} s"
        )
    return lines


def _fair_words(report: Report) -> str:
    flood = max(one.flood_streams for one in report.fairness)
    return f"Fairness: one who asks now and then, alone and beside another tenant with {flood} streams."


def _cells(level: LevelFigures) -> tuple[str, ...]:
    return (
        level.target,
        str(level.concurrency),
        _points(level.ttft),
        _points(level.e2e),
        "-" if level.stream_tok_s is None else f"{level.stream_tok_s:.1f}",
        f"{level.tok_s:.1f}",
        f"{level.ok} / {level.refused} / {sum(level.errors.values())}",
    )


def _fair_cells(one: FairnessFigures) -> tuple[str, ...]:
    times = "-" if one.ratio is None else f"{one.ratio:.1f}"
    return (one.target, _points(one.alone), _points(one.flooded), times, str(one.failed))


def _points(spread: Spread | None) -> str:
    return "-" if spread is None else f"{_figure(spread.p50_s)} / {_figure(spread.p95_s)}"


def _figure(value_s: float) -> str:
    """With as many digits as help."""
    return f"{value_s:.3f}" if value_s < 1 else f"{value_s:.2f}" if value_s < 10 else f"{value_s:.0f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Heads are wrapped, so that it fits an ordinary terminal; figures are not."""
    table, cells = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold"), list(rows)
    for number, title in enumerate(head):
        width = max(len(text) for text in (*title.split(), *(row[number] for row in cells)))
        table.add_column(title, justify="right" if number else "left", width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (head, rule, *rows))


def page(report: Report) -> dict[str, Any]:
    """For programs. Seconds, tokens a second, and shares of 1."""
    return {
        "schema": SCHEMA,
        "command": report.command,
        "when": report.when,
        "machine": report.machine,
        "targets": list(report.targets),
        "question": asdict(report.question),
        "levels": [asdict(level) for level in report.levels],
        "fairness": [{**asdict(one), "ratio": one.ratio} for one in report.fairness],
    }
