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
from corral.errors import OperatorError
from corral.gateway.cli.card import Ready, show
from corral.gateway.cli.messages import draining, still_draining
from corral.gateway.cli.options import is_debug, no_garbage
from corral.gateway.config.sources import From, Settled, Sources
from corral.gateway.sockets import both_listening
from corral.model import Snapshot

LESS_S: Final = 1.0
SAME_S: Final = 10.0
"""Between two lines about a stop: where less is left to wait for, and where nothing has changed."""
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


def serve_config(
    sources: Sources, *, log_level: str, watches_file: bool = False, after_card: Callable[[Ready], str]
) -> int:
    """Serve what ``sources`` say until stopped; ``after_card`` gives what is printed below the card."""
    set_up_logs("debug" if is_debug() else log_level)
    settled = sources.settle()
    for text in settled.warnings:
        logging.getLogger("corral.gateway").warning('environment text="%s"', text)
    farewell = Farewell(time.monotonic)

    def on_ready(ready: Ready) -> None:
        farewell.snapshot = ready.snapshot
        show(ready, __version__, process_age_s(), after_card(ready))

    try:
        with both_listening(settled.config, os.environ) as sockets:
            with no_garbage():
                from corral.gateway.app import run  # heavy, and not needed to refuse a bad configuration

            return run(
                sources, settled, sockets, watches_file=watches_file, on_ready=on_ready, on_draining=farewell.tell
            )
    except OperatorError as error:
        if (hint := _who_said_so(str(error), settled)) is None:
            raise
        raise OperatorError(f"{error}\n  {hint}") from error


def _who_said_so(error: str, settled: Settled) -> str | None:
    """An address that a variable gave is hard to guess where from."""
    origin = settled.origin("listen")
    if origin.kind is not From.ENVIRONMENT or str(settled.config.listen) not in error:
        return None
    before = "" if origin.name == "CORRAL_LISTEN" else "; --listen or CORRAL_LISTEN goes before it"
    return f"{origin} says to listen there{before}"


class Farewell:
    """Says what a stop waits for: at once, when there is less of it, and from time to time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.snapshot: Callable[[], Snapshot] | None = None
        self._clock = clock
        self._said: tuple[float, int] | None = None
        """When last, and how many requests ran."""

    def tell(self, running: int, left_s: float) -> None:
        """Called again and again while requests run."""
        now_s = self._clock()
        if self._said is not None:
            ago_s, before = now_s - self._said[0], self._said[1]
            if ago_s < (LESS_S if running < before else SAME_S):
                return
        say = draining if self._said is None else still_draining
        self._said = now_s, running
        click.echo(say(running, left_s, self._places()), err=True)

    def _places(self) -> dict[str, int]:
        replicas = () if self.snapshot is None else self.snapshot().replicas
        return {replica.id: replica.inflight for replica in replicas if replica.inflight}


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
