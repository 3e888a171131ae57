"""The tickets that wait: one lane per model and options, so that no model waits for another, each in its order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain, takewhile
from math import ceil
from operator import attrgetter
from typing import Generic, TypeVar

from corral.gateway.schedule.fairness import Shares
from corral.gateway.schedule.order import QueueOrder, Turns
from corral.gateway.schedule.ticket import Ticket
from corral.model import RequestKind, RouteRequest

__all__ = ["STORE_LANE", "Lane", "QueueLimits", "QueueOrder", "ServiceTime", "Waiting", "lane_of"]

T = TypeVar("T", bound=Ticket)

_sequence = attrgetter("sequence")


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many requests may wait and how long each, and in which order they are served."""

    max_requests: int = 512
    max_wait_s: float = 300.0
    order: str = QueueOrder.FCFS
    """A value of :class:`QueueOrder`."""
    fair: bool = True
    """Whether a tenant that had much more than others goes after them."""
    quantum_s: float = 20.0
    """How many GPU-seconds are not yet much more, at most."""
    age_s: float = 30.0
    """Who waits so long comes up by one class."""


STORE_LANE = "store"
"""Those that change the store wait here. No model is called so: a normalised name has a tag."""


def lane_of(request: RouteRequest) -> str:
    """The key of the lane that a request waits in: what it needs in memory."""
    return STORE_LANE if request.kind is RequestKind.STORE else request.key


class Lane(Generic[T]):
    """Those that wait for one model."""

    def __init__(self, limits: QueueLimits, shares: Shares) -> None:
        self.tickets: list[T] = []
        """In order of arrival."""
        self._odd: dict[int, T] = {}
        """By sequence: those that may find a replica where those before them find none, see :meth:`is_odd`."""
        self._shares = shares
        self.use(limits)

    @property
    def odd(self) -> int:
        """How many of them may find a replica where those before them find none."""
        return len(self._odd)

    @staticmethod
    def is_odd(ticket: T) -> bool:
        request = ticket.request
        return bool(ticket.excluded or request.prefer) or request.kind is not RequestKind.INFERENCE

    def use(self, limits: QueueLimits) -> None:
        self._order, self._age_s, self._fair = QueueOrder(limits.order), limits.age_s, limits.fair
        self.turns = self._turns(self.tickets)

    def add(self, ticket: T) -> None:
        if self.tickets and self.tickets[-1].sequence > ticket.sequence:
            insort(self.tickets, ticket, key=_sequence)
        else:
            self.tickets.append(ticket)
        if self.is_odd(ticket):
            self._odd[ticket.sequence] = ticket
        self.turns.add(ticket)

    def remove(self, ticket: T) -> None:
        del self.tickets[bisect_left(self.tickets, ticket.sequence, key=_sequence)]
        self._odd.pop(ticket.sequence, None)
        self.turns.remove(ticket)

    def odd_in_turn(self, now_s: float, cut_s: float) -> Iterator[T]:
        """The odd ones that still wait when their turn comes."""
        return (ticket for ticket in self.in_turn(list(self._odd.values()), now_s, cut_s) if ticket.queued)

    def in_turn(self, tickets: list[T], now_s: float, cut_s: float) -> Iterator[T]:
        """These in order of service, as if each were served without being charged for it."""
        left = self._turns(tickets)
        while (ticket := left.head(now_s, cut_s)) is not None:
            left.remove(ticket)
            yield ticket

    def _turns(self, tickets: list[T]) -> Turns[T]:
        return Turns(self._order, self._age_s, self._shares if self._fair else None, tickets)


