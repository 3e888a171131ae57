"""``corral models load`` and ``unload``: a model into memory and out of it, as a client would ask for it."""

from __future__ import annotations

import json
from typing import Any

import click

from corral.errors import OperatorError
from corral.gateway.cli.client_side import address_of, post
from corral.gateway.cli.completion import complete_model
from corral.gateway.cli.messages import visible
from corral.gateway.cli.options import admin_option, debug_option, json_option

_EMBEDS_ONLY = "does not support generate"


@click.command(short_help="Load a model into memory.")
@click.argument("name", metavar="NAME", shell_complete=complete_model)
@admin_option
@json_option
@debug_option
def load(name: str, admin: str, as_json: bool) -> int:
    """Load model NAME into the memory of the replica that would get its next request. A pinned model needs no such
    thing, see `pin` in the configuration.

    \b
    Example:
      corral models load llama3.1:8b
    """
    url = _address(admin)
    status, page, replica = post(url, "/api/generate", {"model": name, "stream": False})
    if status == 400 and _EMBEDS_ONLY in str(page.get("error", "")):
        status, page, replica = post(url, "/api/embed", {"model": name, "input": []})
    _refuse(status, page, name)
    if as_json:
        click.echo(json.dumps({"schema": 1, "loaded": name, "replica": replica}, indent=2))
    else:
        click.echo(f"{visible(name)} is in memory" + (f" at {replica}" if replica else ""))
    return 0


@click.command(short_help="Let a model leave memory.")
@click.argument("name", metavar="NAME", shell_complete=complete_model)
@admin_option
@json_option
@debug_option
def unload(name: str, admin: str, as_json: bool) -> int:
    """Let model NAME leave the memory of every replica; requests that use it finish first. It stays in the stores.

    \b
    Example:
      corral models unload llama3.1:70b
    """
    status, page, _ = post(_address(admin), "/api/generate", {"model": name, "keep_alive": 0, "stream": False})
    _refuse(status, page, name)
    if as_json:
        click.echo(json.dumps({"schema": 1, "unloaded": name}, indent=2))
    else:
        click.echo(f"{visible(name)} leaves memory; `corral models place` shows it")
    return 0


def _address(admin: str) -> str:
    url = address_of(admin)
    if url is None:
        raise OperatorError(f"the gateway on {admin} does not say where clients connect")
    return url


def _refuse(status: int, page: dict[str, Any], name: str) -> None:
    if status >= 300:
        raise OperatorError(f"{visible(name)}: {visible(str(page.get('error', f'the answer was {status}')))}")
