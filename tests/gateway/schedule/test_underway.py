"""Who waits and for what, and who is with which replica, as the scheduler shows it to those who watch."""

from __future__ import annotations

from random import Random

from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.gateway.schedule.underway import SHOWN
from corral.model import Hold, InstalledModel, Need, OllamaSample, Replica, RequestKind, RouteRequest
from corral.policies import make_policy
from tests.gateway.schedule.pool import Pool, replicas


def small(*models: str) -> Scheduler[Ticket]:
    """One replica with one slot that lists these models; nothing is placed."""
    scheduler: Scheduler[Ticket] = Scheduler(make_policy("random"), "random", QueueLimits(100_000), Random(1))
    scheduler.set_replicas([Replica("a", "127.0.0.1", 1, slots=1)], 0.0)
    listed = tuple(InstalledModel(model, f"manifest of {model}") for model in models)
    scheduler.sampled(OllamaSample("a", 0.0, "1", listed, ()), 0.0)
    return scheduler


def submit(
    scheduler: Scheduler[Ticket],
    model: str = "m:latest",
    at_s: float = 0.0,
    *,
    rank: int = 1,
    kind: RequestKind = RequestKind.INFERENCE,
    tenant: str = "",
) -> Ticket:
    ticket = Ticket(RouteRequest(kind, model, rank=rank, tenant=tenant), at_s)
    scheduler.submit(ticket, at_s)
    return ticket


def test_who_waits_for_a_slot_is_told_where_it_would_be() -> None:
    scheduler = small("m:latest")
    submit(scheduler)
    submit(scheduler, at_s=1.0, rank=2)
    (one,) = scheduler.waiting(3.5)
    assert (one.model, one.rank, one.waited_s, one.position) == ("m:latest", 2, 2.5, 1)
    assert (one.need, one.replicas) == (Need.SLOT, ("a",))


def test_a_better_class_has_the_earlier_turn_and_the_list_is_by_arrival() -> None:
    scheduler = small("m:latest", "n:latest")
    for model in ("m:latest", "n:latest"):
        submit(scheduler, model)
    submit(scheduler, "m:latest", 1.0, rank=2)
    submit(scheduler, "n:latest", 2.0, rank=1)
    submit(scheduler, "m:latest", 3.0, rank=0)
    shown = [(one.model, one.rank, one.position) for one in scheduler.waiting(4.0)]
    assert shown == [("m:latest", 2, 2), ("n:latest", 1, 1), ("m:latest", 0, 1)]


def test_turns_are_as_they_will_be_served() -> None:
    scheduler = small("m:latest")
    busy = submit(scheduler, tenant="greedy")
    for index in range(30):
        submit(scheduler, at_s=index * 0.1, rank=index % 3, tenant=("greedy", "modest")[index % 7 == 0])
    expected = [one.number for one in sorted(scheduler.waiting(5.0), key=lambda one: one.position)]
    served = []
    for _ in range(3):
        effects = scheduler.spared(busy, 5.0)
        busy = effects[0].ticket  # type: ignore[union-attr]
        served.append(busy.sequence)
    assert served == expected[:3]


def test_only_the_oldest_are_listed_and_looking_changes_nothing() -> None:
    scheduler = small("m:latest")
    first = submit(scheduler)
    tickets = [submit(scheduler, at_s=float(index)) for index in range(3 * SHOWN)]
    shown = scheduler.waiting(500.0)
    assert [one.number for one in shown] == [ticket.sequence for ticket in tickets[:SHOWN]]
    assert [one.position for one in shown] == list(range(1, SHOWN + 1))
    assert scheduler.queued == 3 * SHOWN
    assert scheduler.spared(first, 500.0)[0].ticket is tickets[0]  # type: ignore[union-attr]


def test_who_waits_for_a_load_is_told_where_it_is_loaded() -> None:
    pool = Pool(replicas("ab"), loaded={"a": "n", "b": "n"})
    pool.ask("m")
    (one,) = pool.scheduler.waiting(0.0)
    (where,) = [state.id for state in pool.scheduler.snapshot(0.0).replicas if state.loading == "m:latest"]
    assert (one.need, one.replicas) == (Need.LOAD, (where,))
    pool.run(6.0)
    assert pool.scheduler.waiting(6.0) == ()
    assert all(state.loading is None for state in pool.scheduler.snapshot(6.0).replicas)


def test_what_leaves_for_a_load_is_named() -> None:
    pool = Pool(replicas("a", max_loaded=1), loaded={"a": "n"}, unload_s=2.0)
    pool.ask("m")
    pool.run(1.0)
    (state,) = pool.scheduler.snapshot(1.0).replicas
    assert (state.loading, state.leaving) == ("m:latest", ("n:latest",))


def test_the_other_reasons_to_wait() -> None:
    scheduler = small("m:latest", "n:latest")
    scheduler.freeze(frozenset({"n:latest"}), 1.0)
    submit(scheduler, "n:latest", 1.0)
    submit(scheduler, "nobody-has:it", 1.0)
    assert [one.need for one in scheduler.waiting(1.0)] == [Need.CHANGE, Need.LISTS]
    coming = small("m:latest")
    coming.set_hold("a", Hold("starting", coming=True), 1.0)
    submit(coming, "m:latest", 1.0)
    assert [one.need for one in coming.waiting(1.0)] == [Need.REPLICA]


def test_who_runs_is_shown_with_where_and_since_when() -> None:
    scheduler = small("m:latest")
    first = submit(scheduler, at_s=1.0)
    second = submit(scheduler, at_s=2.0)
    scheduler.first_byte(first, 2.5)
    (one,) = scheduler.running(3.0)
    assert (one.number, one.replica, one.for_s, one.waited_s, one.answering) == (first.sequence, "a", 2.0, 0.0, True)
    scheduler.finish(first, 4.0, ok=True)
    (one,) = scheduler.running(4.5)
    assert (one.number, one.waited_s, one.for_s, one.answering) == (second.sequence, 2.0, 0.5, False)
    assert one.predicted_s is None


def test_a_prediction_is_shown_once_there_is_one() -> None:
    pool = Pool(replicas("a"), loaded={"a": "m"})
    pool.keep_asking("m", 1.5, 30.0)
    pool.run(29.0)
    pool.ask("m")
    assert pool.scheduler.running(pool.now_s)
    assert all(one.predicted_s is None or one.predicted_s > 0 for one in pool.scheduler.running(pool.now_s))


def test_of_those_that_run_only_the_first_are_listed() -> None:
    scheduler = small()
    tickets = [submit(scheduler, kind=RequestKind.OTHER, at_s=float(index)) for index in range(2 * SHOWN)]
    shown = scheduler.running(1000.0)
    assert [one.number for one in shown] == [ticket.sequence for ticket in tickets[:SHOWN]]
    scheduler.spared(tickets[0], 1000.0)
    assert scheduler.running(1000.0)[-1].number == tickets[SHOWN].sequence
