"""Restarts replicas one at a time, each only when the one before serves again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from corral.gateway.run.keeper import Keeper
from corral.model import ProcessState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One replica's restart."""

    id: str
    why: str
    for_plan: bool
    """Only if it still runs from an old plan when its turn has come."""


class Rolling:
    """The queue of restarts."""

    def __init__(self) -> None:
        self._turns: deque[_Turn] = deque()
        self._current: tuple[str, int] | None = None
        """The replica whose turn it is, and how often it had been started before."""

    @property
    def left(self) -> tuple[str, ...]:
        """The replicas whose turn is not over, in order."""
        first = () if self._current is None else (self._current[0],)
        return (*first, *(turn.id for turn in self._turns))

    def add(self, ids: Iterable[str], why: str, *, for_plan: bool = False) -> None:
        """Line up those that are not in the line yet."""
        waiting = {turn.id for turn in self._turns}
        self._turns.extend(_Turn(id, why, for_plan) for id in ids if id not in waiting)

    def clear(self) -> None:
        self._turns.clear()
        self._current = None

    def tick(self, keepers: Mapping[str, Keeper], now_s: float) -> None:
        """Go on, if the one whose turn it was is through."""
        while self._current is None or self._is_through(keepers, *self._current):
            self._current = None
            if not self._turns:
                return
            turn = self._turns.popleft()
            keeper = keepers.get(turn.id)
            if keeper is None or keeper.leaving or (turn.for_plan and not keeper.awaits_plan):
                continue
            if not keeper.record.wanted:
                continue  # the operator stopped it
            self._current = turn.id, keeper.record.spawns
            keeper.do(keeper.record.restart(now_s, turn.why))

    def _is_through(self, keepers: Mapping[str, Keeper], id: str, spawns: int) -> bool:
        keeper = keepers.get(id)
        if keeper is None:
            return True
        record = keeper.record
        if record.state is ProcessState.FAILED and self._turns:
            left = ",".join(turn.id for turn in self._turns)
            log.error('rolling_restart_stopped replica=%s left="%s" why="%s"', id, left, record.reason)
            self._turns.clear()
        if record.state in (ProcessState.FAILED, ProcessState.STOPPED):
            return True
        return record.state is ProcessState.RUNNING and record.spawns > spawns