class Waiting(Generic[T]):
    """All lanes. An empty lane is deleted: names of models come from clients, their number has no bound.

    It is told of every lease too (:meth:`sent`, :meth:`ended`): who was given much goes after others.
    """

    def __init__(self, limits: QueueLimits | None = None, service: ServiceTime | None = None) -> None:
        self.limits = limits or QueueLimits()
        self.lanes: dict[str, Lane[T]] = {}
        self.total = 0
        self.shares = Shares(self.limits.quantum_s)
        self._service = service or ServiceTime()
        self._charged_s: dict[T, float] = {}
        """By ticket in flight."""

    def use(self, limits: QueueLimits) -> None:
        """Go on with other limits."""
        self.limits = limits
        self.shares.most_quantum_s = limits.quantum_s
        for lane in self.lanes.values():
            lane.use(limits)

    def add(self, ticket: T, now_s: float | None = None) -> None:
        """Let it wait. Its place is by when it arrived, which for one that comes back is not the end."""
        self.shares.waits(ticket.request.tenant)
        self._put(ticket)

    def _put(self, ticket: T) -> None:
        key = lane_of(ticket.request)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(self.limits, self.shares)
        lane.add(ticket)
        self.total += 1
        ticket.queued = True

    def remove(self, ticket: T, now_s: float | None = None) -> None:
        """It waits no more, and is not sent."""
        self._take(ticket)
        self.shares.waits_no_more(ticket.request.tenant)

    def move(self, ticket: T, request: RouteRequest) -> None:
        """It goes on waiting, in the lane of this request, as if it always had."""
        self._take(ticket)
        ticket.request = request
        self._put(ticket)

    def _take(self, ticket: T) -> None:
        key = lane_of(ticket.request)
        lane = self.lanes[key]
        lane.remove(ticket)
        self.total -= 1
        ticket.queued = False
        if not lane.tickets:
            del self.lanes[key]

    def is_awaited(self, model: str) -> bool:
        """Whether anybody waits for the model, with whatever options."""
        others = f"{model} "
        return any(key == model or key.startswith(others) for key in self.lanes)

    # -- whose turn it is -----------------------------------------------------------------------------------------

    def next_of(self, key: str, now_s: float) -> T | None:
        """Whose turn it is in that lane; None: nobody waits there."""
        lane = self.lanes.get(key)
        return None if lane is None else lane.turns.head(now_s, self._service.cut_s)

    def odd_in_turn(self, key: str, now_s: float) -> Iterator[T]:
        """The odd ones of a lane in order of service, which is quick where they are few.

        Any of them may be removed meanwhile; who is added meanwhile is not among them.
        """
        lane = self.lanes.get(key)
        return iter(()) if lane is None else lane.odd_in_turn(now_s, self._service.cut_s)

    def foremost(self, at_most: int, now_s: float) -> list[tuple[int, T]]:
        """Those that wait longest, in order of arrival, each with its place among those of them in its lane."""
        front = chain.from_iterable(lane.tickets[:at_most] for lane in self.lanes.values())
        by_lane: dict[str, list[T]] = {}
        for ticket in nsmallest(at_most, front, key=_sequence):
            by_lane.setdefault(lane_of(ticket.request), []).append(ticket)
        placed = [
            (place, ticket)
            for key, tickets in by_lane.items()
            for place, ticket in enumerate(self.lanes[key].in_turn(tickets, now_s, self._service.cut_s), 1)
        ]
        return sorted(placed, key=lambda each: each[1].sequence)

    # -- what tenants were given ----------------------------------------------------------------------------------

    def sent(self, ticket: T) -> None:
        """It was given a lease; its tenant is charged what it is predicted to cost."""
        tenant = ticket.request.tenant
        self._charged_s[ticket] = ticket.cost_s
        self.shares.began(tenant, ticket.cost_s)
        if ticket.queued:
            self.remove(ticket)

    def ended(self, ticket: T, cost_s: float | None = None) -> None:
        """Its lease was released, and it has cost so much; None: not known, the prediction stands."""
        charged_s = self._charged_s.pop(ticket, None)
        if charged_s is not None:
            self.shares.ended(ticket.request.tenant, charged_s, cost_s)

    def charge(self, tenant: str, seconds: float) -> None:
        """Hold something else against an active tenant, as a load that it caused."""
        self.shares.charge(tenant, seconds)

    # -- all of them ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[T]:
        """In order of arrival."""
        everyone = [ticket for lane in self.lanes.values() for ticket in lane.tickets]
        return iter(sorted(everyone, key=_sequence))

    def arrived_before(self, instant_s: float) -> list[T]:
        """Those that arrived before ``instant_s``, in order of arrival: looked for from the front of each lane."""
        late = [takewhile(lambda each: each.arrived_at_s < instant_s, lane.tickets) for lane in self.lanes.values()]
        return sorted(chain.from_iterable(late), key=_sequence)

    def oldest_s(self) -> dict[str, float]:
        """When the one that waits longest arrived, by lane."""
        return {key: min(ticket.arrived_at_s for ticket in lane.tickets) for key, lane in self.lanes.items()}


class ServiceTime:
    """How long a request holds its slot; what ``Retry-After`` is estimated from, and who has waited too long."""

    _UNKNOWN_S = 5.0
    _SHARE = 0.1
    _LONGEST_S = 600
    _LEAST_CUT_S = 30.0
    _CUT = 6
    _REMEMBERED = 101

    def __init__(self) -> None:
        self._mean_s: float | None = None
        self._last_s: deque[float] = deque()
        self._sorted_s: list[float] = []

    def observe(self, seconds: float) -> None:
        self._mean_s = seconds if self._mean_s is None else self._mean_s + self._SHARE * (seconds - self._mean_s)
        self._last_s.append(seconds)
        insort(self._sorted_s, seconds)
        if len(self._last_s) > self._REMEMBERED:
            del self._sorted_s[bisect_left(self._sorted_s, self._last_s.popleft())]

    @property
    def cut_s(self) -> float:
        """Who waited longer goes first, whatever he costs: six times the median of the last requests, 30 s at least."""
        median_s = self._sorted_s[len(self._sorted_s) // 2] if self._sorted_s else 0.0
        return max(self._LEAST_CUT_S, self._CUT * median_s)

    def retry_after_s(self, ahead: int, slots: int) -> int:
        """Whole seconds until a slot is free for one more behind ``ahead`` others, with ``slots`` serving them."""
        mean_s = self._UNKNOWN_S if self._mean_s is None else self._mean_s
        return min(self._LONGEST_S, max(1, ceil((ahead + 1) * mean_s / max(1, slots))))
