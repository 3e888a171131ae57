"""Any order of events at all: what must hold after each of them, and at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from corral.errors import Fault, Refusal
from corral.gateway.schedule.effects import Effect, Interrupt, Load, Refuse, Send, Unload
from corral.gateway.schedule.health import HealthRules
from corral.gateway.schedule.memory import Memory
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Lease, Ticket
from corral.model import Health, OllamaSample, ProbeResult, Replica, ReplicaState, RequestKind, RouteRequest
from corral.policies import POLICIES, make_policy
from tests.gateway.schedule.changes import Changes
from tests.gateway.schedule.history import installed, loaded

PLACING = "weighted-least-load"
"""The policy that says what is in the replicas' memory; it is tried as often as all others together."""
IDS = ("a", "b", "c")
MODELS = ("m", "n", "o")
SIGNATURES = ("", "", "num_ctx=1")
STORES = ("one", "two")
ids = st.sampled_from(IDS)
policies = st.one_of(st.just(PLACING), st.sampled_from(sorted(POLICIES)))
picks = st.integers(0, 10_000)
FAULTS = [fault for fault in Fault if fault is not Fault.HUNG]
RULES = HealthRules(eject_after=3, eject_base_s=2.0, eject_max_s=5.0)
FOR_EVER = QueueLimits(1_000_000, 1e9)
WAITS = (RequestKind.INFERENCE, RequestKind.SHOW, RequestKind.UNLOAD)
CHANGES = (RequestKind.STORE, RequestKind.BLOB)


@st.composite
def some_replicas(draw: st.DrawFn) -> dict[str, Replica]:
    """All three. What one is pinned to it is not kept off."""
    replicas = {}
    for at, id in enumerate(IDS):
        model = frozenset({f"{draw(st.sampled_from(MODELS))}:latest"})
        none: frozenset[str] = frozenset()
        pinned, kept_off = draw(st.sampled_from(((none, none), (none, none), (model, none), (none, model))))
        slots, most = draw(st.sampled_from((None, 1, 2, 3))), draw(st.sampled_from((None, 1, 2)))
        store = draw(st.sampled_from((*STORES[:1] * 3, STORES[1])))
        replicas[id] = Replica(id, "h", at, slots=slots, max_loaded=most, pinned=pinned, kept_off=kept_off, store=store)
    return replicas


