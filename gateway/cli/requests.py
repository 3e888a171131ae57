"""``corral requests``: the last requests of a running gateway, with what took how long."""

from __future__ import annotations

import json

import click

from corral.gateway.cli.admin_client import ask, events
from corral.gateway.cli.options import admin_option, debug_option, json_option


@click.command()
@click.option("-n", "count", metavar="N", type=click.IntRange(0, 500), default=20, show_default=True, help="How many.")
@click.option("-f", "--follow", is_flag=True, help="Go on with those that end from now on, until Ctrl-C.")
@admin_option
@json_option
@debug_option
def requests(count: int, follow: bool, admin: str, as_json: bool) -> int:
    """Show the last requests of a running gateway that are over, the latest last; never what was asked or answered.

    QUEUE, 1ST BYTE and TOTAL are seconds from a request's arrival. `corral explain ID` says why one went where it
    went.

    \b
    Examples:
      corral requests
      corral requests -f
      corral requests -n 500 --json | jq '.requests[] | select(.outcome != "ok")'
    """
    if follow:
        return _follow(count, admin, as_json)
    page = ask(admin, "GET", f"/requests?n={count}")
    if as_json:
        click.echo(json.dumps(page, indent=2))
        return 0
    from corral.gateway.cli.requests_view import Printer

    Printer().show(page["requests"])
    return 0


def _follow(count: int, admin: str, as_json: bool) -> int:
    from corral.gateway.cli.requests_view import Printer

    printer = Printer()
    try:
        first = True
        batch: list[dict[str, object]] = []
        for kind, data in events(admin, f"/live?n={count}"):
            if kind == "request" and as_json:
                click.echo(json.dumps(data))
            elif kind == "request":
                batch.append(data)
            elif kind == "snapshot" and batch:  # each batch comes between two of them
                printer.show(batch, is_first=first)
                first, batch = False, []
    except KeyboardInterrupt:
        pass
    return 0
