"""The scheduler: what happens on each event. Events in, effects out; it awaits nothing and reads no clock.

Rules of this file:

1. Every method takes the time of its event and returns what is to be done, in order; time never runs backwards.
2. A lease is released exactly once. Ending a request that holds none is a bug and raises :class:`CorralError`.
3. Observation, operation and supervision are three facts: *health* follows from what replicas do, *enabled* from what
   the operator does, *held* from where the replica's process stands, and none touches another. Only when a hold ends
   does health begin anew: another process answers.
4. Every event that frees capacity or changes who may serve whom ends by draining the lanes that it concerns.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Generic, TypeVar

from corral.errors import CorralError, Fault, Refusal
from corral.gateway.schedule.aliases import Unknown, Weights
from corral.gateway.schedule.below import unit_of, units
from corral.gateway.schedule.dispatcher import Dispatcher
from corral.gateway.schedule.effects import Effect, HealthChanged, Interrupt, LetGo
from corral.gateway.schedule.health import Change, HealthRules
from corral.gateway.schedule.member import Member, Use
from corral.gateway.schedule.naming import Naming
from corral.gateway.schedule.report import tree_load
from corral.gateway.schedule.roster import LEADER_KINDS, Roster
from corral.gateway.schedule.sharing import Sharing
from corral.gateway.schedule.ticket import Lease, Ticket
from corral.gateway.schedule.underway import Underway
from corral.gateway.schedule.waiting import QueueLimits
from corral.model import (
    Choice,
    Figures,
    GpuLoad,
    Health,
    Hold,
    OllamaSample,
    Policy,
    ProbeResult,
    Replica,
    RequestKind,
    RouteRequest,
    RunningRequest,
    Snapshot,
    TreeLoad,
    WaitingRequest,
)

__all__ = ["QueueLimits", "Scheduler"]

T = TypeVar("T", bound=Ticket)

DEFAULT_RULES = HealthRules()


class Scheduler(Generic[T]):
    """Owns the queue, the leases and what is known of the replicas. One event at a time; not thread-safe."""

    def __init__(
        self,
        policy: Policy,
        policy_name: str,
        limits: QueueLimits,
        rng: Random,
        rules: HealthRules = DEFAULT_RULES,
    ) -> None:
        self._policy_name = policy_name
        self._roster: Roster[T] = Roster(rules)
        self._dispatcher = Dispatcher(self._roster, policy, limits, rng)
        self._forecast = self._dispatcher.forecast
        self._placer = self._dispatcher.placer
        self._naming: Naming[T] = Naming(self._roster, self._dispatcher)
        self._underway = Underway(self._roster, self._dispatcher)
        self._sequence = 0

    def __repr__(self) -> str:
        replicas = ", ".join(f"{m.id} {m.health.state.value} {len(m.leases)}" for m in self._roster.members.values())
        return f"<Scheduler {self._policy_name}: {self.inflight} in flight, {self.queued} queued | {replicas}>"

    @property
    def inflight(self) -> int:
        """Live leases, those on removed replicas too."""
        return len(self._dispatcher.homes)

    def inflight_on(self, replica_id: str) -> int:
        """Live leases on one replica."""
        member = self._roster.members.get(replica_id)
        return 0 if member is None else len(member.leases)

    @property
    def queued(self) -> int:
        return self._dispatcher.waiting.total

    @property
    def policy_error(self) -> str | None:
        """What the policy last did wrong: raised, or chose a replica that it was not offered."""
        return self._dispatcher.policy_error

    def usable(self) -> tuple[Replica, ...]:
        """The enabled replicas that are not down, in configuration order."""
        return tuple(member.replica for member in self._roster.usable())

    def is_unsettled(self, replica_id: str) -> bool:
        """Whether what is in the replica's memory may change at any moment by what it was asked."""
        member = self._roster.members.get(replica_id)
        return member is not None and member.is_unsettled

    def use_of(self, replica_id: str, model: str) -> Use:
        """How a model is used on one replica, under whatever name."""
        member = self._roster.members.get(replica_id)
        return Use() if member is None else member.use_of(self._naming.runner(model))

    def names_of(self, model: str) -> tuple[str, ...]:
        """All names of a model that are one to Ollama, which has one of them in memory for all."""
        return self._naming.names(model)

    @property
    def unknown_weights(self) -> tuple[Unknown, ...]:
        """Models of which it should be known what they are made of, see :meth:`know_weights`."""
        return self._naming.unknown

    def sharing(self, request: RouteRequest, now_s: float, *, coming: int = 0) -> Sharing | None:
        """Whether the request had better be worked off in parts; None: better whole. ``coming``: so many others will be
        submitted in a moment."""
        if request.keep_alive_s == 0.0:
            return None  # the model would leave after each part
        return self._dispatcher.sharing(self._naming.of(request), now_s, coming)

    def snapshot(self, now_s: float) -> Snapshot:
        waiting = self._dispatcher.waiting
        oldest = {key: max(0.0, now_s - since_s) for key, since_s in waiting.oldest_s().items()}
        return Snapshot(
            taken_at_s=now_s,
            policy=self._policy_name,
            replicas=tuple(member.state(now_s) for member in self._roster.members.values()),
            queued=waiting.total,
            queued_by_model={key: len(lane.tickets) for key, lane in waiting.lanes.items()},
            oldest_wait_s=max(oldest.values(), default=None),
            inflight=self.inflight,
            oldest_by_model=oldest,
        )

    def waiting(self, now_s: float) -> tuple[WaitingRequest, ...]:
        """Those that wait longest, and what for; no part of :meth:`snapshot`, which is made more often."""
        return self._underway.waiting(now_s)

    def running(self, now_s: float) -> tuple[RunningRequest, ...]:
        """Those that were sent first, and where to."""
        return self._underway.running(now_s)

    # ---- what the operator does

    def set_policy(self, policy: Policy, name: str) -> None:
        self._policy_name = name
        self._dispatcher.use(policy)

    def set_limits(self, limits: QueueLimits, now_s: float) -> list[Effect[T]]:
        """Those that wait already keep their places where the queue gets shorter, but not where the wait does."""
        effects: list[Effect[T]] = []
        self._dispatcher.waiting.use(limits)
        self._dispatcher.expire(now_s, effects)
        return effects

    def set_replicas(self, replicas: Sequence[Replica], now_s: float) -> list[Effect[T]]:
        """Take over a new list. Removed ones get nothing new and their leases finish; a new address, a new replica."""
        effects: list[Effect[T]] = []
        known = {member.id: member for member in self._roster.members.values()}
        self._roster.set_replicas(replicas)
        self._weigh()
        for member in known.values():
            if self._roster.members.get(member.id) is not member:
                self._forecast.forget(member.id)
        self._naming.regroup(now_s)
        self._dispatcher.drain_all(now_s, effects)
        return effects

    def set_placement(self, enabled: bool, now_s: float) -> list[Effect[T]]:
        """Whether the gateway decides what is in the replicas' memory, where the policy wants it to."""
        effects: list[Effect[T]] = []
        self._dispatcher.placer.is_enabled = enabled
        self._dispatcher.drain_all(now_s, effects)
        return effects

    def set_learning(self, *, costs: bool, prefixes: bool) -> None:
        """What it may go by: for comparisons. Without costs it goes by weights and requests in flight alone."""
        self._forecast.is_learning, self._forecast.uses_prefixes = costs, prefixes

    def set_enabled(self, replica_id: str, enabled: bool, now_s: float) -> list[Effect[T]]:
        """Resume or drain a replica. Raises :class:`CorralError` where there is none of that id."""
        member = self._roster.members.get(replica_id)
        if member is None:
            raise CorralError(f"there is no replica {replica_id!r}")
        effects: list[Effect[T]] = []
        member.enabled = enabled
        self._roster.refresh()
        self._dispatcher.drain_all(now_s, effects)
        return effects

    def set_hold(self, replica_id: str, hold: Hold | None, now_s: float) -> list[Effect[T]]:
        """Give a replica no new requests, or (None) give it some again; it need not be there yet.

        A new reason changes what is shown, and whether requests wait for it. What it is doing goes on.
        """
        effects: list[Effect[T]] = []
        if self._roster.hold(replica_id, hold):
            self._forecast.prefixes.forget(replica_id)
            self._dispatcher.drain_all(now_s, effects)
        return effects

    def freeze(self, models: frozenset[str], now_s: float) -> list[Effect[T]]:
        """Requests for these models, as clients name them, wait from now on, and those for any other go on.

        Whoever changes a model in a store freezes it, so that nobody has the old one loaded again meanwhile.
        """
        effects: list[Effect[T]] = []
        self._roster.frozen = models
        self._naming.regroup(now_s)  # else those would keep their aliases waiting
        self._placer.swaps.go_on_everywhere(now_s, effects)  # or end, where it was for one of these
        self._dispatcher.drain_all(now_s, effects)
        return effects

    def is_loading(self, replica_id: str, model: str) -> bool:
        """Whether the replica may be loading the model: to be told to let go of it would mean nothing to it now."""
        member = self._roster.members.get(replica_id)
        return member is not None and member.is_loading(self._naming.runner(model))

    def left_memory(self, replica_id: str, model: str, now_s: float) -> list[Effect[T]]:
        """The replica was told to let go of the model, by somebody else than the scheduler."""
        effects: list[Effect[T]] = []
        member, model = self._roster.members.get(replica_id), self._naming.runner(model)
        if member is not None and model in member.memory.models:
            self._lets_go(member, model, now_s)
            self._forget_left(member)
        return effects

    def stop(self, now_s: float) -> list[Effect[T]]:
        """Refuse all that waits and all that comes; what was sent may finish, or be retried where it need not wait."""
        effects: list[Effect[T]] = []
        self._dispatcher.stopping = True
        for ticket in self._dispatcher.waiting:
            self._dispatcher.refuse(ticket, Refusal.STOPPING, effects)
        return effects

    # ---- what requests do

    def submit(self, ticket: T, now_s: float) -> list[Effect[T]]:
        if ticket.sequence != -1:
            raise CorralError(f"submitted twice: {ticket!r}")
        ticket.sequence, ticket.submitted_at_s = self._sequence, now_s
        self._sequence += 1
        effects: list[Effect[T]] = []
        if self._naming.by_name:
            self._naming.name(ticket)
        if self._dispatcher.stopping:
            self._dispatcher.refuse(ticket, Refusal.STOPPING, effects)
        else:
            self._dispatcher.admit(ticket, now_s, effects)
        return effects

    def cancel(self, ticket: T) -> None:
        """Its client left while it waited. Nothing happens where it does not wait any more."""
        if ticket.queued:
            self._dispatcher.waiting.remove(ticket)

    def first_byte(self, ticket: T, now_s: float, leaf: str = "") -> None:
        """The commit point: from now on the request is not retried. ``leaf``: of a Corral's answer, which replica of
        it makes it."""
        member = self._home(ticket)
        if leaf:
            self._forecast.went(member, member.leases[ticket], leaf, now_s)
        member.committed(member.leases[ticket], now_s)
        member.health.heard(now_s)

    def finish(self, ticket: T, now_s: float, *, ok: bool, figures: Figures | None = None) -> list[Effect[T]]:
        """The response has ended; ``ok=False``: its stream broke. ``figures``: what its end told; None: an error."""
        member = self._home(ticket)
        lease = member.leases[ticket]
        change = None
        if lease.is_cloud:
            member.health.heard(now_s)
        elif ok:
            change = member.health.request_answered(lease.sent_at_s, now_s)
            if lease.key is not None:
                self._learn(member, lease, figures, now_s)
                self._dispatcher.teach(lease, figures, now_s)
        else:
            change = self._blame(member, lease.sent_at_s, now_s, "the stream broke")
        effects: list[Effect[T]] = []
        request = ticket.request
        if request.keep_alive_s is not None and (figures is not None or not ok):
            member.taken_up(lease)
        unloads, model = request.kind is RequestKind.UNLOAD, request.model or ""
        if ok and figures is not None and (unloads or (request.keep_alive_s == 0.0 and lease.key is not None)):
            # in one Ollama those that wait would keep it there, who does not care how long it stays
            of_all = unloads or not self._dispatcher.waiting.is_awaited(model)
            self._let_go(member, model, now_s, effects, of_all=of_all)
        self._release(ticket, member, change, now_s, effects)
        return effects

    def spared(self, ticket: T, now_s: float) -> list[Effect[T]]:
        """Its client left after it was sent: nobody's fault."""
        effects: list[Effect[T]] = []
        member = self._home(ticket)
        member.taken_up(member.leases[ticket])
        self._release(ticket, member, None, now_s, effects)
        return effects

    def failed(self, ticket: T, fault: Fault, now_s: float) -> list[Effect[T]]:
        """The attempt failed before the first byte: back to its place in the queue, or refused.

        1. A closed keep-alive connection blames nobody and may go to the same replica; the second in a row is a reset.
        2. Everything else excludes the replica, so that each gets the request at most once.
        3. What changes the store is sent again only if nothing was sent before: it might have been done.
        """
        member = self._home(ticket)
        lease = member.leases[ticket]
        if lease.committed:
            raise CorralError(f"failed after its first byte, which is finish(ok=False): {ticket!r}")
        if fault is Fault.STALE and ticket.stale:
            fault = Fault.RESET
        ticket.stale = fault is Fault.STALE
        change = None
        if fault is Fault.CONNECT:
            change = member.health.could_not_connect()
        elif fault not in (Fault.STALE, Fault.HUNG):
            change = self._blame(member, lease.sent_at_s, now_s, fault.value)
        if not ticket.stale:
            ticket.excluded += (member.id,)
        effects: list[Effect[T]] = []
        unsent = fault in (Fault.STALE, Fault.CONNECT)
        again = ticket.replayable and (unsent or ticket.request.kind not in LEADER_KINDS)
        if not again:
            self._dispatcher.refuse(ticket, Refusal.EXHAUSTED, effects)
        self._release(ticket, member, change, now_s, effects, readmit=again)
        return effects

    # ---- what is observed

    def progress(self, replica_id: str, now_s: float) -> None:
        """Bytes came from the replica: it is busy, not dead."""
        member = self._roster.members.get(replica_id)
        if member is not None:
            member.health.heard(now_s)

    def probed(self, replica_id: str, result: ProbeResult, now_s: float) -> list[Effect[T]]:
        member = self._roster.members.get(replica_id)
        effects: list[Effect[T]] = []
        if member is None or member.held is not None or member.refuses is not None:
            return effects
        if self._settle(member, member.health.probed(result, now_s), now_s, effects):
            self._dispatcher.drain_all(now_s, effects)
        return effects

    def sampled(self, sample: OllamaSample, now_s: float) -> list[Effect[T]]:
        """A reading came in. Only one that lists the installed models answers a :class:`RefreshTags`."""
        member = self._roster.members.get(sample.replica_id)
        effects: list[Effect[T]] = []
        for model in sample.installed or ():
            if model.size_bytes:
                self._forecast.costs.know_size(model.name, model.size_bytes)
        listed = None if member is None else member.listed
        if member is not None and member.sampled(self._naming.read(sample), now_s):
            self._forget_left(member)
            self._roster.refresh()
            if member.listed is not listed:
                self._naming.regroup(now_s)
            self._placer.look_again()
            self._dispatcher.drain_all(now_s, effects)
        if sample.installed is not None:
            self._dispatcher.settle_asking(now_s, effects)
        return effects

    def tree_read(self, replica_id: str, tree: TreeLoad, run: str, taken_s: float, now_s: float) -> list[Effect[T]]:
        """What a replica that is a Corral says of those below it; ``run``: of this gateway."""
        member = self._roster.members.get(replica_id)
        effects: list[Effect[T]] = []
        if member is None or member.below is None:
            return effects
        names = {model: self._naming.runner(model) for model in self._naming.by_name}
        if member.below.read(tree, run, taken_s, names):
            self._weigh()
            self._roster.refresh()
        member.memory_changed()
        self._dispatcher.drain_all(now_s, effects)
        return effects

    def tree_load(self, run: str, asker: str, now_s: float, *, draining: bool) -> TreeLoad:
        """What a Corral above this one is told, whose run is ``asker``."""
        return tree_load(self._roster, self._dispatcher, run, asker, now_s, draining=draining)

    def know_weights(self, digest: str, weights: Weights, now_s: float) -> list[Effect[T]]:
        """What the model of a manifest is made of: names of the same weights are one from now on."""
        effects: list[Effect[T]] = []
        if self._naming.know(digest, weights, now_s):
            self._dispatcher.drain_all(now_s, effects)
        return effects

    def load_ended(self, replica_id: str, number: int, now_s: float, *, ok: bool) -> list[Effect[T]]:
        """What :class:`Load` asked for is done, or failed; of an older change, or a replica that is gone: nothing."""
        member = unit_of(self._roster.members, replica_id)
        effects: list[Effect[T]] = []
        if member is not None and self._placer.swaps.load_ended(member, number, now_s, ok=ok):
            self._placer.look_again()
            self._dispatcher.drain_all(now_s, effects)
        return effects

    def unload_ended(self, replica_id: str, number: int, now_s: float, *, ok: bool) -> list[Effect[T]]:
        """What :class:`Unload` asked for is done; not ok: the model is still in memory, or nobody knows."""
        member = self._roster.members.get(replica_id)
        effects: list[Effect[T]] = []
        if member is None:
            return effects
        was_given_up = self._placer.swaps.unload_ended(member, number, now_s, effects, ok=ok)
        self._forget_left(member)
        if was_given_up:
            self._dispatcher.drain_all(now_s, effects)
        return effects

    def gpu_loaded(self, replica_id: str, load: GpuLoad | None, now_s: float) -> list[Effect[T]]:
        """What the GPUs of a replica say now; None: nothing is known any more."""
        member = self._roster.members.get(replica_id)
        if member is not None:
            member.gpu_read(load)
        return []

    def explain(self) -> tuple[Choice, ...]:
        """The last decisions, the latest last."""
        return tuple(self._dispatcher.choices)

    def tick(self, now_s: float) -> list[Effect[T]]:
        """Let time pass, some times a second: ejections end, lists are awaited no longer, requests wait too long."""
        effects: list[Effect[T]] = []
        settled = False
        for member in self._roster.members.values():
            settled |= member.forget_old(now_s)
            settled |= self._settle(member, member.trial(), now_s, effects)
        self._dispatcher.look_at_memory(now_s, effects)
        if settled:
            self._dispatcher.drain_all(now_s, effects)
        self._dispatcher.settle_asking(now_s, effects)
        self._dispatcher.expire(now_s, effects)
        return effects

    # ---- what all of these share

    def _weigh(self) -> None:
        """Who there is, and how fast each is thought to be."""
        members = self._roster.members.values()
        self._forecast.use({unit.id: unit.replica.weight for each in members for unit in (each, *units((each,)))})

    def _home(self, ticket: T) -> Member[T]:
        member = self._dispatcher.homes.get(ticket)
        if member is None:
            raise CorralError(f"holds no lease: {ticket!r}")
        return member

    def _learn(self, member: Member[T], lease: Lease, figures: Figures | None, now_s: float) -> None:
        self._dispatcher.service.observe(now_s - lease.sent_at_s)
        if figures is None or lease.key is None or not member.may_run(lease.key):
            return  # an error, or a name that a client made up: neither says what a request takes
        if self._roster.members.get(member.id) is not member:
            return  # another one has its name, or none
        self._forecast.ended(member, lease, figures, now_s)
        queued_s = lease.queued_s() if figures.queued_s is None else figures.queued_s
        if queued_s is not None:
            member.found_slots(lease, queued_s, now_s)

    def _let_go(self, first: Member[T], model: str, now_s: float, effects: list[Effect[T]], *, of_all: bool) -> None:
        """A client had a replica let go of a model: the others (``of_all``) do, too, but where it is pinned. Whoever
        asks next has it loaded again."""
        self._placer.keeping.forget(model)
        for member in self._roster.members.values():
            if model not in member.memory.models:
                continue
            if member is not first:
                if not of_all or model in member.replica.pinned or not member.is_usable:
                    continue
                effects.append(LetGo(member.replica, model))
            self._lets_go(member, model, now_s)
            self._forget_left(member)

    def _lets_go(self, member: Member[T], model: str, now_s: float) -> None:
        """The model leaves as soon as nobody uses it there."""
        if model in member.inflight:
            member.memory.keep(model, 0.0)
            return
        member.memory.unloaded(model, now_s)
        member.memory_changed()
        member.left.append(model)
        self._placer.look_again()

    def _forget_left(self, member: Member[T]) -> None:
        """What left its memory took its caches with it."""
        for model in member.left:
            for key in self._forecast.prefixes.keys_of(member.id):
                if key.partition(" ")[0] == model:
                    self._forecast.prefixes.left(member.id, key)
        member.left.clear()

    def _blame(self, member: Member[T], sent_at_s: float, now_s: float, reason: str) -> Change | None:
        may_eject = self._roster.may_eject(member)
        return member.health.request_failed(sent_at_s, now_s, may_eject=may_eject, reason=reason)

    def _release(
        self,
        ticket: T,
        member: Member[T],
        change: Change | None,
        now_s: float,
        effects: list[Effect[T]],
        *,
        readmit: bool = False,
    ) -> None:
        """Give the lease back, tell what it changed, and let those go who waited for it."""
        lease = self._roster.release(member, ticket, now_s)
        del self._dispatcher.homes[ticket]
        ticket.lease = None
        if member.left:
            self._forget_left(member)
            self._placer.look_again()
        self._dispatcher.waiting.ended(ticket, self._forecast.charge_s(lease, now_s))
        if member.memory.swap is not None and not self._dispatcher.stopping:
            self._placer.swaps.go_on(member, now_s, effects)
        settled = self._settle(member, change, now_s, effects)
        if readmit:
            self._dispatcher.readmit(ticket, now_s, effects)
        if settled:
            self._dispatcher.drain_all(now_s, effects)
        elif self._dispatcher.waiting.total:
            self._dispatcher.drain_beside(ticket.request, now_s, effects)

    def _settle(self, member: Member[T], change: Change | None, now_s: float, effects: list[Effect[T]]) -> bool:
        """Make a flip of health known and take its consequences; True: who may serve whom has changed."""
        if member.health.state is not Health.EJECTED:
            member.probation, shut = None, False
        else:
            shut = member.probation is not None or now_s < member.health.back_at_s
        if change is None and shut == member.shut:
            return False
        member.shut = shut
        self._roster.refresh()
        if change is not None and change.before is Health.DOWN:
            member.memory.failed.clear()  # loads that failed because it went down say nothing of the next
            member.await_reading()
        if change is not None and self._roster.members.get(member.id) is member:
            effects.append(HealthChanged(member.id, *change))
            if change.after is Health.DOWN:
                effects.extend(Interrupt(ticket) for ticket, lease in member.leases.items() if not lease.committed)
        return True
