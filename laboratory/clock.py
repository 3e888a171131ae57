"""Virtual time: what is due, in order of its time, and of the order in which it was asked for where times are equal."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[], None]


class Clock:
    """Stands still while something happens, then jumps to the next thing that is due."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._order = 0

    def at(self, when_s: float, action: Action) -> None:
        """Have it called then; at once, after all that is due now, where that has passed."""
        self._order += 1
        heappush(self._due, (max(when_s, self.now_s), self._order, action))

    def run(self, is_over: Callable[[], bool], until_s: float) -> None:
        """Go on until it is over, nothing is due any more, or the time is past."""
        while self._due and not is_over():
            when_s, _, action = heappop(self._due)
            if when_s > until_s:
                return
            self.now_s = when_s
            action()


class Alarm:
    """One thing that is due at a time which changes: only the last setting counts."""

    def __init__(self, clock: Clock, action: Action) -> None:
        self._clock = clock
        self._action = action
        self._due_s: float | None = None
        self._asked_s: set[float] = set()
        """Times for which the clock has a call already."""

    def set(self, due_s: float | None) -> None:
        self._due_s = due_s
        if due_s is not None and due_s not in self._asked_s:
            self._asked_s.add(due_s)
            self._clock.at(due_s, lambda: self._ring(due_s))

    def _ring(self, due_s: float) -> None:
        self._asked_s.discard(due_s)
        if self._due_s == due_s:
            self._due_s = None
            self._action()
