"""The picture once, for a pipe or a glance: no history, and nothing moves."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import click
from rich.console import Console

from corral.gateway.cli.admin_client import ask
from corral.gateway.cli.top import sheets
from corral.gateway.cli.top.gpus import gpus
from corral.gateway.cli.top.marks import Look
from corral.gateway.cli.top.sheet import Sheet
from corral.gateway.cli.top.summary import advice, summary
from corral.gateway.cli.top.view import Record, View

SCHEMA = 1
"""Of ``corral top --once --json``: grows when a key goes or changes its meaning."""
_REQUESTS = 10
_LINES = 5
_UNDER_WAY = 8
"""Requests that are under way; how many there are stands in the first line."""
_PIPE_WIDTH = 120


def gathered(admin: str) -> dict[str, Any]:
    """All that is shown, from a running gateway."""
    return {
        "schema": SCHEMA,
        "snapshot": ask(admin, "GET", "/snapshot"),
        "requests": ask(admin, "GET", f"/requests?n={_REQUESTS}")["requests"],
        "log": ask(admin, "GET", f"/log?n={_LINES}")["lines"],
    }


def print_once(found: dict[str, Any], look: Look) -> None:
    console = console_for(look)
    page, overflow = found["snapshot"], look.marks.overflow
    view = View(look, console.width)
    with console.capture() as printed:
        console.print(summary(page, look), no_wrap=True, overflow=overflow)
        for sheet in _parts(found, page, view):
            console.print()
            console.print(sheet.table(view.width, sheet.rows, look))
        if page["advice"]:
            console.print()
        for text in page["advice"]:
            console.print(advice(page | {"advice": [text]}, look))
    click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()), color=console.is_terminal or None)


def _parts(found: dict[str, Any], page: Record, view: View) -> list[Sheet]:
    parts = [gpus(page, view, None)] if page["gpus"] else []
    now = sheets.under_way(page, view)
    return [
        *parts,
        sheets.replicas(page, view),
        replace(now, rows=now.rows[:_UNDER_WAY]),
        sheets.requests(found["requests"], view, page),
        sheets.log(found["log"], view),
    ]


def console_for(look: Look) -> Console:
    """Standard output; as wide as the terminal, or as ``COLUMNS`` says."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Console(
        width=width, highlight=False, emoji=False, markup=False, safe_box=look.marks.is_ascii, soft_wrap=False
    )
