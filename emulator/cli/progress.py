"""Requests that report how far they are: a line on standard error for each step, where the original draws bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from corral.emulator.cli.client import Client


def pull(client: Client, model: str, *, insecure: bool = False) -> None:
    show(client.stream("/api/pull", registry_body(model, insecure=insecure)))


def registry_body(model: str, *, insecure: bool) -> dict[str, Any]:
    """Of a pull or a push."""
    return {"model": "", **({"insecure": True} if insecure else {}), "username": "", "password": "", "name": model}


def show(statuses: Iterable[Mapping[str, Any]]) -> None:
    """Each status once; of a layer how much there is of it whenever that is another tenth."""
    shown = ""
    for status in statuses:
        line = str(status.get("status", ""))
        if status.get("total"):
            line += f": {10 * status.get('completed', 0) // status['total'] * 10}%"
        if line != shown:
            shown = line
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
