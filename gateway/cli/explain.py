"""Why the last requests went where they went: each decision with what its candidates looked like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import click

from corral.errors import OperatorError
from corral.gateway.cli.admin_client import ask
from corral.gateway.cli.messages import visible
from corral.gateway.cli.options import admin_option, debug_option, json_option

_KEPT = 500
"""The gateway keeps so many requests that are over."""


@click.command()
@click.argument("request_id", metavar="[ID]", required=False)
@click.option(
    "-n", "count", metavar="N", type=click.IntRange(1, 10_000), default=5, show_default=True, help="How many of them."
)
@admin_option
@json_option
@debug_option
def explain(request_id: str | None, count: int, admin: str, as_json: bool) -> int:
    """Show the last decisions of a running gateway, the latest last, and what spoke for each replica.

    With an ID (the x-request-id of an answer, or from `corral requests`) it is about that request alone, and says what
    became of it.

    Times are seconds, as they were predicted for that request; COST is what was compared, the lowest wins. Where too
    little is known to predict, the table shows what was compared instead.

    \b
    Examples:
      corral explain
      corral explain 3f2a91c0-1b
      corral explain -n 1 --json | jq .decisions[0].candidates
    """
    if request_id is not None:
        return _one(request_id, admin, as_json)
    page = ask(admin, "GET", f"/explain?n={count}")
    click.echo(json.dumps(page, indent=2) if as_json else render(page["decisions"]))
    return 0


def _one(request_id: str, admin: str, as_json: bool) -> int:
    page = ask(admin, "GET", f"/explain?id={quote(request_id, safe='')}")
    ended = ask(admin, "GET", f"/requests?n={_KEPT}")["requests"]
    record = next((one for one in reversed(ended) if one["id"] == request_id), None)
    if record is None and not page["decisions"]:
        raise OperatorError(
            f"no request {visible(request_id)!r} among the last {_KEPT}\n"
            "  its id is the x-request-id of its answer; `corral requests` lists the last ones"
        )
    if as_json:
        click.echo(json.dumps({**page, "request": record}, indent=2))
        return 0
    click.echo("still under way" if record is None else _became(record))
    click.echo("\n" + render(page["decisions"]) if page["decisions"] else _undecided(record))
    return 0


def _undecided(record: dict[str, Any] | None) -> str:
    if record is None or record["replica"] is None:
        return "no replica was chosen for it"
    return f"it went to {record['replica']} ({record['reason']}); what spoke for the others is no longer kept"


def _became(record: dict[str, Any]) -> str:
    """What became of a request, in a line, and the attempts that failed, each in another."""
    model = record["model"]
    what = f"{record['kind']} of {visible(model)}" if model else record["kind"]
    where = f" from {record['replica']}" if record["replica"] else ""
    status = "" if record["status"] is None else f" (HTTP {record['status']})"
    parts = [f"waited {record['queue_s']:.2f} s"]
    if record["first_byte_s"] is not None:
        parts.append(f"first byte after {record['first_byte_s']:.2f} s")
    parts.append(f"over after {record['total_s']:.2f} s")
    lines = [f"{visible(record['id'])}: {what}: {record['outcome']}{status}{where}; {', '.join(parts)}"]
    lines += [
        f"  failed at {attempt['replica']} after {attempt['ended_s']:.2f} s: {attempt['fault']}"
        for attempt in record["failed"]
    ]
    return "\n".join(lines)


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
