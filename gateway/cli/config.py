"""``corral config``: the configuration in effect and where it comes from, and what may stand in a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from corral.gateway.cli.admin_client import ask
from corral.gateway.cli.check import check_config
from corral.gateway.cli.options import admin_option, config_option, debug_option, json_option


@click.group()
@debug_option
def config() -> None:
    """Show the configuration in effect and where it comes from, or what may stand in a file.

    \b
    Examples:
      corral config show --origin
      corral config show --running
      corral config schema > corral.schema.json
    """


config.add_command(check_config, "check")


@config.command(short_help="Show every key with its value, and where it comes from.")
@config_option
@click.option("--origin", "origins", is_flag=True, help="Say of each value where it comes from.")
@click.option("--changed", "only_changed", is_flag=True, help="Without the values that are defaults.")
@click.option("--running", is_flag=True, help="What a running gateway goes by, instead of what a new one would.")
@admin_option
@json_option
@debug_option
def show(config_path: Path | None, origins: bool, only_changed: bool, running: bool, admin: str, as_json: bool) -> int:
    """Show every key with its value: from the command line, the environment, the file, or the default.

    What comes out is a file that could be used. Values that may be secrets are shown as ***.

    \b
    Who goes first: a flag of `corral serve`, then CORRAL_LISTEN and
    CORRAL_ADMIN_LISTEN, then the file, then Ollama's own variables
    (OLLAMA_HOST and its like), then the default.

    \b
    Examples:
      corral config show --origin
      corral config show --changed --origin --config corral.yaml
      corral config show --running
    """
    page = ask(admin, "GET", "/config") if running else _page(config_path)
    if only_changed:
        page["keys"] = [row for row in page["keys"] if row["from"] != "default"]
    click.echo(json.dumps(page, indent=2) if as_json else config_text(page, origins=origins))
    return 0


@config.command()
@debug_option
def schema() -> int:
    """Print the JSON Schema of corral.yaml, for editors.

    \b
    An editor with a YAML language server completes keys and marks
    mistakes when the file begins with
      # yaml-language-server: $schema=./corral.schema.json

    \b
    Examples:
      corral config schema > corral.schema.json
    """
    from corral.gateway.config.json_schema import schema_text

    click.echo(schema_text(), nl=False)
    return 0


def _page(path: Path | None) -> dict[str, Any]:
    from corral.gateway.config.shown import config_page
    from corral.gateway.config.sources import Sources

    return config_page(Sources(path, os.environ).settle())


def config_text(page: dict[str, Any], *, origins: bool) -> str:
    from corral.gateway.config.as_yaml import rows_as_yaml

    file = page["file"] or "no file"
    head = [f"# {file}"]
    head += [f"# {text}" for text in page["warnings"]]
    waits = page.get("needs_restart")
    head += [f"# count only after a restart: {', '.join(waits)}"] if waits else []
    body = rows_as_yaml(page["keys"], origins=origins)
    return "\n".join([*head, body] if body else [*head, "# nothing but defaults"])
