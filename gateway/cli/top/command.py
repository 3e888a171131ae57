"""``corral top``: a running gateway in a terminal, as it works."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from typing import Any

import click

from corral import __version__
from corral.errors import OperatorError
from corral.gateway.cli.admin_client import ask, base_url
from corral.gateway.cli.options import admin_option, debug_option
from corral.gateway.serve.snapshot import SNAPSHOT_SCHEMA


@click.command()
@click.option("--readonly", is_flag=True, help="Only look: no key drains, stops or starts anything.")
@click.option("--light", is_flag=True, help="Colours for a light background.")
@click.option("--ascii", "is_ascii", is_flag=True, help="Plain letters only.")
@click.option("--once", is_flag=True, help="Print one picture and end; for pipes, and where textual is not installed.")
@click.option("--json", "as_json", is_flag=True, help="With --once: print JSON for programs.")
@admin_option
@debug_option
def top(readonly: bool, light: bool, is_ascii: bool, once: bool, as_json: bool, admin: str) -> int:
    """Watch a running gateway: GPUs, replicas, the queue, requests and the log.

    Keys: `?` lists them, `/` shows only what has a text in it, `s` sorts, the arrows choose a replica, and `d` drains
    it, after a question. Nothing that is shown holds a prompt or a key. Works over ssh, and with a mouse.

    \b
    Examples:
      corral top
      corral top --readonly --admin http://gpu-box:11435
      corral top --once | less -R
      corral top --once --json | jq .snapshot.requests
    """
    from corral.gateway.cli.top.marks import ASCII, TERMINAL, UNICODE, Look

    if as_json and not once:
        raise click.UsageError("--json goes with --once", click.get_current_context())
    if once:
        from corral.gateway.cli.top.once import gathered, print_once

        found = gathered(admin)
        check(found["snapshot"])
        if as_json:
            click.echo(json.dumps(found, indent=2))
        else:
            print_once(found, Look(ASCII if is_ascii or not _speaks_unicode() else UNICODE, TERMINAL))
        return 0
    return _watch(base_url(admin), readonly=readonly, light=light, is_ascii=is_ascii)


def _watch(admin: str, *, readonly: bool, light: bool, is_ascii: bool) -> int:
    if find_spec("textual") is None:
        raise OperatorError("corral top needs textual: pip install 'corral[top]'  (without it: corral top --once)")
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise OperatorError("corral top needs a terminal; for a pipe: corral top --once")
    check(ask(admin, "GET", "/snapshot"))  # says what is wrong before the screen is taken
    from corral.gateway.cli.top.app import Top
    from corral.gateway.cli.top.marks import ASCII, DARK, LIGHT, UNICODE, Look

    look = Look(ASCII if is_ascii or not _speaks_unicode() else UNICODE, LIGHT if light else DARK)
    app = Top(admin, look, readonly=readonly, light=light)
    app.run(mouse=True)
    return app.return_code or 0


def check(page: dict[str, Any]) -> None:
    """Raises OperatorError where the gateway's page is not one that is understood here."""
    if page.get("schema") != SNAPSHOT_SCHEMA:
        said, version = page.get("schema"), page.get("version")
        raise OperatorError(
            f"the gateway (Corral {version}) has a page of schema {said}, and this is Corral {__version__}: "
            "use the corral of its version"
        )


def _speaks_unicode() -> bool:
    encoding = sys.stdout.encoding or os.environ.get("PYTHONIOENCODING") or ""
    return encoding.lower().replace("-", "").startswith("utf")
