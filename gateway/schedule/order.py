"""The order of service within one lane: by class, then between tenants, then by arrival or by cost."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from enum import StrEnum
from operator import attrgetter
from typing import Generic, TypeVar

from corral.gateway.schedule.fairness import Shares
from corral.gateway.schedule.ticket import Ticket

T = TypeVar("T", bound=Ticket)

WAIT_WORTH = 0.1
"""GPU-seconds that one second of waiting is worth where the cheapest goes first."""

_sequence = attrgetter("sequence")


class QueueOrder(StrEnum):
    """What decides between requests of one class whose tenants are equals."""

    FCFS = "fcfs"
    """First come, first served."""
    WSPT = "wspt"
    """The cheapest first, the longer they wait the sooner; those that wait too long before all others, first come."""


class Line(Generic[T]):
    """Tickets in order of arrival, where asked also by cost."""

    __slots__ = ("_costs", "_keys", "tickets")

    def __init__(self, *, by_cost: bool) -> None:
        self.tickets: list[T] = []
        self._costs: list[tuple[float, int, T]] | None = [] if by_cost else None
        self._keys: dict[int, float] = {}
        """By sequence: a ticket's cost may be predicted anew while it waits, its place stays."""

    def add(self, ticket: T) -> None:
        if self.tickets and self.tickets[-1].sequence > ticket.sequence:
            insort(self.tickets, ticket, key=_sequence)
        else:
            self.tickets.append(ticket)
        if self._costs is not None:
            key = self._keys[ticket.sequence] = ticket.cost_s + WAIT_WORTH * ticket.arrived_at_s
            insort(self._costs, (key, ticket.sequence, ticket))

    def remove(self, ticket: T) -> None:
        del self.tickets[bisect_left(self.tickets, ticket.sequence, key=_sequence)]
        if self._costs is not None:
            del self._costs[bisect_left(self._costs, (self._keys.pop(ticket.sequence), ticket.sequence))]

    def head(self, late_before_s: float) -> tuple[bool, float, int, T]:
        """Whose turn it is; of several heads the least goes first. Late: those that arrived before that instant."""
        oldest = self.tickets[0]
        if self._costs is None or oldest.arrived_at_s < late_before_s:
            return (False, 0.0, oldest.sequence, oldest)
        return (True, *self._costs[0])


class Rank(Generic[T]):
    """Those of one class: all of them, and those of each tenant."""

    __slots__ = ("_by_cost", "everyone", "tenants")

    def __init__(self, *, by_cost: bool) -> None:
        self._by_cost = by_cost
        self.everyone: Line[T] = Line(by_cost=by_cost)
        self.tenants: dict[str, Line[T]] = {}

    def add(self, ticket: T) -> None:
        self.everyone.add(ticket)
        tenant = ticket.request.tenant
        line = self.tenants.get(tenant)
        if line is None:
            line = self.tenants[tenant] = Line(by_cost=self._by_cost)
        line.add(ticket)

    def remove(self, ticket: T) -> None:
        self.everyone.remove(ticket)
        tenant = ticket.request.tenant
        line = self.tenants[tenant]
        line.remove(ticket)
        if not line.tickets:
            del self.tenants[tenant]

    def head(self, shares: Shares | None, late_before_s: float) -> T:
        """The first of those whose tenants are not ahead of others in this class; no shares: of all."""
        first = self.everyone.head(late_before_s)[-1]
        if shares is None or len(self.tenants) == 1:
            return first
        limit_s = shares.limit_s(self.tenants)
        if shares.had_s[first.request.tenant] <= limit_s:
            return first
        if not self._by_cost:
            return self._oldest(shares, limit_s) or first
        lines = self._equals(shares, limit_s)
        return min([line.head(late_before_s) for line in lines])[-1]

    def oldest(self, shares: Shares | None, limit_s: float) -> T | None:
        """The one that waits longest of those whose tenants had no more than ``limit_s``."""
        first = self.everyone.tickets[0]
        if shares is None or shares.had_s[first.request.tenant] <= limit_s:
            return first
        return self._oldest(shares, limit_s)

    def _oldest(self, shares: Shares, limit_s: float) -> T | None:
        return min([line.tickets[0] for line in self._equals(shares, limit_s)], key=_sequence, default=None)

    def _equals(self, shares: Shares, limit_s: float) -> list[Line[T]]:
        had_s = shares.had_s
        return [line for tenant, line in self.tenants.items() if had_s[tenant] <= limit_s]


class Turns(Generic[T]):
    """Tickets by class. ``shares``: None where tenants do not matter."""

    def __init__(self, order: QueueOrder, age_s: float, shares: Shares | None, tickets: Iterable[T] = ()) -> None:
        self._by_cost = order is QueueOrder.WSPT
        self._age_s = age_s
        self._shares = shares
        self._ranks: dict[int, Rank[T]] = {}
        for ticket in tickets:
            self.add(ticket)

    def add(self, ticket: T) -> None:
        number = ticket.request.rank
        rank = self._ranks.get(number)
        if rank is None:
            rank = self._ranks[number] = Rank(by_cost=self._by_cost)
        rank.add(ticket)

    def remove(self, ticket: T) -> None:
        number = ticket.request.rank
        rank = self._ranks[number]
        rank.remove(ticket)
        if not rank.everyone.tickets:
            del self._ranks[number]

    def head(self, now_s: float, cut_s: float) -> T | None:
        """Whose turn it is now; None: there is nobody. ``cut_s``: who waited longer is late."""
        if not self._ranks:
            return None
        if len(self._ranks) == 1:
            (rank,) = self._ranks.values()
            return rank.head(self._shares, now_s - cut_s)
        return self._between_classes(now_s, cut_s)

    def _between_classes(self, now_s: float, cut_s: float) -> T:
        """A class comes up by one with every ``age_s`` that its oldest waits; a tenant ahead of others ages not.

        Otherwise who floods would, by having many that wait for long, come before everybody else.
        """
        shares = self._shares
        limit_s = 0.0 if shares is None else min(shares.limit_s(rank.tenants) for rank in self._ranks.values())
        best: tuple[int, int, Rank[T], T | None] | None = None
        for number, rank in self._ranks.items():
            oldest = rank.oldest(shares, limit_s)
            risen = number if oldest is None else self._risen(number, now_s - oldest.arrived_at_s)
            place = (risen, (oldest or rank.everyone.tickets[0]).sequence)
            if best is None or place < best[:2]:
                best = (*place, rank, oldest if risen < number else None)
        assert best is not None
        return best[3] or best[2].head(shares, now_s - cut_s)

    def _risen(self, number: int, waited_s: float) -> int:
        return max(min(number, 0), number - int(max(0.0, waited_s) / self._age_s)) if self._age_s > 0 else number
