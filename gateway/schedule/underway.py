"""What is under way, for those who watch: who waits and for what, and who is with which replica."""

from __future__ import annotations

from itertools import islice
from typing import Final, Generic, TypeVar

from corral.gateway.schedule.dispatcher import Dispatcher
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.roster import Roster
from corral.gateway.schedule.ticket import Lease, Ticket
from corral.gateway.schedule.waiting import lane_of
from corral.model import Need, RequestKind, RunningRequest, WaitingRequest

T = TypeVar("T", bound=Ticket)

SHOWN: Final = 50
"""So many that wait and so many that run are shown at most: what is looked at often must cost little."""

_Needs = tuple[Need, tuple[str, ...]]


class Underway(Generic[T]):
    """Looks at the queue and the leases, and changes neither."""

    def __init__(self, roster: Roster[T], dispatcher: Dispatcher[T]) -> None:
        self._roster = roster
        self._dispatcher = dispatcher

    def waiting(self, now_s: float) -> tuple[WaitingRequest, ...]:
        """Those that wait longest, in order of arrival."""
        known: dict[tuple[str, tuple[str, ...], RequestKind], _Needs] = {}
        found = []
        for position, ticket in self._dispatcher.waiting.foremost(SHOWN, now_s):
            request = ticket.request
            alike = (lane_of(request), ticket.excluded, request.kind)
            needs = known.get(alike)
            if needs is None:
                needs = known[alike] = self._needs(ticket)
            waited_s = _since(ticket.arrived_at_s, now_s)
            found.append(
                WaitingRequest(ticket.sequence, request.asked, request.kind, request.rank, waited_s, position, *needs)
            )
        return tuple(found)

    def running(self, now_s: float) -> tuple[RunningRequest, ...]:
        """Those that were sent first, in order of sending."""
        first = islice(self._dispatcher.homes.items(), SHOWN)
        return tuple(_running(ticket, member.leases[ticket], now_s) for ticket, member in first)

    def _needs(self, ticket: T) -> _Needs:
        if self._dispatcher.is_frozen(ticket):
            return Need.CHANGE, ()
        serving = self._roster.serving(ticket)
        if serving is None:
            return Need.LISTS, ()
        if not serving:
            return Need.REPLICA, ()
        coming = [member for member in serving if self._is_coming(ticket, member)]
        having = [member for member in serving if self._may_take(ticket, member)]
        if not having:
            return Need.LOAD, tuple(member.id for member in coming)
        return Need.SLOT, tuple(member.id for member in serving if member in having or member in coming)

    def _may_take(self, ticket: T, member: Member[T]) -> bool:
        request = ticket.request
        if request.model is None or not self._dispatcher.places:
            return True
        return member.may_have(request.model, request.signature)

    @staticmethod
    def _is_coming(ticket: T, member: Member[T]) -> bool:
        swap = member.memory.swap
        return swap is not None and swap.key == ticket.request.key


def _running(ticket: Ticket, lease: Lease, now_s: float) -> RunningRequest:
    request, predicted = ticket.request, lease.predicted
    seconds = None
    if predicted is not None:
        seconds = round((predicted.wait_s + predicted.prefill_s + predicted.decode_s) * predicted.slowdown, 3)
    return RunningRequest(
        ticket.sequence,
        request.asked,
        request.kind,
        request.rank,
        lease.replica.id,
        _since(lease.sent_at_s, now_s),
        _since(ticket.arrived_at_s, lease.sent_at_s),
        lease.committed,
        seconds,
    )


def _since(at_s: float, now_s: float) -> float:
    return round(max(0.0, now_s - at_s), 3)
