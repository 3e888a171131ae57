"""The dispatcher: matches the tickets that wait with the replicas that have room for them.

Rules of this file:

1. *Late binding.* A request that runs a model is sent only when a slot for that model is free on a replica that may
   take it; until then it waits here, where it can still go anywhere.
2. *Nothing that waits could be sent.* Whoever frees capacity or changes who may serve whom drains the lanes concerned,
   so a new request may be tried by itself without overtaking anyone.
3. *First come, first served* within a lane, by the order of first arrival, also for requests that come back from a
   failed attempt. One that finds no replica never holds up those behind it that do.
4. The policy is foreign code: whatever it does, no request is lost by it.
"""

from __future__ import annotations

from enum import Enum, auto
from random import Random
from typing import Generic, TypeVar

from corral.errors import Refusal
from corral.gateway.schedule.effects import Effect, RefreshTags, Refuse, Send
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.roster import LEADER_KINDS, Roster
from corral.gateway.schedule.ticket import Ticket
from corral.gateway.schedule.waiting import STORE_LANE, Lane, QueueLimits, ServiceTime, Waiting, lane_of
from corral.model import Decision, Policy, RequestKind

T = TypeVar("T", bound=Ticket)

ASK_S = 2.0
"""A request whose model no replica is known to have waits this long at most for the replicas' lists of models."""


class Placing(Enum):
    """What became of an attempt to place a ticket."""

    DONE = auto()
    """Sent or refused."""
    BUSY = auto()
    """Those that could serve it have no room."""
    ASKING = auto()
    """It is not known yet who could."""


