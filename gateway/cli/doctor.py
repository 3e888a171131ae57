"""``corral doctor``: is this machine fit for what Corral is to do on it?"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

import click

from corral.gateway.cli.options import config_option, debug_option, is_debug, json_option
from corral.gateway.cli.serving import set_up_logs

_WIDTH: Final = 110
"""Of the page where nobody says how wide it may be."""
_MOST: Final = 140


@click.command()
@config_option
@json_option
@debug_option
def doctor(config_path: Path | None, as_json: bool) -> int:
    """Look at GPUs, drivers, Ollama, the model store and limits, and say what is wrong and what to do.

    Nothing is started or changed. A gateway may be running meanwhile.

    \b
    Exit code 0: all is well. 1: warnings. 2: problems.
    (2 is also what a mistyped command line exits with.)

    \b
    Examples:
      corral doctor
      corral doctor --config corral.yaml --json
    """
    if is_debug():
        set_up_logs("debug")
    from corral.gateway.doctor.checks import examine  # heavy, and not needed to show the help
    from corral.gateway.doctor.gather import gather
    from corral.gateway.doctor.render import as_json as page_of
    from corral.gateway.doctor.render import as_text

    report = examine(gather(config_path, os.environ))
    click.echo(json.dumps(page_of(report), indent=2) if as_json else as_text(report, _width()))
    return report.worst.exit_code


def _width() -> int:
    if not sys.stdout.isatty():
        return _WIDTH
    return min(shutil.get_terminal_size((_WIDTH, 24)).columns, _MOST)
