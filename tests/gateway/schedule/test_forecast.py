"""What the scheduler does with what it has learned: predicts, holds back, derates, relieves, and teaches policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from corral.gateway.schedule.balance import FOR_S
from corral.gateway.schedule.dispatcher import HOLD_S
from corral.gateway.schedule.effects import Unload
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import (
    Choice,
    Decision,
    Figures,
    GpuLoad,
    InstalledModel,
    LoadedModel,
    OllamaSample,
    Policy,
    Replica,
    ReplicaView,
    RequestKind,
    RouteRequest,
)
from corral.policies import make_policy

MODEL = "m:latest"
PROMPT_S, TOKEN_S = 1e-3, 10e-3
"""Seconds per token on a replica of weight 1."""


class Stage:
    """``quick`` is four times as fast as ``slow``; both hold the model, and both have taught what they cost."""

    def __init__(self, slots: int = 2, policy: Policy | None = None) -> None:
        self.now_s = 0.0
        self.speeds = {"quick": 4.0, "slow": 1.0}
        self.scheduler: Scheduler[Ticket] = Scheduler(
            policy or make_policy("weighted-least-load"), "p", QueueLimits(), Random(1)
        )
        self.scheduler.set_replicas([Replica(id, id, 1, 1.0, slots) for id in self.speeds], 0.0)
        for id in self.speeds:
            self.read(id)

    def read(self, id: str) -> None:
        installed, loaded = (InstalledModel(MODEL, "d"),), (LoadedModel(MODEL, 1, 1, None),)
        self.scheduler.sampled(OllamaSample(id, self.now_s, None, installed, loaded), self.now_s)

    def ask(self, tokens: int = 100) -> Ticket:
        request = RouteRequest(RequestKind.INFERENCE, MODEL, text_bytes=4 * tokens)
        ticket = Ticket(request, self.now_s)
        self.scheduler.submit(ticket, self.now_s)
        return ticket

    def home(self, ticket: Ticket) -> str | None:
        return None if ticket.lease is None else ticket.lease.replica.id

    def answer(self, ticket: Ticket, tokens: int = 100, output: int = 50, slowdown: float = 1.0) -> None:
        """At the replica's own pace, whatever runs beside it."""
        speed = self.speeds[self.home(ticket) or ""] / slowdown
        self.now_s += tokens * PROMPT_S / speed
        self.scheduler.first_byte(ticket, self.now_s)
        self.now_s += output * TOKEN_S / speed
        took_s = (output - 1) * TOKEN_S / speed
        figures = Figures(tokens, output, 0.0, 0.0, tokens * PROMPT_S / speed, took_s)
        self.scheduler.finish(ticket, self.now_s, ok=True, figures=figures)

    def teach(self, rounds: int = 30) -> None:
        """Two at once, so that both replicas learn."""
        for _ in range(rounds):
            both = [self.ask(), self.ask()]
            for ticket in both:
                self.answer(ticket)

    def last(self) -> Choice:
        return self.scheduler.explain()[-1]

    def cost_s(self, id: str) -> float:
        self.answer(self.ask())
        view = next(view for view in self.last().candidates if view.id == id)
        assert view.predicted is not None
        return view.predicted.cost_s


def test_nothing_is_predicted_before_anything_was_learned() -> None:
    stage = Stage()
    stage.ask()
    assert [view.predicted for view in stage.last().candidates] == [None, None]


def test_the_parts_are_what_they_were_measured_to_be() -> None:
    stage = Stage()
    stage.teach()
    stage.ask()
    parts = {view.id: view.predicted for view in stage.last().candidates}
    for id, speed in stage.speeds.items():
        predicted = parts[id]
        assert predicted is not None
        assert predicted.prefill_s == pytest.approx(100 * PROMPT_S / speed, rel=0.25)
        assert predicted.decode_s == pytest.approx(50 * TOKEN_S / speed, rel=0.25)
    assert stage.last().decision.replica_id == "quick"


def test_what_a_replica_was_sent_before_counts_as_seconds_saved() -> None:
    stage = Stage()
    stage.teach()
    prefix = tuple(range(1, 9))
    asked = RouteRequest(RequestKind.INFERENCE, MODEL, text_bytes=8 * 512, prefix=prefix)
    first = Ticket(asked, stage.now_s)
    stage.scheduler.submit(first, stage.now_s)
    home = stage.home(first)
    stage.answer(first, tokens=1024)
    stage.scheduler.submit(Ticket(asked, stage.now_s), stage.now_s)
    saved = {view.id: view.predicted.saved_s for view in stage.last().candidates if view.predicted is not None}
    assert saved.pop(home or "") > 0
    assert set(saved.values()) == {0.0}


def fill(stage: Stage) -> list[Ticket]:
    """Until ``quick`` has no slot left, and ``slow`` has one."""
    tickets = [stage.ask() for _ in range(3)]
    assert sorted(stage.home(ticket) or "" for ticket in tickets) == ["quick", "quick", "slow"]
    return tickets


