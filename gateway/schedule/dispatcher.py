"""The dispatcher: matches the tickets that wait with the replicas that have room for them.

Rules of this file:

1. *Late binding.* A request that runs a model is sent only when a slot for that model is free on a replica that may
   take it; until then it waits here, where it can still go anywhere.
2. *Nothing that waits could be sent.* Whoever frees capacity or changes who may serve whom drains the lanes concerned,
   so a new request may be tried by itself without overtaking anyone.
3. *In turn* within a lane, as ``waiting.py`` says, also for requests that come back from a failed attempt. One that
   finds no replica never holds up those behind it that do.
4. *Where the model is.* Under a policy that places models a request is sent only where its model is in memory; whether
   to load it elsewhere is the placer's to decide, not the request's.
5. The policy is foreign code: whatever it does, no request is lost by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum, auto
from random import Random
from typing import Generic, TypeVar, cast

from corral.errors import Refusal
from corral.gateway.schedule.balance import Balance
from corral.gateway.schedule.below import units
from corral.gateway.schedule.effects import Effect, RefreshTags, Refuse, Send
from corral.gateway.schedule.forecast import Ask, Forecast
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.placement import Placer
from corral.gateway.schedule.roster import FREEZING_KINDS, LEADER_KINDS, Roster
from corral.gateway.schedule.sharing import Sharing, sharing
from corral.gateway.schedule.standing import Wanted
from corral.gateway.schedule.ticket import Lease, Ticket
from corral.gateway.schedule.waiting import STORE_LANE, Lane, QueueLimits, ServiceTime, Waiting, lane_of
from corral.model import Choice, Decision, Figures, Policy, ReplicaView, RequestKind, RouteRequest

T = TypeVar("T", bound=Ticket)

ASK_S = 2.0
"""A request whose model no replica is known to have waits this long at most for the replicas' lists of models."""


