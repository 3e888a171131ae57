"""When the scheduler thinks that parts are answered sooner than the whole, and how many it wants."""

from __future__ import annotations

from random import Random

from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.sharing import Sharing
from corral.gateway.schedule.ticket import Ticket
from corral.model import (
    Figures,
    InstalledModel,
    LoadedModel,
    OllamaSample,
    ProbeResult,
    Replica,
    RequestKind,
    RouteRequest,
)
from corral.policies import make_policy

MODEL = "e:latest"
TOKEN_S = 1e-3


class Box:
    """Replicas a, b, … of which those in ``loaded`` hold the model."""

    def __init__(
        self,
        count: int = 4,
        loaded: str = "abcd",
        *,
        slots: int = 1,
        policy: str = "weighted-least-load",
        queue: int = 512,
    ) -> None:
        self.now_s = 0.0
        self.ids = "abcdefgh"[:count]
        self.scheduler: Scheduler[Ticket] = Scheduler(make_policy(policy), policy, QueueLimits(queue), Random(1))
        self.scheduler.set_replicas([Replica(id, id, 1, 1.0, slots) for id in self.ids], 0.0)
        for id in self.ids:
            self.read(id, held=id in loaded)

    def read(self, id: str, *, held: bool, remote: bool = False) -> None:
        memory = (LoadedModel(MODEL, 1, 1, None),) if held else ()
        installed = (InstalledModel(MODEL, "d", remote),)
        self.scheduler.sampled(OllamaSample(id, self.now_s, None, installed, memory), self.now_s)

    def sharing(self, tokens: int, *, coming: int = 0, model: str = MODEL) -> Sharing | None:
        request = RouteRequest(RequestKind.INFERENCE, model, text_bytes=4 * tokens)
        return self.scheduler.sharing(request, self.now_s, coming=coming)

    def ask(self, tokens: int = 100) -> Ticket:
        ticket = Ticket(RouteRequest(RequestKind.INFERENCE, MODEL, text_bytes=4 * tokens), self.now_s)
        self.scheduler.submit(ticket, self.now_s)
        return ticket

    def teach(self) -> None:
        """What a token takes, on those that hold the model."""
        for _ in range(20):
            tickets = [self.ask() for _ in self.ids]
            for ticket in tickets:
                self.scheduler.cancel(ticket)  # who waits for a load does not any more
            self.now_s += 100 * TOKEN_S
            for ticket in [ticket for ticket in tickets if ticket.lease is not None]:
                self.scheduler.first_byte(ticket, self.now_s)
                self.scheduler.finish(ticket, self.now_s, ok=True, figures=Figures(100))


def test_before_anything_was_learned_those_that_hold_the_model_share() -> None:
    assert Box().sharing(10_000) == Sharing(4, 12)
    assert Box(loaded="bd").sharing(10_000) == Sharing(2, 6)


def test_before_anything_was_learned_one_that_alone_holds_the_model_gets_the_whole() -> None:
    assert Box(loaded="c").sharing(10_000) is None
    assert Box(loaded="").sharing(10_000) is None


def test_alone_there_is_nobody_to_share_with() -> None:
    assert Box(1).sharing(10_000) is None


def test_more_slots_mean_more_parts_up_to_a_limit() -> None:
    assert Box(slots=2).sharing(10_000) == Sharing(4, 16)
    assert Box(slots=4).sharing(10_000) == Sharing(4, 32)
    assert Box(slots=64).sharing(10_000) == Sharing(4, 32)


def test_what_is_done_in_a_moment_is_not_cut() -> None:
    box = Box()
    box.teach()
    assert box.sharing(20) is None
    few = box.sharing(150)
    assert few is not None
    assert few.most_parts == 5
    assert box.sharing(10_000) == Sharing(4, 12)


def test_a_load_that_would_be_over_in_time_is_worth_a_part() -> None:
    """Of ten seconds alone; the load of a model of which nothing is known is thought to take six."""
    box = Box(loaded="a")
    box.teach()
    found = box.sharing(60_000)
    assert found is not None
    assert found.replicas == 4
    assert box.sharing(5_000) is None


def test_a_load_that_would_gain_next_to_nothing_is_not_worth_it() -> None:
    box = Box(2, loaded="a")
    box.teach()
    assert box.sharing(6_100) is None
    assert box.sharing(9_000) is not None


def test_where_the_gateway_does_not_place_models_all_must_hold_it() -> None:
    assert Box(policy="round-robin").sharing(10_000) == Sharing(4, 12)
    assert Box(policy="round-robin", loaded="abc").sharing(10_000) is None


def test_where_many_wait_already_nothing_is_gained() -> None:
    box = Box()
    for _ in range(4 + 23):
        box.ask()
    assert box.sharing(10_000) is not None
    box.ask()
    assert box.sharing(10_000) is None


def test_those_that_come_in_a_moment_count_as_waiting() -> None:
    assert Box().sharing(10_000, coming=23) is not None
    assert Box().sharing(10_000, coming=24) is None


def test_parts_take_no_more_than_half_of_the_queue_s_room() -> None:
    assert Box(queue=10).sharing(10_000) == Sharing(4, 5)
    assert Box(queue=10).sharing(10_000, coming=6) == Sharing(4, 2)


def test_a_replica_that_is_down_is_not_counted() -> None:
    box = Box(2)
    for _ in range(5):
        box.now_s += 1
        box.scheduler.probed("b", ProbeResult.REFUSED, box.now_s)
    assert box.sharing(10_000) is None


def test_cloud_models_are_not_cut() -> None:
    box = Box()
    box.read("b", held=False, remote=True)
    assert box.sharing(10_000) is None


def test_nor_are_models_that_nobody_has_or_that_are_being_changed() -> None:
    box = Box()
    assert box.sharing(10_000, model="other:latest") is None
    box.scheduler.freeze(frozenset({MODEL}), 0.0)
    assert box.sharing(10_000) is None


def test_nothing_is_submitted_by_asking() -> None:
    box = Box()
    box.sharing(10_000)
    assert (box.scheduler.inflight, box.scheduler.queued) == (0, 0)
