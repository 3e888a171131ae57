"""``corral models``: what there is and where, pulls, removals, and the garbage of the stores."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import click

from corral.errors import OperatorError
from corral.gateway.cli import models_view
from corral.gateway.cli.admin_client import Refused, ask, lines
from corral.gateway.cli.completion import complete_model
from corral.gateway.cli.messages import visible
from corral.gateway.cli.models_memory import load, unload
from corral.gateway.cli.options import admin_option, debug_option, json_option
from corral.gateway.cli.pulling import display_for, follow

_LIST_S = 10.0
"""A replica that has to be asked first may take a moment."""
_LEAST_AGE_S = 60
_AGE = re.compile(r"([0-9]{1,9})(s|m|min|h|d)?\Z")
_AGE_UNITS = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


class _Models(click.Group):
    """Without a command of its own it lists."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = [word for word in args if word != "--debug"]
        if not ctx.resilient_parsing and (not words or (words[0].startswith("-") and words[0] != "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Models)
@debug_option
def models() -> None:
    """Show, pull, remove and place the models of a running gateway, whatever replicas are behind it.

    \b
    Examples:
      corral models                      what there is
      corral models place                where it is
      corral models pull llama3.2:1b
      corral models rm llama3.2:1b
      corral models unload llama3.2:1b   out of memory
      corral models gc                   what no model needs any more
    """


@models.command("list", short_help="Show the models, and running pulls.")
@admin_option
@json_option
@debug_option
def list_models(admin: str, as_json: bool) -> int:
    """Show the models, how many copies of each are in memory, and running pulls. `corral models` does the same.

    \b
    Examples:
      corral models
      corral models list --json | jq -r '.models[].name'
    """
    page = ask(admin, "GET", "/models", timeout_s=_LIST_S)
    click.echo(json.dumps(page, indent=2) if as_json else models_view.listed(page, models_view.utc_now()))
    return 0


@models.command(short_help="Show where each model is, and how it is used there.")
@admin_option
@json_option
@debug_option
def place(admin: str, as_json: bool) -> int:
    """Show where each model is: in whose memory, with what size, context and use, and in whose store.

    BUSY is the requests that are worked off, of so many at a time. Below the table stands what is being loaded or let
    go of now.

    \b
    Examples:
      corral models place
      corral models place --json | jq '.models[] | select(.copies != []) | .name'
    """
    page = ask(admin, "GET", "/models", timeout_s=_LIST_S)
    click.echo(json.dumps(page, indent=2) if as_json else models_view.placed(page))
    return 0


@models.command(short_help="Pull a model into every store.")
@click.argument("name", metavar="NAME", shell_complete=complete_model)
@click.option("--insecure", is_flag=True, help="Allow a registry without TLS.")
@click.option("--detach", is_flag=True, help="Do not wait for it: the gateway goes on.")
@admin_option
@json_option
@debug_option
def pull(name: str, insecure: bool, detach: bool, admin: str, as_json: bool) -> int:
    """Pull model NAME into every store of the gateway, and show how far it is.

    Who pulls what is being pulled joins in. Ctrl-C stops the waiting; the pull itself ends when nobody waits for it any
    more, unless it was begun with --detach. What it has got so far stays, and the next pull goes on from there.

    \b
    Examples:
      corral models pull llama3.2:1b
      corral models pull hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M
      corral models pull --detach llama3.1:70b && corral models
    """
    asked = {"model": name, "insecure": insecure, "detach": detach}
    if detach:
        page = ask(admin, "POST", "/models/pull", asked, timeout_s=None)
        click.echo(
            json.dumps(page, indent=2) if as_json else f"pulling {visible(name)}; `corral models` shows how far it is"
        )
        return 0
    try:
        follow(name, lines(admin, "POST", "/models/pull", asked), _Raw() if as_json else display_for(name))
    except KeyboardInterrupt:
        click.echo(
            "not waiting any more; others who wait for the pull still get it (`corral models` shows it)", err=True
        )
        raise
    if not as_json:
        click.echo(f"pulled {visible(name)}")
    return 0


class _Raw:
    """The lines as the gateway sends them."""

    def show(self, line: dict[str, Any]) -> None:
        click.echo(json.dumps(line))

    def close(self) -> None:
        return


@models.command(short_help="Remove models from every store.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_model)
@admin_option
@json_option
@debug_option
def rm(names: Sequence[str], admin: str, as_json: bool) -> int:
    """Remove models from every store, and from every memory.

    \b
    Exit code 1: at least one was not removed; the others were.

    \b
    Examples:
      corral models rm llama3.2:1b
      corral models rm all-minilm qwen3:8b
    """
    removed, failed = [], {}
    for name in dict.fromkeys(names):
        try:
            ask(admin, "DELETE", f"/models/{quote(name, safe='')}", timeout_s=None)
        except Refused as error:
            failed[name] = str(error)
            click.echo(f"{click.style('error:', fg='red', bold=True)} {visible(name)}: {visible(str(error))}", err=True)
        else:
            removed.append(name)
            if not as_json:
                click.echo(f"deleted '{visible(name)}'")
    if as_json:
        click.echo(json.dumps({"schema": 1, "removed": removed, "failed": failed}, indent=2))
    return 1 if failed else 0


def _age_s(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """``90``, ``30m``, ``2h``, ``7d``."""
    match = _AGE.match(value)
    seconds = 0 if match is None else int(match[1]) * _AGE_UNITS[match[2]]
    if seconds < _LEAST_AGE_S:
        raise click.BadParameter(f"{value!r} is no age of a minute or more; write for instance 90s, 30m, 2h or 7d")
    return seconds


@models.command(short_help="Show or remove what no model needs any more.")
@click.option("--yes", is_flag=True, help="Remove it; without this it is only shown.")
@click.option(
    "--min-age",
    "min_age_s",
    metavar="AGE",
    callback=_age_s,
    default="1h",
    show_default=True,
    help="Only what nobody has written to for so long: 90s, 30m, 2h, 7d.",
)
@admin_option
@json_option
@debug_option
def gc(yes: bool, min_age_s: int, admin: str, as_json: bool) -> int:
    """Show what no model in the stores needs any more, or remove it: blobs that no model names, and downloads that
    stopped.

    The gateway does it, where it can see the folder: of Ollamas that it runs, and of those whose folder is under
    `stores:` in its configuration. It waits until nothing is being pulled or created, and lets nothing begin
    meanwhile. Where a manifest cannot be read nothing is removed: what that model needs is not known.

    \b
    Exit code 1: something that should be removed was not, or no store could be looked at.

    \b
    Examples:
      corral models gc
      corral models gc --yes
      corral models gc --yes --min-age 7d
    """
    page: dict[str, Any] = {}
    for page in lines(admin, "POST", "/models/gc", {"yes": yes, "min_age_s": min_age_s}):
        if as_json:
            click.echo(json.dumps(page))
        elif page.get("status") == "waiting":
            _say_waiting(page)
    if "stores" not in page or "schema" not in page:
        raise OperatorError(str(page.get("error", "the gateway stopped telling before it had ended")))
    reports = page["stores"]
    if not as_json:
        click.echo("\n\n".join(map(models_view.garbage, reports)) or "no store yet")
        if not yes and any(report["waste"] for report in reports):
            click.echo("\n`corral models gc --yes` removes it")
    return 1 if _has_failed(reports) else 0


def _say_waiting(step: dict[str, Any]) -> None:
    what = ", ".join(f"the pull of {visible(model)}" for model in step["pulls"]) or "what is under way there"
    click.echo(f"waiting for {what} to end", err=True)


def _has_failed(reports: Sequence[dict[str, Any]]) -> bool:
    seen = [report for report in reports if report["folder"] is not None]
    return bool(reports and not seen) or any(report["failed"] or report["problem"] for report in seen)


models.add_command(load)
models.add_command(unload)
