"""Running a gateway from the command line: logs, the start-up card, what is said while it stops."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from corral import __version__
from corral.gateway.cli.messages import Ready, draining, start_card
from corral.gateway.cli.options import is_debug
from corral.gateway.config import Config
from corral.gateway.config.environment import with_environment

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


def serve_config(path: Path | None, config: Config, *, log_level: str, after_card: Callable[[Ready], str]) -> int:
    """Serve until stopped. ``path`` is read again on SIGHUP; ``after_card`` gives what is printed below the card."""
    set_up_logs("debug" if is_debug() else log_level)
    config = with_environment(config, os.environ)
    from corral.gateway.app import run  # heavy, and not needed to refuse a bad configuration

    def on_ready(ready: Ready) -> None:
        more = after_card(ready)
        click.echo(start_card(ready, __version__, process_age_s()) + (f"\n\n{more}" if more else ""))

    def on_draining(running: int, drain_s: float) -> None:
        click.echo(draining(running, drain_s), err=True)

    return run(config, config_path=path, on_ready=on_ready, on_draining=on_draining)


def set_up_logs(level: str) -> None:
    """On stderr from this level on; state changes reach the admin port's readers whatever is logged here."""
    logging.basicConfig(format=LOG_FORMAT)
    root = logging.getLogger()
    for handler in root.handlers:
        handler.setLevel(level.upper())
    root.setLevel(min(logging.INFO, logging.getLevelNamesMapping()[level.upper()]))
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def process_age_s() -> float | None:
    """How long ago this process started, the interpreter's own start included; None where the kernel does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None
