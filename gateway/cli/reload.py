"""``corral reload``: have a running gateway read its configuration again, and show what that changes."""

from __future__ import annotations

import json
from typing import Any

import click

from corral.errors import ConfigError
from corral.gateway.cli.admin_client import Refused, ask
from corral.gateway.cli.options import admin_option, debug_option, json_option


@click.command()
@click.option("--check", "--dry-run", "dry_run", is_flag=True, help="Only show what would change; change nothing.")
@admin_option
@json_option
@debug_option
def reload(dry_run: bool, admin: str, as_json: bool) -> int:
    """Have a running gateway read its configuration file again, and show what that changes.

    No request is lost by it. A file that cannot be used changes nothing: stderr says where (file:line:column), what,
    and what to write instead. A HUP signal does the same, and `corral serve --watch` whenever the file was changed.

    \b
    Exit code 0: it is used. 78: it is refused, and nothing was changed.

    \b
    Examples:
      corral reload --check
      corral reload
    """
    try:
        page = ask(admin, "POST", "/reload", {"dry_run": dry_run}, timeout_s=None)
    except Refused as error:
        if "used" not in error.page:
            raise
        if not as_json:
            raise ConfigError(f"{error}\n  nothing was changed: the gateway goes on as it is") from None
        click.echo(json.dumps(error.page, indent=2))
        return ConfigError.exit_code
    click.echo(json.dumps(page, indent=2) if as_json else reload_text(page))
    return 0


def reload_text(page: dict[str, Any]) -> str:
    changes = page["changes"]
    count = "nothing" if not changes else "1 value" if len(changes) == 1 else f"{len(changes)} values"
    head = f"reloaded: {count} changed" if page["used"] else f"checked: {count} would change"
    waits = page["needs_restart"]
    later = f"counts only after a restart of the gateway: {', '.join(waits)}"
    return "\n".join([head, *(f"  {change}" for change in changes), *([later] if waits else [])])
