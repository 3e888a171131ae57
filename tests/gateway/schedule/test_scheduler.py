"""The scheduler beside its histories: bugs it reports, policies it distrusts, what it shows and what it keeps."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from corral.errors import CorralError, Fault
from corral.gateway.schedule import costs, placement, prefix
from corral.gateway.schedule.member import LOADED_FRESH_S
from corral.gateway.schedule.order import Turns
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import (
    Decision,
    Health,
    OllamaSample,
    Policy,
    ProbeResult,
    Replica,
    ReplicaView,
    RequestKind,
    RouteRequest,
)
from corral.policies import make_policy
from tests.gateway.schedule.history import First, Numbered, Stage, installed
from tests.gateway.schedule.test_machine import leftovers


class Watching:
    """The first candidate, and a memory of what was shown."""

    def __init__(self) -> None:
        self.shown: list[dict[str, ReplicaView]] = []

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        self.shown.append({view.id: view for view in candidates})
        return Decision(candidates[0].id, "watched")

    def loaded(self, id: str) -> frozenset[str] | None:
        """What the last decision was told to be in the memory of that replica."""
        return self.shown[-1][id].loaded


class Raising:
    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        raise ZeroDivisionError("no luck")


class Inventing:
    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision("nowhere", "invented")


class Mute:
    """Written without types, it returns nothing."""

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        nothing: dict[str, Decision] = {}
        return nothing.get("x")  # type: ignore[return-value]


# ---- bugs are reported, not hidden


@pytest.mark.parametrize("again", ["finish 1", "broke 1", "spare 1", "fail 1 reset", "first 1"])
@pytest.mark.parametrize("once", ["finish 1", "spare 1", "broke 1"])
def test_a_lease_is_released_exactly_once(once: str, again: str) -> None:
    stage = Stage("a")
    stage.play("submit 1", once)
    with pytest.raises(CorralError, match="holds no lease"):
        stage.play(again)
    assert stage.scheduler.inflight == 0
    assert stage.send("2") == "a", "the mistake has cost no slot"


def test_ending_what_was_never_sent_is_a_bug() -> None:
    stage = Stage("a")
    stage.play("submit 1", "submit 2")
    for event in ("finish 2", "spare 2", "fail 2 reset", "first 2"):
        with pytest.raises(CorralError, match="holds no lease"):
            stage.play(event)
    assert stage.play("finish 1") == "send 2 a"


def test_failing_after_the_first_byte_is_a_bug_and_the_lease_stays() -> None:
    stage = Stage("a")
    stage.play("submit 1", "first 1")
    with pytest.raises(CorralError, match="after its first byte"):
        stage.play("fail 1 reset")
    assert stage.scheduler.inflight == 1
    stage.play("broke 1")


def test_submitting_twice_is_a_bug() -> None:
    stage = Stage("a")
    stage.play("submit 1")
    with pytest.raises(CorralError, match="twice"):
        stage.scheduler.submit(stage.tickets["1"], 0.0)


def test_draining_an_unknown_replica_names_it() -> None:
    with pytest.raises(CorralError, match="there is no replica 'z'"):
        Stage("a").play("drain z")


# ---- the policy is foreign code


@dataclass(frozen=True)
class Talking:
    """The first one, for a reason of all kinds."""

    reason: Any

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(candidates[0].id, self.reason)


@pytest.mark.parametrize("reason", [None, 5, ["a"], b"a", "two\nlines", "\ud800"])
def test_a_reason_that_is_no_line_of_text_is_the_policys_fault(reason: object) -> None:
    """It becomes a label of a metric, a part of a head and a word in a log."""
    stage = Stage("a", policy=Talking(reason))
    assert stage.send("1") == "a"
    decision = stage.tickets["1"].decision
    assert decision is not None
    assert decision.reason == "policy failed"
    assert "no line of text" in str(error_of(stage))


def test_of_a_reason_that_is_no_few_words_only_the_beginning_is_kept() -> None:
    stage = Stage("a", policy=Talking("x" * 100_000))
    stage.send("1")
    decision = stage.tickets["1"].decision
    assert decision is not None
    assert (decision.reason, error_of(stage)) == ("x" * 80, None)


def error_of(stage: Stage) -> str | None:
    return stage.scheduler.policy_error


@pytest.mark.parametrize(("policy", "problem"), [(Raising(), "no luck"), (Inventing(), "'nowhere'"), (Mute(), "None")])
def test_a_broken_policy_costs_no_request(policy: Policy, problem: str) -> None:
    stage = Stage("a b", policy=policy)
    assert {stage.send("1"), stage.send("2")} == {"a", "b"}
    decision = stage.tickets["1"].decision
    assert decision is not None
    assert decision.reason == "policy failed"
    assert problem in str(error_of(stage))
    stage.scheduler.set_policy(First(), "first")
    stage.play("finish 1", "finish 2")
    assert stage.send("3") == "a"
    assert error_of(stage) is None


def test_the_reason_of_the_policy_is_passed_on() -> None:
    stage = Stage("a")
    stage.play("submit 1", "submit 2 m store")
    reasons = [ticket.decision.reason for ticket in stage.tickets.values() if ticket.decision]
    assert reasons == ["first", "leader"]


def test_a_policy_is_shown_only_replicas_that_may_take_the_request() -> None:
    policy = Watching()
    stage = Stage("a b c d", policy=policy)
    stage.play("drain a", "probe b refused", "probe b refused", "tags c n", "submit 1")
    assert [set(shown) for shown in policy.shown] == [{"d"}]


def test_a_view_counts_what_is_in_flight_now() -> None:
    policy = Watching()
    stage = Stage("a:3 b", policy=policy)
    stage.play("submit 1 m", "submit 2 n", "submit 3 m cloud", "submit 4 m")
    views = [shown["a"] for shown in policy.shown]
    assert [(view.inflight, view.inflight_model) for view in views] == [(0, 0), (1, 0), (2, 1), (2, 1)]
    stage.play("finish 1", "submit 5 n")
    assert (policy.shown[-1]["a"].inflight, policy.shown[-1]["a"].inflight_model) == (2, 1)
    assert policy.shown[-1]["a"].slots == 3
    assert policy.shown[-1]["b"].slots == 1


def test_a_view_holds_what_is_loaded_and_what_is_being_loaded() -> None:
    policy = Watching()
    stage = Stage("a:2 b:2", policy=policy)
    stage.play("submit 1 m", "finish 1")
    assert policy.loaded("a") is None, "never read: not known, whatever is in flight"
    stage.play("ps a n", "ps b", "submit 2 m", "submit 3 n")
    assert policy.loaded("a") == frozenset({"n:latest", "m:latest"})
    assert policy.loaded("b") == frozenset()
    stage.play("finish 2", "submit 4 m", "finish 4")
    assert policy.loaded("a") == frozenset({"n:latest", "m:latest"}), "Ollama keeps it until it is seen to be gone"
    stage.play("at 1", "ps a n", "submit 5 m")
    assert policy.loaded("a") == frozenset({"n:latest"})


def test_what_was_loaded_long_ago_is_not_known() -> None:
    policy = Watching()
    stage = Stage("a", policy=policy)
    stage.play("ps a m", f"at {LOADED_FRESH_S}", "tick", "submit 1", "finish 1")
    assert policy.loaded("a") == frozenset({"m:latest"})
    stage.play(f"at {LOADED_FRESH_S + 1}", "tick", "submit 2")
    assert policy.loaded("a") is None


def test_a_late_reading_does_not_undo_a_newer_one() -> None:
    stage = Stage("a")
    stage.play("at 2", "tags a new", "at 1", "tags a m", "ps a")
    assert stage.scheduler.snapshot(2).replicas[0].installed == ("new:latest",)


# ---- the rotation


def spread(scheduler: Scheduler[Ticket], count: int) -> list[str]:
    """Where so many requests go, each of them ended before the next."""
    sent = []
    for _ in range(count):
        ticket = Ticket(RouteRequest(RequestKind.INFERENCE, "m:latest"), 0.0)
        scheduler.submit(ticket, 0.0)
        assert ticket.lease is not None
        sent.append(ticket.lease.replica.id)
        scheduler.finish(ticket, 0.0, ok=True)
    return sent


def rotation(**weights: float) -> Scheduler[Ticket]:
    scheduler: Scheduler[Ticket] = Scheduler(make_policy("round-robin"), "round-robin", QueueLimits(), Random(4))
    configure(scheduler, **weights)
    return scheduler


def configure(scheduler: Scheduler[Ticket], **weights: float) -> None:
    scheduler.set_replicas([Replica(id, "h", ord(id), weight, 4) for id, weight in weights.items()], 0.0)
    for id in weights:
        scheduler.sampled(OllamaSample(id, 0.0, None, installed("m"), None), 0.0)


def test_round_robin_serves_everyone_once_a_round() -> None:
    sent = spread(rotation(a=1, b=1, c=1), 30)
    assert all(set(sent[at : at + 3]) == {"a", "b", "c"} for at in range(0, 30, 3))


def test_round_robin_follows_the_weights() -> None:
    assert Counter(spread(rotation(a=1.5, b=1, c=0.5), 300)) == {"a": 150, "b": 100, "c": 50}


def test_a_reload_does_not_restart_the_round() -> None:
    scheduler = rotation(a=1, b=1, c=1)
    sent = []
    for _ in range(30):
        sent += spread(scheduler, 1)
        configure(scheduler, a=1, b=1, c=1)
    assert all(set(sent[at : at + 3]) == {"a", "b", "c"} for at in range(0, 30, 3))


def test_who_was_away_does_not_get_all_missed_turns_at_once() -> None:
    scheduler = rotation(a=1, b=1)
    scheduler.set_enabled("a", False, 0.0)
    spread(scheduler, 100)
    scheduler.set_enabled("a", True, 0.0)
    assert spread(scheduler, 6).count("a") <= 4
    configure(scheduler, a=1, b=1, c=1)
    assert spread(scheduler, 9).count("c") <= 4


# ---- what it shows


def test_the_snapshot_says_what_an_operator_wants_to_know() -> None:
    stage = Stage("a:2 b")
    stage.play("tags b o", "drain b", "ps a m", "submit 1 m", "submit 2 m", "submit 3 n", "at 3", "submit 4 m")
    stage.play("submit 5 m store", "submit 6 m store", "at 7")
    snapshot = stage.scheduler.snapshot(stage.now_s)
    a, b = snapshot.replicas
    assert (a.inflight, a.inflight_by_model) == (5, {"m:latest": 2, "n:latest": 1})
    assert (a.enabled, b.enabled) == (True, False)
    assert (a.health, a.reason) == (Health.UP, "answers its probe")
    assert (a.installed, b.loaded) == (("m:latest", "n:latest"), None)
    assert a.loaded == ("m:latest", "n:latest"), "what it was sent since the last reading is in its memory, too"
    assert (a.slots, b.slots) == (2, None)
    assert (a.sample_age_s, b.sample_age_s) == (7.0, 7.0)
    assert (snapshot.queued, snapshot.queued_by_model) == (1, {"m:latest": 1})
    assert (snapshot.oldest_wait_s, snapshot.inflight, snapshot.policy) == (4.0, 5, "first")
    assert repr(stage.scheduler) == "<Scheduler first: 5 in flight, 1 queued | a up 5, b up 0>"


def test_who_has_a_model_is_told_apart_from_not_known() -> None:
    stage = Stage("a")
    stage.play("replicas a b")
    assert [replica.installed for replica in stage.scheduler.snapshot(0).replicas] == [("m:latest", "n:latest"), None]


def test_usable_and_the_stores_leader_follow_health_and_operator() -> None:
    stage = Stage("a b c")
    stage.play("drain a", "probe b refused", "probe b refused")
    assert [replica.id for replica in stage.scheduler.usable()] == ["c"]
    assert stage.play("submit 1 m store") == "send 1 c"
    stage.play("finish 1", "drain c")
    assert "send" not in stage.play("submit 2 m store")


def test_a_ticket_says_where_it_is() -> None:
    stage = Stage("a")
    stage.play("submit 1", "submit 2")
    assert repr(stage.tickets["1"]) == "<Numbered 0 inference m:latest on a>"
    assert repr(stage.tickets["2"]) == "<Numbered 1 inference m:latest queued>"


@pytest.mark.parametrize("fault", [Fault.CONNECT, Fault.STALE, Fault.BUSY])
def test_a_body_that_cannot_be_sent_again_is_not_retried(fault: Fault) -> None:
    stage = Stage("a b")
    stage.play("submit 1", "submit 2", "submit 3")
    stage.tickets["1"].replayable = False
    effects = stage.play(f"fail 1 {fault.name}")
    assert effects == "refuse 1 EXHAUSTED, send 3 a"


# ---- what it keeps


def live(scheduler: Scheduler[Ticket], names: range) -> None:
    """Requests for so many models that nobody has heard of, of every kind and end."""
    now_s = float(names.start)
    for name in names:
        now_s += 1.0
        kind = (RequestKind.INFERENCE, RequestKind.SHOW, RequestKind.CLOUD)[name % 3]
        request = RouteRequest(kind, f"model{name}:latest", signature=f"num_ctx={name}", prefix=(name, name + 1))
        tickets = [Ticket(request, now_s) for _ in range(3)]
        for ticket in tickets:
            scheduler.submit(ticket, now_s)
        for id in "ab":
            scheduler.sampled(OllamaSample(id, now_s, None, installed("m"), None), now_s)
        scheduler.cancel(tickets[2])
        while running := [ticket for ticket in tickets if ticket.lease]:
            if name % 5 == 0:
                scheduler.failed(running[0], Fault.BUSY, now_s)
            else:
                scheduler.finish(running[0], now_s, ok=True)
        scheduler.tick(now_s)


def test_the_names_of_models_leave_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients choose them, so their number has no bound. One that stays behind costs sixty bytes and more.

    Some are remembered, but not too many: here the bounds are so low that they are reached before it is measured.
    """
    for module in (costs, placement, prefix):
        monkeypatch.setattr(module, "_MOST_KEYS", 16)
    scheduler: Scheduler[Ticket] = Scheduler(make_policy("weighted-least-load"), "p", QueueLimits(), Random(2))
    scheduler.set_replicas([Replica("a", "h", 1), Replica("b", "h", 2)], 0.0)
    tracemalloc.start()
    try:
        live(scheduler, range(1_000, 1_300))
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        live(scheduler, range(1_300, 3_300))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2_500, "less than a byte a name"
    assert leftovers(scheduler) == []