HOLD_S = 5.0
"""No request is held back from a free slot for longer."""
HOLD_GAIN = 1.5
"""It is held only where that is thought to be so many times better."""
AS_ASKED = "as asked"
"""A Corral above had chosen it."""
_REASON_CHARS = 80
"""Of a policy's reason, which should be a few words."""
REMEMBERED = 500
"""So many of the last decisions can be explained."""


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
        self.policy_error: str | None = None
        self.service = ServiceTime()
        self.waiting: Waiting[T] = Waiting(limits, self.service)
        self.forecast = Forecast()
        self.placer: Placer[T] = Placer(roster, self.forecast)
        self._balance = Balance()
        self.choices: deque[Choice] = deque(maxlen=REMEMBERED)
        self.homes: dict[T, Member[T]] = {}
        """Where each ticket that holds a lease was sent."""
        self.stopping = False
        self._was_placing = False
        self._roster = roster
        self._rng = rng
        self._asking: set[str] = set()
        """Lanes in which some wait for the replicas' lists of models."""
        self._asked_at_s: float | None = None
        """Since when an answer to :class:`RefreshTags` is awaited."""
        self.use(policy)

    def use(self, policy: Policy) -> None:
        """Decide by another policy from now on."""
        self.policy, self.policy_error = policy, None
        self._predicts = bool(getattr(policy, "predicts", False))
        self._places = bool(getattr(policy, "places", False))
        self._learn = getattr(policy, "learn", None)

    @property
    def limits(self) -> QueueLimits:
        return self.waiting.limits

    @property
    def places(self) -> bool:
        """Whether the gateway decides what is in the replicas' memory."""
        return self._places and self.placer.is_enabled

    def admit(self, ticket: T, now_s: float, effects: list[Effect[T]]) -> None:
        """Send a new ticket, let it wait, or refuse it."""
        request = ticket.request
        key = lane_of(request)
        if request.kind is RequestKind.INFERENCE and request.model is not None:
            self.placer.arrived(key, now_s)
            if request.keep_alive_s is not None or self.placer.keeping.wishes:
                self.placer.keeping.asked(request.model, request.keep_alive_s, now_s)
            ticket.ask = self.forecast.ask(request)
            ticket.cost_s = self.forecast.service_s(ticket.ask)
        placing = self._place(ticket, now_s, effects)
        if placing is Placing.DONE:
            return
        if self.waiting.total >= self.limits.max_requests and not self._is_first_for_load(ticket):
            self.refuse(ticket, Refusal.QUEUE_FULL, effects)
            return
        self.waiting.add(ticket, now_s)
        if placing is Placing.ASKING:
            self._ask(key, now_s, effects)
        else:
            self._provide(key, now_s, effects)

    def _is_first_for_load(self, ticket: T) -> bool:
        """It waits for its model rather than for a slot, and for that model nobody does yet: else a queue that is full
        of requests for other models would keep it from ever being loaded."""
        request, model = ticket.request, ticket.request.model
        if not self.places or model is None or request.kind is not RequestKind.INFERENCE:
            return False
        if self.waiting.is_awaited(model):
            return False
        serving = [member for member in self._roster.serving(ticket) or () if member.places(model)]
        return bool(serving) and not any(unit.memory.holds(model, request.signature) for unit in units(serving))

    def readmit(self, ticket: T, now_s: float, effects: list[Effect[T]]) -> None:
        """Put a ticket whose attempt failed back to its place; a full queue is no reason to refuse it."""
        self.waiting.add(ticket, now_s)
        self.drain(lane_of(ticket.request), now_s, effects)
        if ticket.queued and self.stopping:
            self.refuse(ticket, Refusal.STOPPING, effects)

    def drain(self, key: str, now_s: float, effects: list[Effect[T]]) -> None:
        """Place those in one lane that can be placed now, in turn."""
        lane = self.waiting.lanes.get(key)
        if lane is None:
            return
        passed_over: list[T] = []
        try:
            while (ticket := self.waiting.next_of(key, now_s)) is not None:
                if self._try(ticket, key, now_s, effects):
                    continue
                if not Lane.is_odd(ticket):
                    break
                lane.turns.remove(ticket)  # it may find none where those behind it do
                passed_over.append(ticket)
        finally:
            for ticket in passed_over:
                lane.turns.add(ticket)
        if lane.odd:
            for ticket in self.waiting.odd_in_turn(key, now_s):
                self._try(ticket, key, now_s, effects)
        self._provide(key, now_s, effects)

    def _try(self, ticket: T, key: str, now_s: float, effects: list[Effect[T]]) -> bool:
        """Place one that waits; False: it goes on waiting."""
        placing = self._place(ticket, now_s, effects)
        if placing is Placing.ASKING:
            self._ask(key, now_s, effects)
        if placing is Placing.DONE and ticket.queued:  # it was refused; who was sent has left already
            self.waiting.remove(ticket)
        return placing is Placing.DONE

    def _provide(self, key: str, now_s: float, effects: list[Effect[T]]) -> None:
        """Have the placer see to those that still wait in the lane."""
        if key in self.waiting.lanes and self.places and self.placer.is_due(key, now_s):
            ticket = self.waiting.next_of(key, now_s)
            if ticket is not None:
                self._have_placed(ticket, now_s, effects)

    def _have_placed(self, ticket: T, now_s: float, effects: list[Effect[T]]) -> None:
        """The placer looks at what the ticket needs; it waits, or was just sent where it has company."""
        request, model, key = ticket.request, ticket.request.model, ticket.request.key
        if request.kind is not RequestKind.INFERENCE or model is None or self.stopping or self.is_frozen(ticket):
            return
        serving = [member for member in self._roster.serving(ticket) or () if member.places(model)]
        if not serving or (request.via and any(m.memory.holds(model, request.signature) for m in serving)):
            return  # further copies for what a Corral above sends are that one's affair: it sees more
        lane = self.waiting.lanes.get(key)
        count = len(lane.tickets) if lane is not None else 0
        oldest_s = lane.tickets[0].arrived_at_s if lane is not None else now_s
        inflight = sum(m.inflight.get(model, 0) for m in serving if m.memory.holds(model, request.signature))
        wanted = Wanted(key, model, request.signature, count, now_s - oldest_s, count + inflight)
        self.placer.provide(wanted, serving, now_s, effects)

    def drain_beside(self, request: RouteRequest, now_s: float, effects: list[Effect[T]]) -> None:
        """Those in the lane of a request that ended, and in those of the same model with other options: they share its
        slots, so whose first has waited longest goes first."""
        lanes, own = self.waiting.lanes, lane_of(request)
        if len(lanes) <= (own in lanes) or request.model is None or own == STORE_LANE:
            self.drain(own, now_s, effects)
            return
        model, others = request.model, f"{request.model} "
        keys = [key for key in lanes if key == model or key.startswith(others)]
        for key in sorted(keys, key=lambda key: lanes[key].tickets[0].sequence):
            self.drain(key, now_s, effects)

    def drain_all(self, now_s: float, effects: list[Effect[T]]) -> None:
        for key in tuple(self.waiting.lanes):
            self.drain(key, now_s, effects)

    def look_at_memory(self, now_s: float, effects: list[Effect[T]]) -> None:
        """Some times a second: what is asked for, what must be loaded, and what nobody waits for any more."""
        self.placer.forget_old(now_s)
        self.forecast.fade(now_s)
        overloaded = self._balance.observe(list(units(self._roster.usable())), now_s)
        if not self.places or self.stopping:
            self.placer.swaps.give_up_unwanted(set())
            if self._was_placing:  # what is in memory decides no more
                self._was_placing = False
                self.drain_all(now_s, effects)
            return
        self._was_placing = True
        self.placer.swaps.give_up_unwanted(set(self.waiting.lanes))
        self.placer.swaps.go_on_everywhere(now_s, effects)
        self.placer.pin(now_s, effects)
        self.drain_all(now_s, effects)
        for member in overloaded:
            self._relieve(member, now_s, effects)

    def _relieve(self, member: Member[T], now_s: float, effects: list[Effect[T]]) -> None:
        """See whether another copy of something that an overloaded replica works on would pay."""
        tickets = {lease.key: ticket for ticket, lease in member.leases.items() if lease.key is not None}
        for ticket in tickets.values():
            if self.placer.is_due(ticket.request.key, now_s):
                self._have_placed(ticket, now_s, effects)

    def settle_asking(self, now_s: float, effects: list[Effect[T]]) -> None:
        """Go on with those for whom the replicas' lists are in, or late."""
        if not self._asking:
            return
        if self._asked_at_s is not None and self._is_answered(self._asked_at_s, now_s):
            self._asked_at_s = None
        lanes, self._asking = self._asking, set()
        for key in sorted(lanes):
            self.drain(key, now_s, effects)

    def is_frozen(self, ticket: T) -> bool:
        """Whether its model is just being changed in a store. Nothing waits for that while the gateway stops."""
        request = ticket.request
        return request.kind in FREEZING_KINDS and request.asked in self._roster.frozen and not self.stopping

    def expire(self, now_s: float, effects: list[Effect[T]]) -> None:
        """Refuse those who waited too long; not while what they need is being loaded, which may take minutes."""
        late = self.waiting.arrived_before(now_s - self.limits.max_wait_s)
        loading = {swap.key for m in self._roster.usable() if (swap := m.memory.swap) is not None and swap.is_loading}
        for ticket in late:
            if ticket.request.key not in loading:
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
        if self.is_frozen(ticket):
            return Placing.BUSY
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
            if request.prefer and request.text_bytes == 0 and self._is_to_be_loaded(ticket, serving, now_s, effects):
                return Placing.BUSY
            free = self._free(ticket, serving, now_s)
            preferred = [each for each in free if each.id == request.prefer.partition("/")[0]] if request.prefer else []
            if preferred:
                self._send(ticket, preferred, now_s, effects)
                return Placing.DONE
            if not free or self._had_better_wait(ticket, free, serving, now_s):
                return Placing.BUSY
            serving = free
        self._send(ticket, serving, now_s, effects)
        return Placing.DONE

    def _is_to_be_loaded(self, ticket: T, serving: Sequence[Member[T]], now_s: float, effects: list[Effect[T]]) -> bool:
        """A Corral above wants the model to be in memory of one replica, and so it will be."""
        request, model = ticket.request, ticket.request.model or ""
        there = next((each for each in serving if each.id == request.prefer.partition("/")[0]), None)
        if there is None or not self.places or there.memory.holds(model, request.signature) or not there.places(model):
            return False
        return self.placer.have_loaded(there, request, now_s - ticket.arrived_at_s, now_s, effects)

    def _free(self, ticket: T, serving: Sequence[Member[T]], now_s: float) -> list[Member[T]]:
        """Those with a free slot that hold the model, as far as that counts and is known."""
        request = ticket.request
        model = request.model
        if model is None:
            return list(serving)
        if not self.places:
            return [member for member in serving if member.has_room(model)]
        signature = request.signature
        free = [member for member in serving if member.may_have(model, signature) and member.has_room(model)]
        if free or not any(unit.memory.failed for unit in units(serving)):
            return free
        return self._those_that_failed(ticket, serving, now_s)

    def _had_better_wait(
        self, ticket: T, free: Sequence[Member[T]], serving: Sequence[Member[T]], now_s: float
    ) -> bool:
        """Whether a busy replica would be so much better that it pays to wait for the next slot there: a long prompt is
        sooner worked off on a quick GPU. Only where nobody else waits and every free one is at work already."""
        request, model = ticket.request, ticket.request.model
        if model is None or not self._predicts or not self.places:
            return False
        serving = list(units(serving))
        if len(free) == len(serving):
            return False
        if now_s - ticket.arrived_at_s > HOLD_S or not self.forecast.knows(request.key):
            return False
        lane = self.waiting.lanes.get(request.key)
        if lane is not None and (len(lane.tickets) > 1 or not ticket.queued):
            return False
        free = [unit for unit in units(free) if unit.may_have(model, request.signature) and unit.has_room(model)]
        if not free or any(not unit.inflight for unit in free):
            return False
        full = [m for m in serving if m.memory.holds(model, request.signature) and not m.has_room(model)]
        if not full:
            return False
        ask, forecast = self.forecast.ask(request), self.forecast
        best_s = min(forecast.predict(member, ask, now_s).cost_s for member in free)
        return any(best_s > HOLD_GAIN * forecast.cost_after_wait_s(member, ask, now_s) for member in full)

    def _those_that_failed(self, ticket: T, serving: Sequence[Member[T]], now_s: float) -> list[Member[T]]:
        """Where it can be loaded nowhere, whoever asks is sent all the same: then Ollama itself says why."""
        model, signature = ticket.request.model or "", ticket.request.signature
        for unit in units(serving):
            if unit.memory.holds(model, signature) or unit.memory.is_changing(model):
                return []
            if not unit.memory.is_failed(ticket.request.key, now_s):
                return []
        return [member for member in serving if member.has_room(model)]

    def _send(self, ticket: T, free: list[Member[T]], now_s: float, effects: list[Effect[T]]) -> None:
        ask, request = ticket.ask, ticket.request
        if ask is not None and ticket.queued:  # more may have been learned meanwhile
            ask = self.forecast.ask(request)
        views = self._views(ask, request.model, free, now_s)
        member, decision = self._choose(ticket, free, views)
        waited_s = now_s - ticket.arrived_at_s
        seen = tuple(views)
        choice = Choice(now_s, request.model, request.kind, waited_s, decision, seen, request.alias, ticket.id)
        self.choices.append(choice)
        lease = self._roster.lease(member, ticket, now_s)
        if self._learn is not None:
            lease.choice = choice
        if ask is not None and lease.key is not None:
            self.forecast.sent(member, lease, ask, decision.predicted, now_s)
        self.homes[ticket] = member
        if lease.is_cloud:
            ticket.cost_s = 0.0  # of no GPU here
        self.waiting.sent(ticket)
        ticket.lease, ticket.decision, ticket.asked = lease, decision, True
        effects.append(Send(ticket, lease, decision))
        if lease.inflight > 1 and self.places and self.placer.is_due(request.key, now_s):
            self._have_placed(ticket, now_s, effects)

    def _views(self, ask: Ask | None, model: str | None, free: Sequence[Member[T]], now_s: float) -> list[ReplicaView]:
        """With predictions where the policy asks for them and the key is known, for all of them or for none."""
        if ask is None or not self._predicts or not self.forecast.knows(ask.key):
            return [member.view(model) for member in free]
        predict = self.forecast.predict
        return [member.view(model, predict(member, ask, now_s)) for member in free]

    def _choose(self, ticket: T, free: list[Member[T]], views: list[ReplicaView]) -> tuple[Member[T], Decision]:
        request = ticket.request
        if request.kind in LEADER_KINDS:
            return free[0], Decision(free[0].id, "leader")
        if request.prefer and len(free) == 1 and request.prefer.partition("/")[0] == free[0].id:
            return free[0], Decision(free[0].id, AS_ASKED, views[0].predicted)
        problem = ""
        member: Member[T] | None
        try:
            decision = self.policy.choose(request, views, self._rng)
            member = self._roster.members.get(decision.replica_id)
            if member not in free:
                member, problem = None, f"chose {decision.replica_id!r}, which it was not offered"
            elif not _is_line(decision.reason):  # it becomes a label, and part of a head
                member, problem = None, f"gave a reason that is no line of text: {decision.reason!r:.40}"
        except Exception as error:  # a user's policy may raise anything; the request must not be lost by it
            member, problem = None, f"raised {error!r}"
        if member is None:
            self.policy_error = problem
            member = self._rng.choice(free)
            decision = Decision(member.id, "policy failed")
        reason = "last resort" if member.shut else decision.reason[:_REASON_CHARS]
        predicted = views[free.index(member)].predicted
        return member, Decision(member.id, reason, predicted)

    def teach(self, lease: Lease, figures: Figures | None, now_s: float) -> None:
        """Tell a policy that learns what became of a request that it placed, which was answered completely."""
        if self._learn is None or lease.choice is None or lease.first_at_s is None or figures is None:
            return
        try:
            self._learn(
                lease.ticket.request, lease.choice, lease.first_at_s - lease.sent_at_s, now_s - lease.sent_at_s, figures
            )
        except Exception as error:  # foreign code, as above
            self.policy_error = f"could not learn: {error!r}"

    def sharing(self, request: RouteRequest, now_s: float, coming: int) -> Sharing | None:
        """Whether it had better be worked off in parts, where so many others come in a moment."""
        ticket = cast("T", Ticket(request, now_s))
        members = self._roster.serving(ticket)
        if members is None or self.stopping or self.is_frozen(ticket):
            return None
        lane = self.waiting.lanes.get(lane_of(request))
        return sharing(
            members,
            self.forecast,
            request,
            now_s,
            places=self.places,
            waiting=coming + (0 if lane is None else len(lane.tickets)),
            room=(self.limits.max_requests - self.waiting.total - coming) // 2,
        )

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
        slots = 1 if key == STORE_LANE else sum(member.slots_of(ticket.request.model or "") for member in serving)
        return self.service.retry_after_s(ahead, slots)


def _is_line(text: object) -> bool:
    return isinstance(text, str) and text.isprintable()
