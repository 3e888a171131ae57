"""Reading the configuration again while the gateway runs: one at a time, and all of it or nothing."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from corral.errors import OperatorError
from corral.gateway.config import NEEDS_RESTART, Config, build_policy, diff_config
from corral.gateway.config.problems import InvalidConfig, Problem
from corral.gateway.config.sources import Settled, Sources
from corral.model import Policy

log: Final = logging.getLogger("corral.gateway")

LOGGED_CHARS: Final = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one reading."""

    used: bool
    """The gateway goes by it now. False: it was only looked at, or refused."""
    changes: tuple[str, ...] = ()
    """A line for each value that is, or would be, another one."""
    needs_restart: tuple[str, ...] = ()
    """Keys whose values in the file differ from those that the gateway was started with, and count after a restart."""
    error: str | None = None
    """Why it is refused; the old configuration stays."""
    problems: tuple[Problem, ...] = ()
    """Place by place, where the file itself is wrong."""
    policy_path: Path | None = None
    """The policy's file that a refused one names: what is wrong may be in there."""


class Changeable(Protocol):
    """What runs by the configuration."""

    async def check(self, config: Config) -> None:
        """Raises OperatorError where this machine cannot carry it out. Changes nothing."""
        ...

    async def carry_out(self, config: Config) -> None:
        """Begin what can fail. Raises OperatorError, and then nothing has changed."""
        ...

    def use(self, config: Config, policy: Policy) -> None:
        """All the rest, at once."""
        ...

    def reloaded(self, *, ok: bool) -> None:
        """Counted."""
        ...


class Reloader:
    """Built by ``app.py``."""

    def __init__(self, sources: Sources, settled: Settled, runs: Changeable) -> None:
        self._sources = sources
        self._runs = runs
        self._started_with = settled.config
        self._one_at_a_time = asyncio.Lock()
        self.settled = settled
        """What the gateway goes by now."""

    @property
    def has_file(self) -> bool:
        return self._sources.path is not None

    @property
    def needs_restart(self) -> tuple[str, ...]:
        return self._of_the_start(self.settled.config)

    async def reload(self, *, dry_run: bool = False) -> Outcome:
        """Read everything anew and use it. A bad file, or one that this machine cannot carry out, changes nothing.

        With ``dry_run`` nothing changes in any case.
        """
        async with self._one_at_a_time:
            try:
                settled = await asyncio.to_thread(self._sources.settle)
                policy = await asyncio.to_thread(build_policy, settled.config, settled.path)
                await (self._runs.check if dry_run else self._runs.carry_out)(settled.config)
            except OperatorError as error:
                return self._refused(error, dry_run)
            changes = tuple(diff_config(self.settled.config, settled.config))
            needs_restart = self._of_the_start(settled.config)
            if not dry_run:
                self.settled = settled
                self._runs.use(settled.config, policy)
                self._runs.reloaded(ok=True)
                log.info("reloaded changes=%d", len(changes))
                for change in changes:
                    log.info("reloaded_change %s", change)
            return Outcome(not dry_run, changes, needs_restart)

    def _refused(self, error: OperatorError, dry_run: bool) -> Outcome:
        if not dry_run:
            self._runs.reloaded(ok=False)
            problems = "; ".join(line.strip() for line in str(error).splitlines())
            log.error('reload_refused reason="the old configuration stays" error="%s"', _short(problems))
        if not isinstance(error, InvalidConfig):
            return Outcome(False, error=str(error))
        return Outcome(False, error=str(error), problems=error.problems, policy_path=error.policy_path)

    def _of_the_start(self, config: Config) -> tuple[str, ...]:
        return tuple(key for key in sorted(NEEDS_RESTART) if getattr(config, key) != getattr(self._started_with, key))


def _short(problems: str) -> str:
    """A line of the log that can be read, and kept: a file may have thousands of problems."""
    return problems if len(problems) <= LOGGED_CHARS else f"{problems[:LOGGED_CHARS]} … (corral reload says all)"
