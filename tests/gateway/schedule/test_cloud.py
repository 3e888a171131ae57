"""What runs in Ollama's cloud: no slot, no load, nothing learned, and always the same account."""

from __future__ import annotations

from random import Random

import pytest

from corral.errors import Fault
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import Figures, Health, OllamaSample, ProbeResult, Replica, RequestKind, RouteRequest
from corral.policies import make_policy
from tests.gateway.schedule.history import Stage, installed, loaded
from tests.gateway.schedule.pool import Pool, replicas

FAR = "far:latest"
FIGURES = Figures(prompt_tokens=100, output_tokens=50, prefill_s=0.1, decode_s=1.0)


class Box:
    """Three replicas under the default policy, all up, each with the stub ``far`` and the model ``m`` in memory."""

    def __init__(self, ids: str = "abc", stubs: str = "abc", slots: int = 1) -> None:
        self.now_s = 0.0
        self.scheduler: Scheduler[Ticket] = Scheduler(make_policy("weighted-least-load"), "p", QueueLimits(), Random(1))
        self.scheduler.set_replicas([Replica(id, "h", ord(id), slots=slots) for id in ids], 0.0)
        for id in ids:
            names = ("m", "far!") if id in stubs else ("m",)
            self.scheduler.probed(id, ProbeResult.ANSWERED, 0.0)
            self.scheduler.sampled(OllamaSample(id, 0.0, "0.32.15", installed(*names), loaded("m")), 0.0)

    def ask(self, kind: RequestKind, model: str | None) -> Ticket:
        ticket = Ticket(RouteRequest(kind, model, tenant="t"), self.now_s)
        self.scheduler.submit(ticket, self.now_s)
        return ticket

    def home(self, kind: RequestKind, model: str | None) -> str | None:
        """Where one goes; it is answered at once."""
        ticket = self.ask(kind, model)
        if ticket.lease is None:
            return None
        id = ticket.lease.replica.id
        self.scheduler.finish(ticket, self.now_s, ok=True, figures=FIGURES)
        return id

    def health(self, id: str) -> Health:
        return next(state.health for state in self.scheduler.snapshot(self.now_s).replicas if state.id == id)


IN_CLOUD = [
    (RequestKind.CLOUD, None),
    (RequestKind.CLOUD, "big:cloud"),
    (RequestKind.INFERENCE, FAR),
    (RequestKind.UNLOAD, FAR),
    (RequestKind.SHOW, FAR),
    (RequestKind.SHOW, "big:cloud"),
]


@pytest.mark.parametrize(("kind", "model"), IN_CLOUD)
def test_one_account_answers_for_all_and_others_only_while_it_is_away(kind: RequestKind, model: str | None) -> None:
    box = Box()
    assert {box.home(kind, model) for _ in range(10)} == {"a"}
    box.scheduler.set_enabled("a", False, 0.0)
    assert {box.home(kind, model) for _ in range(10)} == {"b"}
    box.scheduler.set_enabled("a", True, 0.0)
    assert box.home(kind, model) == "a"
    for _ in range(2):
        box.scheduler.probed("a", ProbeResult.REFUSED, 0.0)
    assert box.home(kind, model) == "b"


def test_a_stub_that_the_first_does_not_have_is_the_first_ones_that_has_it() -> None:
    box = Box(stubs="bc")
    assert {box.home(RequestKind.INFERENCE, FAR) for _ in range(5)} == {"b"}
    assert box.home(RequestKind.CLOUD, None) == "a"
    assert box.home(RequestKind.CLOUD, "other:cloud") == "a", "a name of the cloud needs no stub"
    assert box.home(RequestKind.CLOUD, FAR) == "b"


def test_whoever_fails_is_not_asked_twice_and_the_next_account_answers() -> None:
    box = Box()
    ticket = box.ask(RequestKind.CLOUD, "big:cloud")
    for fault, home in ((Fault.RESET, "b"), (Fault.CONNECT, "c")):
        box.scheduler.failed(ticket, fault, 0.0)
        assert ticket.lease is not None
        assert ticket.lease.replica.id == home


def test_any_number_runs_at_once_beside_full_slots() -> None:
    box = Box()
    for _ in range(3):
        assert box.ask(RequestKind.INFERENCE, "m:latest").lease is not None
    assert box.ask(RequestKind.INFERENCE, "m:latest").queued
    tickets = [box.ask(kind, model) for kind, model in IN_CLOUD for _ in range(20)]
    assert all(ticket.lease is not None and ticket.lease.key is None for ticket in tickets)
    state = box.scheduler.snapshot(0.0).replicas[0]
    assert (state.inflight_by_model, state.inflight) == ({"m:latest": 1}, 121)


