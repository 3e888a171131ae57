"""``corral logs``: what the gateway, or the Ollama of one replica, says."""

from __future__ import annotations

import json
import re
import time
from typing import Any, Final
from urllib.parse import quote

import click

from corral.gateway.cli.admin_client import ask, events, lines
from corral.gateway.cli.completion import complete_replica
from corral.gateway.cli.messages import visible
from corral.gateway.cli.options import admin_option, debug_option, json_option

_KEPT: Final = 500
"""The gateway has no more lines of its own."""
_COLORS: Final = {"debug": "bright_black", "warning": "yellow", "error": "red", "critical": "red"}
_LEVEL: Final = re.compile(r'\blevel="?(DEBUG|INFO|WARN|ERROR)\b|\[(?:GIN)\] .*?\| +([1-5])\d\d \|')
"""As Ollama writes it; of its lines about requests the first digit of the status."""
_BY_WORD: Final = {"DEBUG": "debug", "WARN": "warning", "ERROR": "error", "4": "warning", "5": "error"}
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@click.command()
@click.argument("replica_id", metavar="[ID]", required=False, shell_complete=complete_replica)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option(
    "-n", "count", metavar="N", type=click.IntRange(0, 5000), default=50, show_default=True, help="How many lines."
)
@admin_option
@json_option
@debug_option
def logs(replica_id: str | None, follow: bool, count: int, admin: str, as_json: bool) -> int:
    """Show the log of a running gateway, or with an ID the log of that replica's Ollama, if Corral runs it.

    The gateway keeps its last 500 lines, and never writes a prompt. What an Ollama prints is its own affair: it names
    prompts where it was told to (OLLAMA_DEBUG=2).

    \b
    Examples:
      corral logs
      corral logs -f
      corral logs gpu0 -n 200 | grep error
    """
    try:
        if replica_id is None:
            _gateway(follow, count, admin, as_json)
        else:
            _replica(replica_id, follow, count, admin, as_json)
    except KeyboardInterrupt:
        if not follow:
            raise
    return 0


def _gateway(follow: bool, count: int, admin: str, as_json: bool) -> None:
    count = min(count, _KEPT)
    if follow:
        for kind, data in events(admin, f"/live?n={count}"):
            if kind == "log":
                click.echo(json.dumps(data) if as_json else gateway_line(data))
        return
    page = ask(admin, "GET", f"/log?n={count}")
    if as_json:
        click.echo(json.dumps(page, indent=2))
        return
    for line in page["lines"]:
        click.echo(gateway_line(line))


def _replica(replica_id: str, follow: bool, count: int, admin: str, as_json: bool) -> None:
    path = f"/replicas/{quote(replica_id, safe='')}/log?n={count}"
    if follow:
        for data in lines(admin, "GET", f"{path}&follow=1"):
            click.echo(json.dumps(data) if as_json else replica_line(str(data.get("text", ""))))
        return
    page = ask(admin, "GET", path)
    if as_json:
        click.echo(json.dumps(page, indent=2))
        return
    for text in page["lines"]:
        click.echo(replica_line(text))


def gateway_line(line: dict[str, Any]) -> str:
    """When, how grave, what."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["at"]))
    level, text = line["level"], visible(line["text"])
    return f"{click.style(at, fg='bright_black')} {click.style(f'{level:<7}', fg=_COLORS.get(level))} {text}"


def replica_line(text: str) -> str:
    """In the colour of its level; nothing in it steers the terminal."""
    found = _LEVEL.search(text)
    level = "" if found is None else _BY_WORD.get(found[1] or found[2], "")
    plain = visible(_ESCAPES.sub("", text).expandtabs())
    return click.style(plain, fg=_COLORS[level]) if level else plain
