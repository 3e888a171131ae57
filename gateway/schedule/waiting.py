"""The tickets that wait: one lane per model, each in order of arrival, so that no model waits for another."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from operator import attrgetter
from typing import Generic, TypeVar

from corral.gateway.schedule.ticket import Ticket
from corral.model import RequestKind, RouteRequest

T = TypeVar("T", bound=Ticket)

_sequence = attrgetter("sequence")


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many requests may wait, and how long each."""

    max_requests: int = 512
    max_wait_s: float = 300.0


STORE_LANE = "store"
"""Those that change the store wait here. No model is called so: a normalised name has a tag."""


def lane_of(request: RouteRequest) -> str:
    """The key of the lane that a request waits in: its model."""
    return STORE_LANE if request.kind is RequestKind.STORE else request.model or ""


class Lane(Generic[T]):
    """Those that wait for one model, first come first."""

    def __init__(self) -> None:
        self.tickets: list[T] = []
        self.odd = 0
        """How many of them may find a replica where those before them find none, see :meth:`is_odd`."""

    @staticmethod
    def is_odd(ticket: T) -> bool:
        return bool(ticket.excluded) or ticket.request.kind is not RequestKind.INFERENCE


class Waiting(Generic[T]):
    """All lanes. An empty lane is deleted: names of models come from clients, their number has no bound."""

    def __init__(self) -> None:
        self.lanes: dict[str, Lane[T]] = {}
        self.total = 0

    def add(self, ticket: T) -> None:
        """Put it where its order of arrival says, which for one that comes back is not the end."""
        key = lane_of(ticket.request)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane()
        if lane.tickets and lane.tickets[-1].sequence > ticket.sequence:
            insort(lane.tickets, ticket, key=_sequence)
        else:
            lane.tickets.append(ticket)
        lane.odd += Lane.is_odd(ticket)
        self.total += 1
        ticket.queued = True

    def remove(self, ticket: T) -> None:
        key = lane_of(ticket.request)
        lane = self.lanes[key]
        del lane.tickets[bisect_left(lane.tickets, ticket.sequence, key=_sequence)]
        lane.odd -= Lane.is_odd(ticket)
        self.total -= 1
        ticket.queued = False
        if not lane.tickets:
            del self.lanes[key]

    def __iter__(self) -> Iterator[T]:
        """All of them, in order of arrival."""
        everyone = [ticket for lane in self.lanes.values() for ticket in lane.tickets]
        return iter(sorted(everyone, key=_sequence))

    def arrived_before(self, instant_s: float) -> list[T]:
        """Those that arrived before ``instant_s``, in order of arrival."""
        return [ticket for ticket in self if ticket.arrived_at_s < instant_s]

    def oldest_s(self) -> float | None:
        """When the one that waits longest arrived."""
        return min((ticket.arrived_at_s for lane in self.lanes.values() for ticket in lane.tickets), default=None)


class ServiceTime:
    """How long a request holds its slot, a moving average; what ``Retry-After`` is estimated from."""

    _UNKNOWN_S = 5.0
    _SHARE = 0.1
    _LONGEST_S = 600

    def __init__(self) -> None:
        self._mean_s: float | None = None

    def observe(self, seconds: float) -> None:
        self._mean_s = seconds if self._mean_s is None else self._mean_s + self._SHARE * (seconds - self._mean_s)

    def retry_after_s(self, ahead: int, slots: int) -> int:
        """Whole seconds until a slot is free for one more behind ``ahead`` others, with ``slots`` serving them."""
        mean_s = self._UNKNOWN_S if self._mean_s is None else self._mean_s
        return min(self._LONGEST_S, max(1, ceil((ahead + 1) * mean_s / max(1, slots))))
