"""What an operator asks of a running gateway: its status, and what is to become of a replica."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import click

from corral.gateway.cli.admin_client import ask
from corral.gateway.cli.completion import complete_replica
from corral.gateway.cli.messages import visible
from corral.gateway.cli.options import admin_option, debug_option, json_option

_COLORS = {"up": "green", "ok": "green", "down": "red", "failed": "red", "lost": "red"}
"""Of states; every other is yellow."""


_SHOWN = "`corral status` shows it"


def _replica_command(function: Callable[..., int]) -> click.Command:
    """A command that concerns one replica of a running gateway."""
    options = admin_option(json_option(debug_option(function)))
    return click.command()(click.argument("replica_id", metavar="ID", shell_complete=complete_replica)(options))


@click.command()
@click.option(
    "--watch",
    "every_s",
    metavar="[SECONDS]",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(0.2, 3600),
    help="Show it again and again, every 2 seconds or every SECONDS, until Ctrl-C; with --json a line each.",
)
@admin_option
@json_option
@debug_option
def status(every_s: float | None, admin: str, as_json: bool) -> int:
    """Show the replicas and the queue of a running gateway.

    \b
    Examples:
      corral status
      corral status --watch
      corral status --admin http://gpu-box:11435
      corral status --json | jq .requests.queued
    """
    if every_s is not None:
        return _watch(every_s, admin, as_json)
    page = ask(admin, "GET", "/snapshot")
    click.echo(json.dumps(page, indent=2) if as_json else render(page))
    return 0


def _watch(every_s: float, admin: str, as_json: bool) -> int:
    """Until Ctrl-C, or until the gateway is gone. A terminal shows one page, a pipe all of them."""
    try:
        while True:
            page = ask(admin, "GET", "/snapshot")
            if as_json:
                click.echo(json.dumps(page))
            else:
                click.clear()  # does nothing in a pipe
                click.echo(f"{render(page)}\n")
            sys.stdout.flush()
            time.sleep(every_s)
    except KeyboardInterrupt:
        return 0


@_replica_command
def drain(replica_id: str, admin: str, as_json: bool) -> int:
    """Send no new requests to replica ID. What it is doing goes on; `corral resume ID` takes it back.

    \b
    Example:
      corral drain a
    """
    return _tell(replica_id, "drain", admin, as_json, _drained)


@_replica_command
def resume(replica_id: str, admin: str, as_json: bool) -> int:
    """Send requests to the drained replica ID again.

    \b
    Example:
      corral resume a
    """
    return _tell(replica_id, "resume", admin, as_json, lambda _: "takes requests again")


@click.command()
@click.argument("replica_id", metavar="ID", required=False, shell_complete=complete_replica)
@click.option("--all", "everyone", is_flag=True, help="All that Corral runs, one after the other.")
@admin_option
@json_option
@debug_option
def restart(replica_id: str | None, everyone: bool, admin: str, as_json: bool) -> int:
    """Restart the Ollama of replica ID, or with --all each in turn; only those that Corral runs itself.

    It gets no new requests, finishes what it is doing, ends, and starts anew. One that Corral has given up on starts
    at once. With --all the next one's turn comes when the one before takes requests again.

    \b
    Examples:
      corral restart gpu0
      corral restart --all
    """
    if (replica_id is None) != everyone:
        raise click.UsageError("name one replica, or say --all", click.get_current_context())
    if replica_id is not None:
        return _tell(replica_id, "restart", admin, as_json, lambda _: f"restarts; {_SHOWN}")
    page = ask(admin, "POST", "/restart")
    text = f"restarting one after the other: {' '.join(page['restarting'])}"
    click.echo(json.dumps(page, indent=2) if as_json else text)
    return 0


@_replica_command
def stop(replica_id: str, admin: str, as_json: bool) -> int:
    """End the Ollama of replica ID, which Corral runs: its GPU is free until `corral start ID`.

    It gets no new requests, finishes what it is doing, and ends.

    \b
    Example:
      corral stop gpu1
    """
    return _tell(replica_id, "stop", admin, as_json, lambda _: f"stops when it has finished what it is doing; {_SHOWN}")


@_replica_command
def start(replica_id: str, admin: str, as_json: bool) -> int:
    """Start the Ollama of replica ID, which was stopped or given up.

    \b
    Example:
      corral start gpu1
    """
    return _tell(replica_id, "start", admin, as_json, lambda _: f"starts; {_SHOWN}")


def _tell(replica_id: str, verb: str, admin: str, as_json: bool, said: Callable[[dict[str, Any]], str]) -> int:
    """Have ``verb`` done to the replica, and say what becomes of it."""
    replica = ask(admin, "POST", f"/replicas/{quote(replica_id, safe='')}/{verb}")
    click.echo(json.dumps(replica, indent=2) if as_json else f"{replica['id']}: {said(replica)}")
    return 0


def _drained(replica: dict[str, Any]) -> str:
    return f"drained; gets no new requests, {replica['in_flight']} still running"


def render(page: dict[str, Any]) -> str:
    """The snapshot as a few lines and a table."""
    requests = page["requests"]
    lines = [
        f"Corral {page['version']}: {'ready' if page['ready'] else 'not ready: ' + page['reason']}",
        f"policy {page['policy']}",
        f"requests: {requests['in_flight']} in flight, {requests['queued']} waiting{_waiting(requests)}",
        "",
    ]
    head = ("REPLICA", "STATE", "IN FLIGHT", "SLOTS", "WEIGHT", "OLLAMA", "LOADED", "WHY")
    rows = [head, *(_row(replica) for replica in page["replicas"])]
    if any(replica.get("found_by") for replica in page["replicas"]):
        origins = ["FROM", *(_origin(replica) for replica in page["replicas"])]
        rows = [(*row[:-1], origin, row[-1]) for row, origin in zip(rows, origins, strict=True)]
    lines += _table(rows)
    if page["gpus"]:
        used_by = {uuid: replica["id"] for replica in page["replicas"] for uuid in replica["gpus"]}
        lines += ["", *_table([_GPU_HEAD, *(_gpu_row(gpu, used_by) for gpu in page["gpus"])])]
    if page["advice"]:
        lines += ["", *(f"advice: {advice}" for advice in page["advice"])]
    return "\n".join(lines)


_GPU_HEAD = ("GPU", "STATE", "REPLICA", "BUSY", "MEMORY", "TEMP", "POWER", "NAME", "WHY")


def _gpu_row(gpu: dict[str, Any], used_by: dict[str, str]) -> tuple[str, ...]:
    is_fresh = gpu["condition"] == "ok"
    sample = gpu["sample"] if is_fresh else {}
    why = ", ".join(sample["throttles"] or ()) if is_fresh else gpu["reason"]
    return (
        gpu["gpu"],
        gpu["condition"],
        used_by.get(gpu["uuid"], "-"),
        _figure(sample.get("utilisation_ratio"), 100, "%"),
        _of(sample, "memory_used_bytes", "memory_total_bytes", 1 / (1 << 30), "GiB"),
        _figure(sample.get("temperature_celsius"), 1, "°C"),
        _of(sample, "power_watts", "power_limit_watts", 1, "W"),
        gpu["name"],
        why,
    )


def _of(sample: dict[str, Any], part: str, whole: str, factor: float, unit: str) -> str:
    used, total = sample.get(part), sample.get(whole)
    known = used is not None or total is not None
    return f"{_figure(used, factor, '')}/{_figure(total, factor, '')} {unit}" if known else "?"


def _figure(value: float | None, factor: float, unit: str) -> str:
    return "?" if value is None else f"{value * factor:.0f}{unit}"


def _waiting(requests: dict[str, Any]) -> str:
    if requests["oldest_wait_s"] is None:
        return ""
    models = ", ".join(f"{visible(name)} {count}" for name, count in requests["queued_by_model"].items())
    return f" (the oldest for {requests['oldest_wait_s']:.0f} s: {models})"


def _row(replica: dict[str, Any]) -> tuple[str, ...]:
    process = replica["process"]
    state = replica["health"] if replica["held"] is None else process["state"] if process else "held"
    state += "" if replica["enabled"] else ", drained"
    loaded = replica["loaded"]
    return (
        replica["id"],
        state,
        str(replica["in_flight"]),
        _or_unknown(replica["slots"]),
        f"{replica['weight']:g}",
        _or_unknown(replica["version"]),
        "?" if loaded is None else (" ".join(loaded) or "-"),
        replica["held"] or replica["changing"] or replica["reason"],
    )


def _origin(replica: dict[str, Any]) -> str:
    """What made it a replica."""
    return replica["found_by"] or ("Corral" if replica["process"] else "configuration")


def _or_unknown(value: object) -> str:
    return "?" if value is None else str(value)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_line(row, widths, first=number == 0) for number, row in enumerate(rows)]


def _line(row: tuple[str, ...], widths: Sequence[int], *, first: bool) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
    if first:
        return click.style("  ".join(cells).rstrip(), bold=True)
    color = _COLORS.get(row[1].partition(",")[0], "yellow")
    cells[1] = click.style(cells[1], fg=color)
    return "  ".join(cells).rstrip()