class Life(RuleBasedStateMachine):
    """Keeps its own books, from the effects alone, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.running: dict[Ticket, Replica] = {}
        self.committed: set[Ticket] = set()
        self.waiting: list[Ticket] = []
        """In order of arrival."""
        self.interrupted: list[Ticket] = []
        self.ended: Counter[Ticket] = Counter()
        self.met: dict[Ticket, list[str]] = {}
        self.submitted: list[Ticket] = []
        self.has: dict[str, set[str]] = {id: set() for id in IDS}
        self.retried = 0
        self.stopped = False
        self.places = False
        self.is_calm = False
        """The replicas are up, have all models and are not reconfigured, so that more happens in their memory."""
        self.changes = Changes()
        self.refusals: set[Ticket] = set()
        self.frozen: set[str] = set()
        self.changing: dict[Ticket, tuple[str, str]] = {}
        """Those in flight that change a store: where, and which."""

    @initialize(
        policy=policies,
        seed=st.integers(0, 1000),
        replicas=some_replicas(),
        max_requests=st.integers(0, 6),
        is_calm=st.booleans(),
    )
    def begin(self, policy: str, seed: int, replicas: dict[str, Replica], max_requests: int, is_calm: bool) -> None:
        self.limits = QueueLimits(max_requests, 60.0)
        self.is_calm = is_calm
        self.places = policy == PLACING
        self.replicas = replicas
        self.scheduler: Scheduler[Ticket] = Scheduler(make_policy(policy), policy, self.limits, Random(seed), RULES)
        self.take(self.scheduler.set_replicas(list(self.replicas.values()), 0.0))
        for id in IDS if is_calm else ():
            self.sample(id, set(MODELS))
            self.sample_memory(id, set())

    # ---- the books

    def take(self, effects: list[Effect[Ticket]]) -> None:
        states = {state.id: state for state in self.scheduler.snapshot(self.now_s).replicas}
        for effect in effects:
            match effect:
                case Send(ticket, lease, decision):
                    assert lease.ticket is ticket
                    assert ticket.lease is lease
                    assert decision.replica_id == lease.replica.id
                    self.sent(ticket, lease.replica, states[lease.replica.id])
                case Refuse(ticket, refusal, retry_after_s):
                    self.refused(ticket, refusal, retry_after_s)
                case Interrupt(ticket, Fault.HUNG):
                    assert ticket in self.running
                    assert ticket not in self.committed
                    self.interrupted.append(ticket)
                case Load(replica) | Unload(replica):
                    self.changes.begun(effect, self.memory(replica.id).swap, states[replica.id].inflight_by_model)
        self.changes.settled({id: self.memory(id).swap for id in states})

    def memory(self, id: str) -> Memory:
        """What the scheduler thinks of a replica's memory; no snapshot shows all of it."""
        return self.scheduler._roster.members[id].memory

    def sent(self, ticket: Ticket, replica: Replica, state: ReplicaState) -> None:
        assert state.enabled
        assert state.health is not Health.DOWN
        assert ticket not in self.running
        assert not self.ended[ticket]
        kind = ticket.request.kind
        assert kind not in WAITS or ticket.request.asked not in self.frozen or self.stopped
        if kind in CHANGES:
            self.leads(ticket, replica)
        if self.places and kind is RequestKind.INFERENCE and ticket.request.model is not None:
            self.changes.sent(replica, ticket.request.model, self.memory(replica.id).swap)
        if ticket.request.kind is RequestKind.INFERENCE and state.health is not Health.EJECTED:
            for older in self.waiting:
                if older is ticket:
                    break
                same = older.request == ticket.request
                assert not same or replica.id in older.excluded, f"{ticket} overtook {older} on {replica.id}"
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        self.running[ticket] = replica
        self.met.setdefault(ticket, []).append(replica.id)

    def leads(self, ticket: Ticket, replica: Replica) -> None:
        """It got something that changes a store: it is of that store, and one that changes it already, where any may
        go on."""
        store = ticket.request.store or next(iter(self.replicas.values())).store
        usable = {replica.id for replica in self.scheduler.usable()} - {*ticket.excluded}
        changing = {id for id, changed in self.changing.values() if changed == store and id in usable}
        assert replica.id in changing or (not changing and replica.store == store)
        if ticket.request.kind is RequestKind.STORE:
            self.changing[ticket] = (replica.id, replica.store)

    def refused(self, ticket: Ticket, refusal: Refusal, retry_after_s: int | None) -> None:
        assert ticket not in self.running
        if refusal in (Refusal.QUEUE_FULL, Refusal.WAITED_TOO_LONG):
            assert retry_after_s is not None
            assert 1 <= retry_after_s <= 600
        if refusal is Refusal.QUEUE_FULL:
            assert not ticket.excluded, "a retried request is never refused for a full queue"
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        self.refusals.add(ticket)
        self.end(ticket)

    def end(self, ticket: Ticket) -> None:
        self.ended[ticket] += 1

    def release(self, pick: int) -> Ticket:
        ticket = list(self.running)[pick % len(self.running)]
        self.forget(ticket)
        return ticket

    def forget(self, ticket: Ticket) -> None:
        del self.running[ticket]
        self.changing.pop(ticket, None)
        self.committed.discard(ticket)
        if ticket in self.interrupted:
            self.interrupted.remove(ticket)

    # ---- events

    @rule(seconds=st.sampled_from((0.0, 0.01, 0.25, 1.0, 3.0, 20.0)))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.take(self.scheduler.tick(self.now_s))

    @rule(model=st.sampled_from(MODELS), kind=st.sampled_from(RequestKind), replayable=st.booleans())
    def submit(self, model: str, kind: RequestKind, replayable: bool) -> None:
        self.admit(kind, None if kind is RequestKind.OTHER else f"{model}:latest", "", replayable or kind in WAITS)

    @rule(kind=st.sampled_from(CHANGES), store=st.sampled_from((None, *STORES)))
    def change_a_store(self, kind: RequestKind, store: str | None) -> None:
        self.admit(kind, None, "", True, store)

    @rule(models=st.sets(st.sampled_from(MODELS), max_size=1))
    def freeze(self, models: set[str]) -> None:
        self.frozen = {f"{model}:latest" for model in models}
        self.take(self.scheduler.freeze(frozenset(self.frozen), self.now_s))

    @rule(model=st.sampled_from(MODELS), signature=st.sampled_from(SIGNATURES), count=st.integers(1, 4))
    def submit_some(self, model: str, signature: str, count: int) -> None:
        for _ in range(count):
            self.admit(RequestKind.INFERENCE, f"{model}:latest", signature, True)

    def admit(
        self, kind: RequestKind, model: str | None, signature: str, replayable: bool, store: str | None = None
    ) -> None:
        ticket = Ticket(RouteRequest(kind, model, signature, store=store), self.now_s)
        ticket.replayable = replayable
        self.submitted.append(ticket)
        effects = self.scheduler.submit(ticket, self.now_s)
        if ticket.queued:
            assert kind in WAITS
            self.waiting.append(ticket)
        self.take(effects)

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        ticket = self.waiting.pop(pick % len(self.waiting))
        self.scheduler.cancel(ticket)
        self.scheduler.cancel(ticket)
        self.end(ticket)

    @precondition(lambda self: self.running)
    @rule(pick=picks)
    def first_byte(self, pick: int) -> None:
        ticket = list(self.running)[pick % len(self.running)]
        if ticket not in self.interrupted:
            self.scheduler.first_byte(ticket, self.now_s)
            self.committed.add(ticket)

    @precondition(lambda self: self.running)
    @rule(pick=picks, ok=st.booleans())
    def finish(self, pick: int, ok: bool) -> None:
        ticket = self.release(pick)
        self.end(ticket)
        self.take(self.scheduler.finish(ticket, self.now_s, ok=ok))

    @precondition(lambda self: self.running)
    @rule(pick=picks)
    def spare(self, pick: int) -> None:
        ticket = self.release(pick)
        self.end(ticket)
        self.take(self.scheduler.spared(ticket, self.now_s))

    @precondition(lambda self: len(self.running) > len(self.committed))
    @rule(pick=picks, fault=st.sampled_from(FAULTS))
    def fail(self, pick: int, fault: Fault) -> None:
        candidates = [ticket for ticket in self.running if ticket not in self.committed]
        self.fail_one(candidates[pick % len(candidates)], fault)

    @precondition(lambda self: self.interrupted)
    @rule()
    def obey_the_interruption(self) -> None:
        self.fail_one(self.interrupted[0], Fault.HUNG)

    def fail_one(self, ticket: Ticket, fault: Fault) -> None:
        if fault is Fault.STALE and not ticket.stale:
            self.met[ticket].pop()
        self.forget(ticket)
        self.retried += 1
        self.waiting.append(ticket)
        self.waiting.sort(key=lambda waiting: waiting.sequence)
        self.take(self.scheduler.failed(ticket, fault, self.now_s))

    @precondition(lambda self: not self.is_calm)
    @rule(id=ids, result=st.sampled_from(ProbeResult), times=st.integers(1, 3))
    def probe(self, id: str, result: ProbeResult, times: int) -> None:
        for _ in range(times):
            self.take(self.scheduler.probed(id, result, self.now_s))

    @rule(id=ids)
    def hear(self, id: str) -> None:
        self.scheduler.progress(id, self.now_s)

    @precondition(lambda self: not self.is_calm)
    @rule(id=ids, models=st.sets(st.sampled_from(MODELS)))
    def sample(self, id: str, models: set[str]) -> None:
        self.has[id] = {f"{model}:latest" for model in models}
        sample = OllamaSample(id, self.now_s, None, installed(*sorted(models)), None)
        self.take(self.scheduler.sampled(sample, self.now_s))

    @rule()
    def read_all_memories(self) -> None:
        """They hold what they are thought to hold, so that it goes on being known."""
        for state in self.scheduler.snapshot(self.now_s).replicas:
            self.sample_memory(state.id, {model.removesuffix(":latest") for model in state.loaded or ()})

    @rule(id=ids, models=st.sets(st.sampled_from(MODELS)))
    def sample_memory(self, id: str, models: set[str]) -> None:
        sample = OllamaSample(id, self.now_s, None, None, loaded(*sorted(models)))
        self.take(self.scheduler.sampled(sample, self.now_s))

    @precondition(lambda self: self.changes.pending)
    @rule(pick=picks, ok=st.sampled_from((True, True, False)))
    def change_ends(self, pick: int, ok: bool) -> None:
        pending = sorted(self.changes.pending)
        self.answer(pending[pick % len(pending)], ok)

    def answer(self, id: str, ok: bool) -> None:
        self.take(self.changes.end(self.scheduler, id, self.now_s, ok=ok))

    @precondition(lambda self: self.changes.pending)
    @rule(pick=picks)
    def replica_dies_in_between(self, pick: int) -> None:
        pending = sorted(self.changes.pending)
        id = pending[pick % len(pending)]
        self.answer(id, False)
        self.probe(id, ProbeResult.REFUSED, 2)

    @precondition(lambda self: not self.is_calm)
    @rule(id=ids, enabled=st.booleans())
    def operate(self, id: str, enabled: bool) -> None:
        if id in self.replicas:
            self.take(self.scheduler.set_enabled(id, enabled, self.now_s))

    @precondition(lambda self: not self.is_calm)
    @rule(replicas=some_replicas(), without=st.sets(ids, max_size=2))
    def reload(self, replicas: dict[str, Replica], without: set[str]) -> None:
        self.replicas = {id: replica for id, replica in replicas.items() if id not in without}
        for id in without:
            self.has[id] = set()
            self.changes.pending.pop(id, None)
        self.take(self.scheduler.set_replicas(list(self.replicas.values()), self.now_s))

    @precondition(lambda self: len(self.submitted) > 30 and not self.is_calm)
    @rule()
    def stop(self) -> None:
        self.stopped = True
        self.take(self.scheduler.stop(self.now_s))
        assert not self.waiting

    # ---- what holds after each

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        snapshot = self.scheduler.snapshot(self.now_s)
        assert snapshot.inflight == self.scheduler.inflight == len(self.running)
        assert snapshot.queued == self.scheduler.queued == len(self.waiting)
        assert sum(snapshot.queued_by_model.values()) == len(self.waiting)
        assert [ticket for ticket in self.submitted if ticket.queued] == self.waiting
        assert len(self.waiting) <= self.limits.max_requests + self.retried + len(MODELS) * self.places
        held = Counter((lease_of(t).replica.id, lease_of(t).key) for t in self.running if lease_of(t).key is not None)
        for state in snapshot.replicas:
            mine = {model: count for (id, model), count in held.items() if id == state.id}
            assert state.inflight_by_model == mine
            assert state.inflight == sum(replica.id == state.id for replica in self.running.values())

    @invariant()
    def each_replica_gets_a_request_once(self) -> None:
        for ticket, ids_met in self.met.items():
            assert len(ids_met) == len(set(ids_met)), f"{ticket} went to {ids_met}"

    @invariant()
    def every_ticket_is_in_one_place(self) -> None:
        for ticket in self.submitted:
            assert (ticket in self.running) + ticket.queued + self.ended[ticket] == 1

    @invariant()
    def nothing_waits_that_could_be_sent(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        snapshot = self.scheduler.snapshot(self.now_s)
        usable = [state for state in snapshot.replicas if state.enabled and state.health in (Health.UP, Health.UNKNOWN)]
        for ticket in self.waiting:
            model = ticket.request.model
            if ticket.request.kind is not RequestKind.INFERENCE or model is None or ticket.request.asked in self.frozen:
                continue
            for state in usable:
                free = state.inflight_by_model.get(model, 0) < (state.slots or 1)
                may = self.is_able(ticket, state) and (not self.places or self.is_there(ticket, state))
                assert not (free and may), f"{ticket} could be on {state.id}"

    def is_able(self, ticket: Ticket, state: ReplicaState) -> bool:
        """Whether the replica has its model and may run it."""
        model = ticket.request.model
        is_kept_off = model in self.replicas[state.id].kept_off
        return model in (state.installed or ()) and state.id not in ticket.excluded and not is_kept_off

    def is_there(self, ticket: Ticket, state: ReplicaState) -> bool:
        """Whether its model is in memory there, or nobody knows nor will in a moment, and it does not come or go."""
        request, memory = ticket.request, self.memory(state.id)
        if state.loaded is None:
            awaits_reading = self.scheduler._roster.members[state.id].awaits_reading
            return not awaits_reading and not memory.is_changing(request.model or "")
        return request.model in state.loaded and memory.holds(request.model or "", request.signature)

    @invariant()
    def a_policy_would_be_shown_what_is_true(self) -> None:
        """Views are cached; this fills the caches, so that the next event must clear what it changes."""
        if not hasattr(self, "scheduler"):
            return
        for state in self.scheduler.snapshot(self.now_s).replicas:
            held = state.inflight_by_model
            resident = None if state.loaded is None else frozenset(state.loaded)
            for model in ("m:latest", "n:latest", "m:latest"):
                view = self.scheduler._roster.members[state.id].view(model)
                assert (view.id, view.slots, view.loaded) == (state.id, state.slots or 1, resident)
                assert (view.inflight, view.inflight_model) == (sum(held.values()), held.get(model, 0))

    def teardown(self) -> None:
        """Let everything end; then nothing may be left."""
        if not hasattr(self, "scheduler"):
            return
        while self.running:
            self.finish(0, True)
        self.everybody_is_served_in_the_end()
        self.take(self.scheduler.set_limits(QueueLimits(0, 60.0), self.now_s))
        for _ in range(5):
            self.now_s += 61.0
            self.take(self.scheduler.tick(self.now_s))
            for id in sorted(self.changes.pending):  # nobody is refused while what he needs is being loaded
                self.answer(id, False)
            while self.running:
                self.spare(0)
        assert set(self.ended.values()) <= {1}
        assert self.ended.total() == len(self.submitted)
        assert leftovers(self.scheduler) == []

    def everybody_is_served_in_the_end(self) -> None:
        """Nothing fails any more, and no memory is full of pinned models: then who waits for what is there gets it."""
        self.take(self.scheduler.set_limits(FOR_EVER, self.now_s))
        self.freeze(set())
        free = [replace(replica, pinned=frozenset()) for replica in self.replicas.values()]
        self.replicas = {replica.id: replica for replica in free}
        self.take(self.scheduler.set_replicas(free, self.now_s))
        states = self.scheduler.snapshot(self.now_s).replicas
        usable = [state for state in states if state.enabled and state.health in (Health.UP, Health.UNKNOWN)]
        able = [ticket for ticket in self.waiting if any(self.is_able(ticket, state) for state in usable)]
        for _ in range(100):
            for id in sorted(self.changes.pending):
                self.answer(id, True)
            while self.running:
                self.finish(0, True)
            if not any(ticket.queued for ticket in able):
                break
            self.now_s += 1.0
            self.take(self.scheduler.tick(self.now_s))
        for ticket in able:
            assert not ticket.queued, f"{ticket} is never served"
            assert ticket not in self.refusals, f"{ticket} was refused"


def lease_of(ticket: Ticket) -> Lease:
    assert ticket.lease is not None
    return ticket.lease


def leftovers(scheduler: Scheduler[Ticket]) -> list[str]:
    """What is still kept of requests. The one place where tests look inside: a leak shows nowhere else."""
    dispatcher, roster = scheduler._dispatcher, scheduler._roster
    kept = {"lanes": dispatcher.waiting.lanes, "homes": dispatcher.homes, "asking": dispatcher._asking}
    for member in (*roster.members.values(), *roster._leaving.values()):
        kept |= {f"leases of {member.id}": member.leases, f"slots of {member.id}": member.inflight}
        kept |= {f"trial of {member.id}": [member.probation] if member.probation else []}
    kept |= {"leaving": roster._leaving, "store": roster._store_work}
    return [name for name, what in kept.items() if what]


Life.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None, derandomize=True)
TestLife = Life.TestCase
