"""How many slots a replica has is found out from the time that requests wait inside it."""

from __future__ import annotations

import heapq
from collections import deque
from random import Random

import pytest

from corral.gateway.schedule.effects import Send
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.slots import MOST, SlotFinder
from corral.gateway.schedule.ticket import Ticket
from corral.model import Figures, OllamaSample, Replica, RequestKind, RouteRequest
from corral.policies import make_policy
from tests.gateway.schedule.history import installed


class Engine:
    """A replica with some slots that has always more than enough to do: it answers in order of arrival."""

    def __init__(self, slots: int, *, seed: int = 1, tells: bool = True, configured: int | None = None) -> None:
        self.slots, self.tells, self.now_s = slots, tells, 0.0
        self._rng = Random(seed)
        policy = make_policy("least-inflight")
        self._scheduler: Scheduler[Ticket] = Scheduler(policy, "p", QueueLimits(1000), Random(seed))
        self._scheduler.set_replicas([Replica("a", "h", 1, slots=configured)], 0.0)
        self._scheduler.sampled(OllamaSample("a", 0.0, None, installed("m"), None), 0.0)
        self._inside: deque[Ticket] = deque()
        self._served: list[tuple[float, int, Ticket, float]] = []

    def run(self, answers: int, noise_s: float = 0.0) -> int:
        """So many answers later: how many requests it is sent at once."""
        for _ in range(answers):
            while self._scheduler.queued < 3:
                ticket = Ticket(RouteRequest(RequestKind.INFERENCE, "m:latest"), self.now_s)
                self._scheduler.submit(ticket, self.now_s)
                self._enter([ticket])
            end_s, _, ticket, queued_s = heapq.heappop(self._served)
            self.now_s = end_s
            self._begin()
            figures = Figures(queued_s=queued_s + self._rng.random() * noise_s) if self.tells else Figures()
            effects = self._scheduler.finish(ticket, self.now_s, ok=True, figures=figures)
            self._enter([effect.ticket for effect in effects if isinstance(effect, Send)])
        return self._scheduler.inflight

    def _enter(self, tickets: list[Ticket]) -> None:
        self._inside.extend(ticket for ticket in tickets if ticket.lease is not None)
        self._begin()

    def _begin(self) -> None:
        while self._inside and len(self._served) < self.slots:
            ticket = self._inside.popleft()
            assert ticket.lease is not None
            end_s = self.now_s + 2.0 * self._rng.lognormvariate(0.0, 0.4)
            heapq.heappush(self._served, (end_s, ticket.sequence, ticket, self.now_s - ticket.lease.sent_at_s))


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_slots_are_found_in_spite_of_noise(slots: int, seed: int) -> None:
    engine = Engine(slots, seed=seed)
    engine.run(100 * slots, noise_s=0.02)
    seen = [engine.run(1, noise_s=0.02) for _ in range(100)]
    assert set(seen) == {slots}


def test_they_come_down_again_and_are_tried_again_later() -> None:
    engine = Engine(4)
    assert engine.run(200) == 4
    engine.slots = 2
    engine.run(100)
    assert engine.run(1) == 2
    engine.slots = 6
    assert engine.run(50) == 2, "a limit that was found stands for a while"
    engine.run(2_000)
    assert engine.now_s > 600.0
    assert engine.run(1) == 6


def test_without_the_time_in_queue_nothing_is_said() -> None:
    assert Engine(4, tells=False).run(200) == 1


def test_what_is_configured_stands() -> None:
    assert Engine(4, configured=2).run(200) == 2
    assert Engine(1, configured=3).run(200) == 3


def test_only_answers_with_all_slots_taken_count() -> None:
    finder = SlotFinder()
    finder.slots = 3
    for _ in range(100):
        assert not finder.observe(2, 0.0, 1.0, 0.0)
        assert not finder.observe(4, 0.9, 1.0, 0.0)
    assert finder.slots == 3


def test_there_is_an_end_to_daring() -> None:
    finder = SlotFinder()
    for _ in range(10_000):
        finder.observe(finder.slots, 0.0, 1.0, 0.0)
    assert finder.slots == MOST
