"""Why the last requests went where they went: each decision with what its candidates looked like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from corral.gateway.cli.admin_client import ask
from corral.gateway.cli.messages import visible
from corral.gateway.cli.options import admin_option, debug_option, json_option


@click.command()
@click.option(
    "-n", "count", metavar="N", type=click.IntRange(1, 10_000), default=5, show_default=True, help="How many of them."
)
@admin_option
@json_option
@debug_option
def explain(count: int, admin: str, as_json: bool) -> int:
    """Show the last decisions of a running gateway, the latest last, and what spoke for each replica.

    Times are seconds, as they were predicted for that request; COST is what was compared, the lowest wins. Where too
    little is known to predict, the table shows what was compared instead.

    \b
    Examples:
      corral explain
      corral explain -n 1 --json | jq .decisions[0].candidates
    """
    page = ask(admin, "GET", f"/explain?n={count}")
    click.echo(json.dumps(page, indent=2) if as_json else render(page["decisions"]))
    return 0


def render(decisions: Sequence[dict[str, Any]]) -> str:
    """A heading and a table for each."""
    if not decisions:
        return "no decision yet: no request has come"
    return "\n\n".join("\n".join(_lines(decision)) for decision in decisions)


def _lines(decision: dict[str, Any]) -> list[str]:
    model = decision["model"]
    what = visible(model) if model else f"a request without a model ({decision['kind']})"
    heading = (
        f"{what}, {decision['age_s']:.1f} s ago, waited {decision['waited_s']:.2f} s"
        f" -> {decision['replica']}: {decision['reason']}"
    )
    candidates = decision["candidates"]
    predicted = any(candidate["predicted"] is not None for candidate in candidates)
    head, row = (_PREDICTED, _predicted_row) if predicted else (_MEASURES, _measures_row)
    rows = [head, *(row(candidate) for candidate in candidates)]
    chosen = [candidate["id"] == decision["replica"] for candidate in candidates]
    return [click.style(heading, bold=True), *_table(rows, [False, *chosen])]


_PREDICTED = (
    *("REPLICA", "WAIT", "PREFILL", "SAVED", "DECODE", "OTHERS", "SLOWDOWN", "COST"),
    *("IN FLIGHT", "IN MEMORY"),
)
_MEASURES = ("REPLICA", "IN FLIGHT", "OF MODEL", "SLOTS", "WEIGHT", "SLOWDOWN", "FOREIGN", "IN MEMORY")
_SECONDS = ("wait_s", "prefill_s", "saved_s", "decode_s", "others_s")


def _predicted_row(candidate: dict[str, Any]) -> tuple[str, ...]:
    predicted = candidate["predicted"] or {}
    return (
        candidate["id"],
        *(_number(predicted.get(part), ".3f") for part in _SECONDS),
        _number(predicted.get("slowdown"), ".2f"),
        _number(predicted.get("cost_s"), ".3f"),
        str(candidate["in_flight"]),
        _in_memory(candidate),
    )


def _measures_row(candidate: dict[str, Any]) -> tuple[str, ...]:
    gpu = candidate["gpu"] or {}
    return (
        candidate["id"],
        str(candidate["in_flight"]),
        str(candidate["in_flight_of_model"]),
        str(candidate["slots"]),
        _number(candidate["weight"], "g"),
        _number(gpu.get("slowdown"), ".2f"),
        _number(gpu.get("foreign"), ".2f"),
        _in_memory(candidate),
    )


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)


def _in_memory(candidate: dict[str, Any]) -> str:
    return {True: "yes", False: "no", None: "?"}[candidate["in_memory"]]


def _table(rows: Sequence[tuple[str, ...]], marked: Sequence[bool]) -> list[str]:
    """Names to the left, numbers to the right; a marked row is the chosen one."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row, is_marked in zip(rows, marked, strict=True):
        name, *numbers = row
        cells = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))]
        line = f"{'>' if is_marked else ' '} {'  '.join(cells)}"
        lines.append(click.style(line, fg="green") if is_marked else line)
    return lines