class Dispatcher(Generic[T]):
    """Owns the queue and the leases. Methods add what they want done to ``effects``."""

    def __init__(self, roster: Roster[T], policy: Policy, limits: QueueLimits, rng: Random) -> None:
        self.policy = policy
        self.policy_error: str | None = None
        self.limits = limits
        self.waiting: Waiting[T] = Waiting()
        self.homes: dict[T, Member[T]] = {}
        """Where each ticket that holds a lease was sent."""
        self.service = ServiceTime()
        self.stopping = False
        self._roster = roster
        self._rng = rng
        self._asking: set[str] = set()
        """Lanes in which some wait for the replicas' lists of models."""
        self._asked_at_s: float | None = None
        """Since when an answer to :class:`RefreshTags` is awaited."""

    def admit(self, ticket: T, now_s: float, effects: list[Effect[T]]) -> None:
        """Send a new ticket, let it wait, or refuse it."""
        placing = self._place(ticket, now_s, effects)
        if placing is Placing.DONE:
            return
        if self.waiting.total >= self.limits.max_requests:
            self.refuse(ticket, Refusal.QUEUE_FULL, effects)
            return
        self.waiting.add(ticket)
        if placing is Placing.ASKING:
            self._ask(lane_of(ticket.request), now_s, effects)

    def readmit(self, ticket: T, now_s: float, effects: list[Effect[T]]) -> None:
        """Put a ticket whose attempt failed back to its place; a full queue is no reason to refuse it."""
        self.waiting.add(ticket)
        self.drain(lane_of(ticket.request), now_s, effects)
        if ticket.queued and self.stopping:
            self.refuse(ticket, Refusal.STOPPING, effects)

    def drain(self, key: str, now_s: float, effects: list[Effect[T]]) -> None:
        """Place those in one lane that can be placed now, first come first."""
        lane = self.waiting.lanes.get(key)
        if lane is None:
            return
        stuck = Placing.DONE
        for ticket in tuple(lane.tickets):
            odd = Lane.is_odd(ticket)
            if stuck is Placing.BUSY and not odd:
                if not lane.odd:
                    break
                continue
            placing = self._place(ticket, now_s, effects)
            if placing is Placing.DONE:
                self.waiting.remove(ticket)
                continue
            if placing is Placing.ASKING:
                self._ask(key, now_s, effects)
            if not odd:
                stuck = placing

    def drain_all(self, now_s: float, effects: list[Effect[T]]) -> None:
        for key in tuple(self.waiting.lanes):
            self.drain(key, now_s, effects)

    def settle_asking(self, now_s: float, effects: list[Effect[T]]) -> None:
        """Go on with those for whom the replicas' lists are in, or late."""
        if not self._asking:
            return
        if self._asked_at_s is not None and self._is_answered(self._asked_at_s, now_s):
            self._asked_at_s = None
        lanes, self._asking = self._asking, set()
        for key in sorted(lanes):
            self.drain(key, now_s, effects)

    def expire(self, now_s: float, effects: list[Effect[T]]) -> None:
        for ticket in self.waiting.arrived_before(now_s - self.limits.max_wait_s):
            self.refuse(ticket, Refusal.WAITED_TOO_LONG, effects)

    def refuse(self, ticket: T, refusal: Refusal, effects: list[Effect[T]]) -> None:
        retry_after_s = None
        if refusal in (Refusal.QUEUE_FULL, Refusal.WAITED_TOO_LONG):
            retry_after_s = self._retry_after_s(ticket)
        if ticket.queued:
            self.waiting.remove(ticket)
        effects.append(Refuse(ticket, refusal, retry_after_s))

    def _place(self, ticket: T, now_s: float, effects: list[Effect[T]]) -> Placing:
        """Send the ticket if it can be sent now, refuse it if nobody can ever serve it. Leaves the queue as it is."""
        serving = self._roster.serving(ticket)
        if serving is None:
            if not self._is_answered(ticket.submitted_at_s, now_s):
                return Placing.ASKING
            ticket.asked = True
            serving = self._roster.serving(ticket) or []
        if not serving and not self.stopping and self._roster.is_coming(ticket):
            return Placing.BUSY
        if not serving:
            refusal = Refusal.EXHAUSTED if ticket.excluded else Refusal.NO_REPLICA
            effects.append(Refuse(ticket, refusal, None))
            return Placing.DONE
        request = ticket.request
        if request.kind is RequestKind.INFERENCE:
            model = request.model
            serving = [
                member
                for member in serving
                if model is None or member.inflight.get(model, 0) < member.slots or member.has_room(model)
            ]
            if not serving:
                return Placing.BUSY
        elif request.kind is RequestKind.STORE and self._roster.store_ticket is not None:
            return Placing.BUSY
        self._send(ticket, serving, now_s, effects)
        return Placing.DONE

    def _send(self, ticket: T, free: list[Member[T]], now_s: float, effects: list[Effect[T]]) -> None:
        member, decision = self._choose(ticket, free)
        lease = self._roster.lease(member, ticket, now_s)
        self.homes[ticket] = member
        ticket.lease, ticket.decision, ticket.asked = lease, decision, True
        effects.append(Send(ticket, lease, decision))

    def _choose(self, ticket: T, free: list[Member[T]]) -> tuple[Member[T], Decision]:
        request = ticket.request
        if request.kind in LEADER_KINDS:
            return free[0], Decision(free[0].id, "leader")
        model = request.model
        problem = ""
        try:
            decision = self.policy.choose(request, [member.view(model) for member in free], self._rng)
            member = self._roster.members.get(decision.replica_id)
            if member not in free:
                member, problem = None, f"chose {decision.replica_id!r}, which it was not offered"
        except Exception as error:  # a user's policy may raise anything; the request must not be lost by it
            member, problem = None, f"raised {error!r}"
        if member is None:
            self.policy_error = problem
            member = self._rng.choice(free)
            decision = Decision(member.id, "policy failed")
        if member.shut:
            decision = Decision(member.id, "last resort")
        return member, decision

    def _is_answered(self, asked_at_s: float, now_s: float) -> bool:
        """Whether every usable replica's list was read since then, or it has been awaited long enough."""
        return now_s - asked_at_s >= ASK_S or self._roster.read_since_s() >= asked_at_s

    def _ask(self, key: str, now_s: float, effects: list[Effect[T]]) -> None:
        """Have the lists read; those who ask while they are being read share that reading or the next."""
        self._asking.add(key)
        if self._asked_at_s is None:
            self._asked_at_s = now_s
            effects.append(RefreshTags())

    def _retry_after_s(self, ticket: T) -> int:
        key = lane_of(ticket.request)
        ahead = len(self.waiting.lanes[key].tickets) if key in self.waiting.lanes else 0
        serving = self._roster.serving(ticket) or self._roster.usable()
        slots = 1 if key == STORE_LANE else sum(member.slots for member in serving)
        return self.service.retry_after_s(ahead, slots)
