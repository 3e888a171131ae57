"""``corral info``: all that somebody who helps wants to know of an installation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from corral.gateway.cli.messages import visible
from corral.gateway.cli.options import admin_option, config_option, debug_option, json_option


@click.command()
@config_option
@admin_option
@json_option
@debug_option
@click.pass_context
def info(ctx: click.Context, config_path: Path | None, admin: str, as_json: bool) -> int:
    """Show versions, paths, ports, extras and environment variables, as a bug report wants them.

    Nothing is changed. Keys, tokens, passwords and credentials in URLs are masked; read it all the same before you
    publish it.

    \b
    Examples:
      corral info
      corral info --json | jq .libraries
    """
    from corral.gateway.cli.about import about

    found = about(config_path, _named_by(ctx, config_path), admin, os.environ)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))
    return 0


def _named_by(ctx: click.Context, path: Path | None) -> str:
    if ctx.get_parameter_source("config_path") is ParameterSource.COMMANDLINE:
        return "--config"
    if os.environ.get("CORRAL_CONFIG"):
        return "CORRAL_CONFIG"
    return "no file: defaults" if path is None else "this folder"


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """A heading for each part, and a line for each of its values."""
    for part, values in found.items():
        if part == "schema":
            continue
        yield click.style(part, bold=True)
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            yield f"  {name:<{width}}  {visible(_value(part, name, value))}".rstrip()


_ABSENT = {
    "environment": "not set",
    "libraries": "not installed",
    "replicas": "run by Corral itself",
    "problem": "none",
    "program": "not found",
}
"""What stands for a value that there is not, by its name or else by its part."""


def _value(part: str, name: str, value: Any) -> str:
    if value is None:
        return _ABSENT.get(name) or _ABSENT.get(part) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {version or 'not installed'}" for name, version in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
