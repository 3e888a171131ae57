"""The order in which waiting requests are served, beside a model that sorts everything at every pick."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from corral.gateway.schedule.fairness import MOST_REMEMBERED, Shares
from corral.gateway.schedule.order import WAIT_WORTH
from corral.gateway.schedule.ticket import Ticket
from corral.gateway.schedule.waiting import STORE_LANE, QueueLimits, QueueOrder, ServiceTime, Waiting, lane_of
from corral.model import RequestKind, RouteRequest

LANE = "m:latest"
sequences = count()


def ticket(tenant: str = "a", at_s: float = 0.0, *, cost_s: float = 1.0, rank: int = 1, model: str = LANE) -> Ticket:
    made = Ticket(RouteRequest(RequestKind.INFERENCE, model, tenant=tenant, rank=rank), at_s)
    made.sequence, made.cost_s = next(sequences), cost_s
    return made


def served(waiting: Waiting[Ticket], now_s: float = 0.0) -> list[Ticket]:
    """All of the lane, one at a time, none of them charged."""
    order = []
    while (first := waiting.next_of(LANE, now_s)) is not None:
        waiting.remove(first, now_s)
        order.append(first)
    return order


def queue(*tickets: Ticket, limits: QueueLimits | None = None, service: ServiceTime | None = None) -> Waiting[Ticket]:
    waiting: Waiting[Ticket] = Waiting(limits, service)
    for one in tickets:
        waiting.add(one, one.arrived_at_s)
    return waiting


# -- lanes -------------------------------------------------------------------------------------------------------------


def test_a_lane_is_of_one_model_with_its_options() -> None:
    assert lane_of(RouteRequest(RequestKind.INFERENCE, "m:latest")) == "m:latest"
    assert lane_of(RouteRequest(RequestKind.INFERENCE, "m:latest", "num_ctx=4096")) == "m:latest num_ctx=4096"
    assert lane_of(RouteRequest(RequestKind.STORE, "m:latest")) == STORE_LANE
    assert lane_of(RouteRequest(RequestKind.OTHER, None)) == ""


def test_an_empty_lane_has_nobody_next() -> None:
    waiting: Waiting[Ticket] = Waiting()
    assert waiting.next_of(LANE, 0.0) is None
    assert list(waiting.odd_in_turn(LANE, 0.0)) == []
    assert waiting.oldest_s() == {}


def test_who_is_removed_meanwhile_is_passed_over() -> None:
    tickets = first, second, third = ticket(), ticket(), ticket()
    for one in tickets:
        one.excluded = ("a",)
    waiting = queue(*tickets)
    turns = waiting.odd_in_turn(LANE, 0.0)
    assert next(turns) is first
    waiting.remove(first)
    waiting.remove(second)
    assert list(turns) == [third]


# -- first come, first served ------------------------------------------------------------------------------------------


def test_tenants_that_had_alike_are_served_as_they_came() -> None:
    tickets = [ticket(tenant) for tenant in "abacbbca"]
    assert served(queue(*tickets)) == tickets


def test_one_that_comes_back_has_its_place_of_before() -> None:
    first, second, third = ticket(), ticket(), ticket()
    waiting = queue(second, third)
    waiting.add(first, 9.0)
    assert served(waiting) == [first, second, third]


def test_a_lead_of_less_than_the_quantum_changes_nothing() -> None:
    waiting = queue(early := ticket("a"), late := ticket("b"), limits=QueueLimits(quantum_s=5.0))
    waiting.charge("a", 5.0)
    assert served(waiting) == [early, late]


def test_who_had_much_more_goes_after_the_others() -> None:
    waiting = queue(early := ticket("a"), second := ticket("b"), third := ticket("b"), limits=QueueLimits(quantum_s=5))
    waiting.charge("a", 5.1)
    assert served(waiting) == [second, third, early]


def test_without_fairness_nobody_is_held_back() -> None:
    waiting = queue(early := ticket("a"), late := ticket("b"), limits=QueueLimits(fair=False))
    waiting.charge("a", 1e6)
    assert served(waiting) == [early, late]


def test_the_limits_may_change_while_requests_wait() -> None:
    waiting = queue(dear := ticket("a", cost_s=9.0), cheap := ticket("b"), limits=QueueLimits())
    waiting.use(QueueLimits(order="wspt"))
    assert waiting.next_of(LANE, 1.0) is cheap
    waiting.use(QueueLimits(order="fcfs", quantum_s=0.5))
    waiting.charge("a", 1.0)
    assert waiting.next_of(LANE, 1.0) is cheap
    waiting.use(QueueLimits(fair=False))
    assert waiting.next_of(LANE, 1.0) is dear


# -- by cost -----------------------------------------------------------------------------------------------------------


def test_the_cheapest_goes_first_where_that_is_wanted() -> None:
    dear, cheap, middling = ticket(cost_s=9.0), ticket(cost_s=1.0), ticket(cost_s=4.0)
    assert served(queue(dear, cheap, middling, limits=QueueLimits(order="wspt")), 1.0) == [cheap, middling, dear]


def test_a_second_of_waiting_is_worth_a_tenth_of_a_second_of_work() -> None:
    dear, cheap = ticket(at_s=0.0, cost_s=2.9), ticket(at_s=20.0, cost_s=1.0)
    assert served(queue(dear, cheap, limits=QueueLimits(order="wspt")), 21.0) == [dear, cheap]


def test_who_waits_too_long_goes_first_whatever_it_costs() -> None:
    dear, cheap = ticket(at_s=0.0, cost_s=900.0), ticket(at_s=30.0, cost_s=1.0)
    waiting = queue(dear, cheap, limits=QueueLimits(order="wspt"))
    assert waiting.next_of(LANE, 30.0) is cheap
    assert waiting.next_of(LANE, 30.1) is dear


def test_too_long_is_six_times_what_requests_usually_take() -> None:
    service = ServiceTime()
    assert service.cut_s == 30.0
    for seconds in (1.0, 20.0, 400.0):
        service.observe(seconds)
    assert service.cut_s == 120.0
    for _ in range(200):
        service.observe(2.0)
    assert service.cut_s == 30.0


def test_a_cost_predicted_anew_while_it_waits_loses_no_ticket() -> None:
    tickets = [ticket(cost_s=cost_s) for cost_s in (3.0, 1.0, 2.0)]
    waiting = queue(*tickets, limits=QueueLimits(order="wspt"))
    tickets[1].cost_s = 50.0
    waiting.remove(tickets[1])
    assert served(waiting) == [tickets[2], tickets[0]]


# -- classes -----------------------------------------------------------------------------------------------------------


def test_a_lower_class_number_goes_first() -> None:
    batch, normal, interactive = ticket(rank=2), ticket(rank=1), ticket(rank=0)
    assert served(queue(batch, normal, interactive)) == [interactive, normal, batch]


def test_the_class_counts_before_what_a_tenant_had() -> None:
    waiting = queue(batch := ticket("light", rank=2), chat := ticket("heavy", rank=0))
    waiting.charge("heavy", 1e3)
    assert served(waiting) == [chat, batch]


def test_who_waits_comes_up_class_by_class() -> None:
    batch, chat = ticket(at_s=0.0, rank=2), ticket(at_s=59.0, rank=0)
    waiting = queue(batch, chat)
    assert waiting.next_of(LANE, 59.9) is chat
    assert waiting.next_of(LANE, 60.0) is batch


def test_a_tenant_that_is_ahead_does_not_come_up_by_having_many_that_wait() -> None:
    flood = [ticket("flooder", at_s=0.0) for _ in range(5)]
    waiting = queue(*flood, light := ticket("light", at_s=99.0), batch := ticket("light", at_s=99.0, rank=2))
    waiting.charge("flooder", 1e3)
    assert served(waiting, 100.0) == [light, *flood, batch]


# -- shares ------------------------------------------------------------------------------------------------------------


MOST_S = 3.0


def drift_s(waiting: Waiting[Ticket], slots: int, rng: Random) -> float:
    """The most that the service of a and b, as measured, drifts apart while both wait for one of ``slots`` slots."""
    measured_s: dict[Ticket, float] = {}
    had_s, drift = {"a": 0.0, "b": 0.0}, 0.0
    running: list[Ticket] = []
    while len({one.request.tenant for one in waiting}) == 2:
        if len(running) == slots:
            ended = running.pop(rng.randrange(slots))
            waiting.ended(ended, measured_s[ended])
        first = waiting.next_of(LANE, 0.0)
        assert first is not None
        waiting.sent(first)
        running.append(first)
        measured_s[first] = rng.uniform(0.0, MOST_S)
        had_s[first.request.tenant] += measured_s[first]
        drift = max(drift, abs(had_s["a"] - had_s["b"]))
    return drift


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from((0.0, 2.0, 20.0)))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_while_two_wait_neither_gets_much_more_than_the_other(seed: int, slots: int, quantum_s: float) -> None:
    """By no more than quantum + 2 · slots · greatest cost, however wrong the predictions are.

    Who is sent was at most a quantum ahead, as charged. Until the next is sent, that and the others in flight are put
    right by at most a greatest cost for each slot; and what is charged differs by as much from what is measured.
    """
    rng = Random(seed)
    tenants = ["a"] * 60 + ["b"] * 60
    rng.shuffle(tenants)
    waiting = queue(
        *[ticket(tenant, cost_s=rng.uniform(0.0, MOST_S)) for tenant in tenants],
        limits=QueueLimits(quantum_s=quantum_s),
    )
    assert drift_s(waiting, slots, rng) <= quantum_s + 2 * slots * MOST_S


def test_who_asks_for_little_is_served_next_beside_a_flooder() -> None:
    waiting: Waiting[Ticket] = Waiting()
    waiting.sent(running := ticket("light", cost_s=0.1))
    for one in [ticket("flooder") for _ in range(100)]:
        waiting.add(one, 0.0)
    for _ in range(40):
        flood = waiting.next_of(LANE, 0.0)
        assert flood is not None
        waiting.sent(flood)
        waiting.ended(flood, 1.0)
    for _ in range(5):
        waiting.add(light := ticket("light", cost_s=0.1), 0.0)
        assert waiting.next_of(LANE, 0.0) is light
        waiting.sent(light)
        waiting.ended(running, 0.1)
        running = light


def test_a_tenant_far_behind_does_not_starve_one_that_was_alone_for_long() -> None:
    waiting = queue(*[ticket("old") for _ in range(3)])
    waiting.sent(first := ticket("usual"))
    waiting.ended(first, 1.0)
    waiting.sent(ticket("heavy", cost_s=1e6))
    waiting.add(heavy := ticket("heavy"), 0.0)
    passed = 0
    while waiting.next_of(LANE, 0.0) is not heavy and passed < 1000:
        waiting.sent(one := ticket("old"))
        waiting.ended(one, 1.0)
        passed += 1
    assert 0 < passed <= 300


def test_nobody_saves_up_a_claim_by_being_away() -> None:
    shares = Shares(1.0)
    shares.began("a", 500.0)
    shares.began("new", 0.0)
    assert shares.had_s["new"] == 500.0


def test_what_somebody_had_while_nobody_wanted_it_is_forgiven_in_part() -> None:
    shares = Shares(1.0)
    shares.began("old", 0.0)
    shares.began("heavy", 0.0)
    shares.charge("heavy", 1e6)
    shares.waits("old")
    shares.waits("heavy")
    assert shares.had_s["heavy"] - shares.had_s["old"] == shares.credit_s < 1e6


def test_the_prediction_is_put_right_at_the_end() -> None:
    waiting: Waiting[Ticket] = Waiting()
    stays = ticket("a")
    waiting.sent(stays)
    for cost_s, had_s in ((4.0, 5.0), (0.0, 5.0), (None, 6.0)):
        waiting.sent(one := ticket("a"))
        waiting.ended(one, cost_s)
        assert waiting.shares.had_s["a"] == had_s
        waiting.ended(one, 7.0)
        assert waiting.shares.had_s["a"] == had_s, "a lease ends once"


def test_the_quantum_is_no_more_than_some_usual_requests() -> None:
    shares = Shares(20.0)
    assert shares.quantum_s == 20.0
    shares.began("a", 0.1)
    shares.ended("a", 0.1, 0.1)
    assert shares.quantum_s == pytest.approx(0.4)
    shares.began("a", 1.0)
    shares.ended("a", 1.0, 0.0)
    assert shares.quantum_s == pytest.approx(0.4), "one that ran no model is not a usual request"


def test_the_names_of_tenants_leave_bounded_memory() -> None:
    shares = Shares(1.0)
    shares.began("always", 0.0)
    for number in range(MOST_REMEMBERED + 50):
        shares.began(f"tenant {number}", 9.0)
        shares.ended(f"tenant {number}", 9.0, None)
    assert len(shares._away_s) == MOST_REMEMBERED
    assert list(shares.had_s) == ["always"]
    light: Waiting[Ticket] = Waiting()
    for number in range(100):
        light.sent(one := ticket(f"tenant {number}"))
        light.ended(one, 1.0)
    shares = light.shares
    kept = [shares.had_s, shares._away_s, shares._active, shares._waiting, light._charged_s]
    assert not any(kept)


# -- any order of events -----------------------------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """Sorts everything at every pick, with the counters that the real one has."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.queued: list[Ticket] = []
        self.running: list[Ticket] = []

    @initialize(order=st.sampled_from(QueueOrder), fair=st.booleans(), quantum_s=st.sampled_from((0.0, 3.0, 20.0)))
    def begin(self, order: QueueOrder, fair: bool, quantum_s: float) -> None:
        self.limits = QueueLimits(order=order, fair=fair, quantum_s=quantum_s)
        self.waiting: Waiting[Ticket] = Waiting(self.limits)

    @rule(seconds=st.sampled_from((0.1, 2.0, 17.0)))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(
        tenant=st.sampled_from("abc"),
        cost_s=st.sampled_from((0.5, 1.0, 8.0)),
        rank=st.integers(0, 2),
        model=st.sampled_from((LANE, "n:latest")),
        number=st.integers(1, 4),
    )
    def arrive(self, tenant: str, cost_s: float, rank: int, model: str, number: int) -> None:
        for _ in range(number):
            self.join(ticket(tenant, self.now_s, cost_s=cost_s, rank=rank, model=model))

    def join(self, one: Ticket) -> None:
        self.waiting.add(one, self.now_s)
        self.queued.append(one)

    @precondition(lambda self: self.queued)
    @rule(pick=st.integers(0, 99))
    def cancel(self, pick: int) -> None:
        one = self.queued.pop(pick % len(self.queued))
        self.waiting.remove(one, self.now_s)

    @rule(model=st.sampled_from((LANE, "n:latest")))
    def send(self, model: str) -> None:
        first = self.waiting.next_of(model, self.now_s)
        assert first is self.expected(model)
        if first is not None:
            self.waiting.sent(first)
            self.queued.remove(first)
            self.running.append(first)

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 99), cost_s=st.sampled_from((None, 0.0, 2.0, 30.0)), comes_back=st.booleans())
    def end(self, pick: int, cost_s: float | None, comes_back: bool) -> None:
        one = self.running.pop(pick % len(self.running))
        self.waiting.ended(one, cost_s)
        if comes_back:
            one.excluded = ("somebody",)
            self.join(one)

    @rule(order=st.sampled_from(QueueOrder), fair=st.booleans())
    def reload(self, order: QueueOrder, fair: bool) -> None:
        self.limits = QueueLimits(order=order, fair=fair)
        self.waiting.use(self.limits)

    @precondition(lambda self: self.queued)
    @rule()
    def look_at_the_odd(self) -> None:
        odd = list(self.waiting.odd_in_turn(LANE, self.now_s))
        there = [one for one in self.queued if one.request.model == LANE and one.excluded]
        assert sorted(map(id, odd)) == sorted(map(id, there))

    def expected(self, model: str) -> Ticket | None:
        there = [one for one in self.queued if one.request.model == model]
        if not there:
            return None
        equals = self.equals(there)
        ages = {rank: self.risen(rank, equals) for rank in {one.request.rank for one in there}}
        rank = min(ages, key=lambda rank: ages[rank])
        first, oldest = (
            ages[rank][0],
            min((one for one in equals if one.request.rank == rank), key=lambda one: one.sequence, default=None),
        )
        if len(ages) > 1 and first < rank:
            return oldest
        return min(self.equals([one for one in there if one.request.rank == rank]), key=self.key())

    def risen(self, rank: int, equals: list[Ticket]) -> tuple[int, int]:
        mine = [one for one in equals if one.request.rank == rank]
        oldest = min(mine, key=lambda one: one.sequence, default=None)
        if oldest is None:
            return rank, min(one.sequence for one in self.queued if one.request.rank == rank)
        return max(0, rank - int((self.now_s - oldest.arrived_at_s) / self.limits.age_s)), oldest.sequence

    def equals(self, there: list[Ticket]) -> list[Ticket]:
        if not self.limits.fair:
            return there
        shares = self.waiting.shares
        limit_s = min(shares.had_s[one.request.tenant] for one in there) + shares.quantum_s
        return [one for one in there if shares.had_s[one.request.tenant] <= limit_s]

    def key(self) -> Callable[[Ticket], tuple[bool, float, int]]:
        def by(one: Ticket) -> tuple[bool, float, int]:
            late = self.now_s - one.arrived_at_s > 30.0
            if late or self.limits.order == "fcfs":
                return (False, 0.0, one.sequence)
            return (True, one.cost_s + WAIT_WORTH * one.arrived_at_s, one.sequence)

        return by

    @invariant()
    def nobody_is_lost_and_nobody_is_there_twice(self) -> None:
        if not hasattr(self, "waiting"):
            return
        assert list(self.waiting) == sorted(self.queued, key=lambda one: one.sequence)
        assert self.waiting.total == len(self.queued)
        assert all(one.queued for one in self.queued)
        tenants = {one.request.tenant for one in (*self.queued, *self.running)}
        assert self.waiting.shares.had_s.keys() == tenants


Life.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
TestLife = Life.TestCase