def test_a_long_prompt_waits_for_a_much_quicker_replica() -> None:
    stage = Stage()
    stage.teach()
    tickets = fill(stage)
    long = stage.ask(tokens=4000)
    assert long.queued
    stage.answer(next(ticket for ticket in tickets if stage.home(ticket) == "quick"))
    assert stage.home(long) == "quick"


def test_a_short_prompt_takes_the_slot_there_is() -> None:
    stage = Stage()
    stage.teach()
    fill(stage)
    stage.now_s += 1.0
    assert stage.home(stage.ask(tokens=1)) == "slow"


def test_who_waits_for_a_quicker_replica_is_not_kept_for_long() -> None:
    stage = Stage()
    stage.teach()
    fill(stage)
    long = stage.ask(tokens=4000)
    stage.now_s += HOLD_S - 0.1
    stage.scheduler.tick(stage.now_s)
    assert long.queued
    stage.now_s += 0.2
    stage.scheduler.tick(stage.now_s)
    assert stage.home(long) == "slow"


def test_two_do_not_wait_for_one_slot() -> None:
    stage = Stage()
    stage.teach()
    fill(stage)
    first, second = stage.ask(tokens=4000), stage.ask(tokens=4000)
    assert [first.queued, second.queued].count(True) == 1


def test_nobody_waits_while_a_replica_is_idle() -> None:
    stage = Stage(slots=1)
    stage.teach()
    assert stage.home(stage.ask()) == "quick"
    assert stage.home(stage.ask(tokens=4000)) == "slow"


# ---- GPUs


def test_a_gpu_that_throttles_makes_its_replica_dearer_by_as_much_as_it_says() -> None:
    stage = Stage()
    stage.teach()
    before_s = stage.cost_s("quick")
    stage.scheduler.gpu_loaded("quick", GpuLoad(slowdown=1.5), stage.now_s)
    assert stage.cost_s("quick") == pytest.approx(1.5 * before_s, rel=0.1)


def test_what_slow_answers_have_taught_already_is_not_counted_twice() -> None:
    stage = Stage()
    stage.teach()
    before_s = stage.cost_s("quick")
    stage.scheduler.gpu_loaded("quick", GpuLoad(slowdown=1.5), stage.now_s)
    stage.scheduler.gpu_loaded("slow", None, stage.now_s)
    for _ in range(120):
        ticket = stage.ask()
        stage.answer(ticket, slowdown=1.5 if stage.home(ticket) == "quick" else 1.0)
    assert stage.cost_s("quick") == pytest.approx(1.5 * before_s, rel=0.2)


def test_work_of_others_counts_as_work() -> None:
    stage = Stage()
    stage.teach()
    before_s = stage.cost_s("quick")
    stage.scheduler.gpu_loaded("quick", GpuLoad(foreign=1.0), stage.now_s)
    assert stage.cost_s("quick") == pytest.approx(2 * before_s, rel=0.1)


def test_company_makes_no_cache_larger() -> None:
    """All takes longer beside others, and so does what the cache saves; it holds the same tokens."""
    stage = Stage()
    stage.teach()
    asked = RouteRequest(RequestKind.INFERENCE, MODEL, text_bytes=8 * 512, prefix=tuple(range(1, 9)))
    for id in stage.speeds:
        stage.scheduler.gpu_loaded(id, GpuLoad(foreign=1.0), stage.now_s)
    for _ in range(2):
        stage.scheduler.submit(ticket := Ticket(asked, stage.now_s), stage.now_s)
        lease = ticket.lease
        assert lease is not None
        stage.answer(ticket, tokens=1024)
    assert lease is not None
    assert lease.cached_tokens == pytest.approx(8 * 512 / 4, rel=0.05)


# ---- rounding, and what is forgotten


def test_an_answer_that_ends_as_it_begins_after_months_of_work_gives_its_slot_back() -> None:
    """The time that others worked is so large by then that a moment adds nothing to it."""
    stage = Stage()
    stage.teach(3)
    member = stage.scheduler._roster.members["quick"]
    stage.now_s, member._area = 1e7, 8e7
    stage.scheduler.tick(stage.now_s)
    for id in stage.speeds:
        stage.read(id)
    ticket = stage.ask()
    assert stage.home(ticket) == "quick"
    stage.scheduler.first_byte(ticket, stage.now_s)
    stage.now_s += 2e-9
    stage.scheduler.finish(ticket, stage.now_s, ok=True, figures=Figures(100, 50))
    assert stage.scheduler.inflight == 0


def test_a_model_that_was_let_go_of_takes_the_caches_of_all_its_options_along() -> None:
    """Also of those that name the context length that it has by itself, for which it is not loaded anew."""
    stage = Stage()
    prefixes = stage.scheduler._forecast.prefixes
    scheduler = stage.scheduler
    installed = tuple(InstalledModel(name, name) for name in (MODEL, "n:latest"))
    scheduler.set_replicas([Replica("quick", "quick", 1, 1.0, 2, max_loaded=1)], 0.0)
    scheduler.sampled(OllamaSample("quick", 0.0, None, installed, (LoadedModel(MODEL, 1, 1, 4096),)), 0.0)
    asked = RouteRequest(RequestKind.INFERENCE, MODEL, "num_ctx=4096", text_bytes=1024, prefix=(1, 2))
    scheduler.submit(ticket := Ticket(asked, 0.0), 0.0)
    stage.answer(ticket)
    assert prefixes.hit_blocks("quick", asked.key, asked.prefix) == 2
    stage.now_s += 1.0
    other = RouteRequest(RequestKind.INFERENCE, "n:latest")
    (unload,) = scheduler.submit(Ticket(other, stage.now_s), stage.now_s)
    assert isinstance(unload, Unload)
    scheduler.unload_ended("quick", unload.number, stage.now_s, ok=True)
    assert prefixes.hit_blocks("quick", asked.key, asked.prefix) == 0


