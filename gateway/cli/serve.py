"""``corral serve``: the gateway, of a configuration file or of what this machine has."""

from __future__ import annotations

import os
from pathlib import Path

import click

from corral.gateway.cli.options import config_option, debug_option
from corral.gateway.cli.ports import given_address
from corral.gateway.cli.serving import LOG_LEVELS, serve_config
from corral.gateway.config.sources import Sources


@click.command()
@config_option
@click.option("--listen", metavar="HOST:PORT", help="Where clients connect, whatever the file says.")
@click.option("--admin-listen", metavar="HOST:PORT", help="The admin port, whatever the file says.")
@click.option("--watch", "watches_file", is_flag=True, help="Reload by itself when the file was changed.")
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    default="info",
    show_default=True,
    help="How much is logged to stderr; state changes are info.",
)
@debug_option
def serve(
    config_path: Path | None, listen: str | None, admin_listen: str | None, watches_file: bool, log_level: str
) -> int:
    """Serve one Ollama address: in front of an Ollama per GPU that Corral runs itself, or of those that FILE lists.

    Without a file Corral finds the GPUs of this machine and the program `ollama`, and starts one Ollama per GPU;
    `corral plan` shows beforehand what it would start, and why.

    \b
    In front of Ollamas that somebody else runs, the least a file needs:
      replicas:
        - {id: a, url: "http://127.0.0.1:21001"}
        - {id: b, url: "http://127.0.0.1:21002"}

    \b
    Signals: HUP reads the file again, as `corral reload` does (a bad file changes nothing),
    INT and TERM finish running requests first, a second one stops now.

    \b
    Examples:
      corral serve
      corral serve --config corral.yaml
      corral check-config corral.yaml
    """
    asked = {"listen": ("--listen", listen), "admin_listen": ("--admin-listen", admin_listen)}
    flags = {key: (flag, given_address(text, flag)) for key, (flag, text) in asked.items() if text is not None}
    sources = Sources(config_path, os.environ, flags)
    return serve_config(sources, log_level=log_level, watches_file=watches_file, after_card=lambda ready: "")
