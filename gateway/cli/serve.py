"""``corral serve``: the gateway of a configuration file."""

from __future__ import annotations

from pathlib import Path

import click

from corral.gateway.cli.options import debug_option
from corral.gateway.cli.serving import LOG_LEVELS, serve_config
from corral.gateway.config import load_config


@click.command()
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="The configuration, for instance corral.yaml.",
)
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    default="info",
    show_default=True,
    help="How much is logged to stderr; state changes are info.",
)
@debug_option
def serve(config_path: Path, log_level: str) -> int:
    """Serve one Ollama address in front of the replicas that FILE lists.

    \b
    The least a file needs:
      replicas:
        - {id: a, url: "http://127.0.0.1:21001"}
        - {id: b, url: "http://127.0.0.1:21002"}

    \b
    Signals: HUP reads the file again (a bad file changes nothing),
    INT and TERM finish running requests first, a second one stops now.

    \b
    Examples:
      corral serve --config corral.yaml
      corral check-config corral.yaml
    """
    config = load_config(config_path)
    return serve_config(config_path, config, log_level=log_level, after_card=lambda ready: "")