# ---- balance


def test_a_replica_that_has_too_much_for_long_gets_dearer_until_it_has_not() -> None:
    stage = Stage(slots=8)
    stage.teach()
    member = stage.scheduler._roster.members["quick"]
    tickets = [stage.ask(tokens=10_000) for _ in range(2)]
    assert {stage.home(ticket) for ticket in tickets} == {"quick"}
    began_s = stage.now_s
    while stage.now_s < began_s + FOR_S + 1.0:
        stage.scheduler.tick(stage.now_s)
        assert member.is_overloaded == (stage.now_s - began_s >= FOR_S and member.load_s >= 1.0)
        stage.now_s += 0.25
    for ticket in tickets:
        stage.scheduler.spared(ticket, stage.now_s)
    stage.scheduler.tick(stage.now_s)
    assert not member.is_overloaded


# ---- policies that learn


@dataclass
class Student:
    """Remembers what it was told."""

    told: list[tuple[Choice, float, float, Figures | None]] = field(default_factory=list)
    fails: bool = False

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(candidates[0].id, "first")

    def learn(
        self, request: RouteRequest, choice: Choice, ttft_s: float, e2e_s: float, figures: Figures | None
    ) -> None:
        if self.fails:
            raise ValueError("no")
        self.told.append((choice, ttft_s, e2e_s, figures))


def test_a_policy_that_learns_is_told_what_became_of_its_choice() -> None:
    policy = Student()
    stage = Stage(policy=policy)
    stage.answer(stage.ask())
    ((choice, ttft_s, e2e_s, figures),) = policy.told
    assert choice is stage.last()
    assert ttft_s == pytest.approx(0.025)
    assert e2e_s == pytest.approx(0.15)
    assert figures is not None
    assert figures.output_tokens == 50


def test_a_policy_that_fails_to_learn_costs_no_request() -> None:
    stage = Stage(policy=Student(fails=True))
    stage.answer(stage.ask())
    assert stage.scheduler.policy_error == "could not learn: ValueError('no')"
    assert stage.scheduler.inflight == 0


# ---- slots where no answer tells durations


@pytest.mark.parametrize("true_slots", [1, 3])
def test_slots_are_found_out_from_first_bytes_alone(true_slots: int) -> None:
    stage = Stage(slots=0)
    stage.scheduler.set_replicas([Replica("quick", "quick", 1)], 0.0)
    stage.read("quick")
    member = stage.scheduler._roster.members["quick"]
    for _ in range(60):
        tickets = [ticket for ticket in (stage.ask() for _ in range(6)) if ticket.lease is not None]
        for number, ticket in enumerate(tickets):  # who finds no slot inside begins when another has ended
            late_s = 0.5 * (number // true_slots)
            stage.scheduler.first_byte(ticket, stage.now_s + late_s + 0.05 * (number + 1))
        stage.now_s += 0.5 + late_s
        for ticket in tickets:
            stage.scheduler.finish(ticket, stage.now_s, ok=True, figures=Figures(100, 50))
        for ticket in list(stage.scheduler._dispatcher.waiting):
            stage.scheduler.cancel(ticket)
        while stage.scheduler.inflight:
            for ticket in list(stage.scheduler._dispatcher.homes):
                stage.scheduler.spared(ticket, stage.now_s)
    assert true_slots <= member.slots_of(MODEL) <= true_slots + 1


# ---- who is thought slow is tried again


def test_an_idle_replica_that_once_was_slow_is_tried_again() -> None:
    stage = Stage()
    stage.teach()
    for _ in range(60):  # somebody else used its GPU, and nobody could see that
        both = [stage.ask(), stage.ask(), stage.ask()]
        for ticket in both:
            stage.answer(ticket, slowdown=12.0 if stage.home(ticket) == "quick" else 1.0)
    homes = []
    for _ in range(12):
        stage.now_s += 61.0
        stage.scheduler.tick(stage.now_s)
        ticket = stage.ask()
        homes.append(stage.home(ticket))
        stage.answer(ticket)
    assert homes[0] == "slow"
    assert homes[-1] == "quick"


def test_those_that_are_as_good_as_equal_share_the_work() -> None:
    stage = Stage(slots=8)
    stage.speeds = {"quick": 1.01, "slow": 1.0}
    stage.teach()
    homes = [stage.home(stage.ask(tokens=1)) for _ in range(8)]
    assert set(homes) == {"quick", "slow"}