def test_a_thousand_waiting_leave_nothing_behind() -> None:
    stage = Stage("a", limits=QueueLimits(max_requests=1000))
    stage.play(*(f"submit {number}" for number in range(1001)))
    assert stage.scheduler.queued == 1000
    for number in range(0, 1001, 2):
        stage.play(f"cancel {number}") if number else None
    for number in (0, *range(1, 1001, 2)):
        assert stage.tickets[str(number)].lease is not None
        stage.play(f"finish {number}")
    assert stage.scheduler.queued == stage.scheduler.inflight == 0
    assert leftovers(as_tickets(stage.scheduler)) == []


def test_one_that_was_failed_by_a_replica_makes_no_other_dearer_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over where only that replica is free, and nobody behind it is put in order anew for that."""
    stage = Stage("a b", limits=QueueLimits(max_requests=1000))
    stage.play("submit 1", "submit 2", *(f"submit {number}" for number in range(3, 400)), "fail 1 reset")
    assert stage.tickets["1"].queued
    added: list[Ticket] = []
    add = Turns.add

    def watched(self: Turns[Ticket], ticket: Ticket) -> None:
        added.append(ticket)
        add(self, ticket)

    monkeypatch.setattr(Turns, "add", watched)
    assert stage.play("finish 3") == "send 4 a"
    assert stage.play("finish 2") == "send 1 b", "it is still the first there"
    assert len(added) < 10


def as_tickets(scheduler: Scheduler[Numbered]) -> Scheduler[Ticket]:
    return scheduler  # type: ignore[return-value]


def test_the_probes_of_a_day_leave_nothing_behind() -> None:
    stage = Stage("a b")
    for second in range(200):
        stage.now_s = float(second)
        for id in "ab":
            result = "answered" if second % 7 else "timeout"
            stage.play(f"probe {id} {result}", f"tags {id} m n", f"ps {id} m", "tick")
    assert stage.scheduler.probed("a", ProbeResult.ANSWERED, 999.0) == []
    assert leftovers(as_tickets(stage.scheduler)) == []
