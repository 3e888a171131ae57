"""A request on its way, and what measures how long deciding about requests takes."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from corral.laboratory.replica import Work
from corral.laboratory.types import Arrival, Outcome

R = TypeVar("R")


class Request:
    """One arrival from its coming to its end, on whatever replicas."""

    __slots__ = ("outcome", "work")

    def __init__(self, arrival: Arrival) -> None:
        self.outcome = Outcome(arrival)
        self.work: Work | None = None
        """What it is on the replica that has it now."""

    @property
    def arrival(self) -> Arrival:
        return self.outcome.arrival


class Stopwatch:
    """Adds up real seconds."""

    def __init__(self) -> None:
        self.total_s = 0.0

    def time(self, call: Callable[[], R]) -> R:
        began_s = perf_counter()
        try:
            return call()
        finally:
            self.total_s += perf_counter() - began_s