def test_a_model_that_became_a_stub_does_not_wait_for_those_that_still_run_it() -> None:
    box = Box("a")
    assert box.ask(RequestKind.INFERENCE, "m:latest").lease is not None
    box.scheduler.sampled(OllamaSample("a", 1.0, None, installed("m!"), None), 1.0)
    ticket = box.ask(RequestKind.INFERENCE, "m:latest")
    assert ticket.lease is not None
    assert ticket.lease.key is None


def test_it_is_no_load_to_a_policy() -> None:
    """Neither counts nor turns: as many local requests go to the one with the account as to the others."""
    for policy in ("weighted-least-load", "round-robin", "least-inflight"):
        box = Box(slots=100)
        box.scheduler.set_policy(make_policy(policy), policy)
        homes: list[str] = []
        for _ in range(30):
            for kind, model in IN_CLOUD[:3]:
                box.ask(kind, model)
            ticket = box.ask(RequestKind.INFERENCE, "m:latest")
            assert ticket.lease is not None
            homes.append(ticket.lease.replica.id)
        assert {id: homes.count(id) for id in "abc"} == dict.fromkeys("abc", 10), policy


def test_it_is_charged_to_nobodys_share() -> None:
    box = Box()
    for kind, model in IN_CLOUD[:3]:
        for _ in range(50):
            box.ask(kind, model)
    assert box.scheduler._dispatcher.waiting.shares.had_s == {"t": 0.0}


def test_nothing_is_learned_from_it() -> None:
    box = Box()
    for kind, model in IN_CLOUD[:3]:
        for _ in range(20):
            ticket = box.ask(kind, model)
            box.now_s += 0.5
            box.scheduler.first_byte(ticket, box.now_s)
            box.now_s += 1.0
            box.scheduler.finish(ticket, box.now_s, ok=True, figures=FIGURES)
    forecast = box.scheduler._forecast
    for key in (FAR, "big:cloud", ""):
        assert not forecast.knows(key)
        assert not forecast.prefixes.keys_of("a")
    assert box.scheduler._dispatcher.service.retry_after_s(0, 1) == 5, "what nothing was seen of"
    assert box.scheduler._roster.members["a"].decoding == 0


def test_how_the_cloud_does_says_nothing_of_the_replica() -> None:
    """Broken streams of the cloud eject nobody, and its answers do not prove an ejected one well."""
    box = Box()
    for kind, model in IN_CLOUD[:3]:
        for _ in range(20):
            box.now_s += 1.0
            box.scheduler.finish(box.ask(kind, model), box.now_s, ok=False)
    assert box.health("a") is Health.UP
    while box.health("a") is not Health.EJECTED:
        box.now_s += 1.0
        ticket = box.ask(RequestKind.INFERENCE, "m:latest")
        assert ticket.lease is not None
        box.scheduler.finish(ticket, box.now_s, ok=ticket.lease.replica.id != "a")
    box.now_s += 11.0
    box.scheduler.tick(box.now_s)
    assert box.home(RequestKind.CLOUD, None) == "a"
    assert box.health("a") is Health.EJECTED
    assert box.home(RequestKind.SHOW, "m:latest") is not None


def test_a_stub_is_not_held_back_by_what_is_in_memory() -> None:
    """Not while a model is being loaded, nor while it has to be read again what is in memory, nor by a full one."""
    pool = Pool(replicas("a", max_loaded=1), loaded={"a": "m"})
    names = installed("m", "n", "far!")
    pool.do(pool.scheduler.sampled(OllamaSample("a", 0.0, None, names, None), 0.0))
    pool.ask("n")
    pool.run(1.0)
    assert pool.loads() == ["a n"]
    pool.ask("far", 3)
    assert pool.count("cold") == 3
    for result in [ProbeResult.REFUSED] * 2 + [ProbeResult.ANSWERED] * 2:
        pool.do(pool.scheduler.probed("a", result, pool.now_s))
    assert pool.scheduler._roster.members["a"].awaits_reading
    pool.ask("far", 3)
    assert pool.count("cold") == 6
    assert not any("far" in entry for entry in pool.loads())


def test_where_it_is_a_stub_only_for_some_it_is_a_model_like_any_other() -> None:
    """Separate stores may have two things under one name; whoever has the weights runs them."""
    stage = Stage("a b")
    stage.play("tags a m!", "tags b m")
    assert stage.play("submit 1") == "send 1 a"
    assert stage.play("submit 2") == "send 2 a"
    stage.play("drain a")
    assert stage.play("submit 3", "submit 4") == "send 3 b"


def test_a_show_of_a_cloud_model_that_nobody_lists_does_not_wait_for_lists() -> None:
    box = Box()
    box.now_s = 1.0
    assert box.ask(RequestKind.SHOW, "big:cloud").lease is not None
    assert box.ask(RequestKind.SHOW, "big:latest").queued
