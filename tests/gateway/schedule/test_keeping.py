"""How long clients want models kept: what the gateway's own loads ask for, what leaves when, and what leaves first."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random

import pytest

from corral.gateway.schedule.effects import Effect, LetGo, Load
from corral.gateway.schedule.keeping import Keeping
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import (
    Decision,
    Figures,
    InstalledModel,
    LoadedModel,
    OllamaSample,
    Replica,
    ReplicaView,
    RequestKind,
    RouteRequest,
)
from tests.gateway.schedule.pool import GIB, Pool, replicas

FIGURES = Figures(10, 20)


class Placing:
    """The first candidate, under a policy that places models."""

    places = True

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(candidates[0].id, "first")


class Stage:
    """Replicas with the models m and n, one at a time; of ``memory``, ``a m`` says what is there."""

    def __init__(self, *memory: str, ids: str = "ab", pinned: str = "", slots: int = 1, most: int = 1) -> None:
        self.now_s = 0.0
        self.effects: list[Effect[Ticket]] = []
        self.scheduler: Scheduler[Ticket] = Scheduler(Placing(), "p", QueueLimits(), Random(1))
        pins = {id: frozenset({"m:latest"}) for id in pinned}
        self.take(
            self.scheduler.set_replicas(
                [
                    Replica(id, "h", at, slots=slots, max_loaded=most, pinned=pins.get(id, frozenset()))
                    for at, id in enumerate(ids)
                ],
                0.0,
            )
        )
        installed = tuple(InstalledModel(f"{name}:latest", name) for name in "mnop")
        for id in ids:
            self.take(self.scheduler.sampled(OllamaSample(id, 0.0, None, installed, ()), 0.0))
        for each in memory:
            id, *models = each.split()
            self.read(id, *models)

    def read(self, id: str, *models: str) -> None:
        loaded = tuple(LoadedModel(f"{model}:latest", GIB, GIB, None) for model in models)
        self.take(self.scheduler.sampled(OllamaSample(id, self.now_s, None, None, loaded), self.now_s))

    def take(self, effects: list[Effect[Ticket]]) -> None:
        self.effects += effects

    def ask(self, keep_alive_s: float | None = None, model: str = "m", kind: str = "inference") -> Ticket:
        request = RouteRequest(RequestKind(kind), f"{model}:latest", keep_alive_s=keep_alive_s)
        ticket = Ticket(request, self.now_s)
        self.take(self.scheduler.submit(ticket, self.now_s))
        return ticket

    def end(self, ticket: Ticket, figures: Figures | None = FIGURES) -> list[str]:
        """Those that are told to let go."""
        effects = self.scheduler.finish(ticket, self.now_s, ok=True, figures=figures)
        self.take(effects)
        return [f"{effect.replica.id} {effect.model[0]}" for effect in effects if isinstance(effect, LetGo)]

    def loads(self) -> list[tuple[str, float | None]]:
        """All that were asked for: where, and how long the model is to stay."""
        return [(load.replica.id, load.keep_alive_s) for load in self.effects if isinstance(load, Load)]

    def loaded(self, ok: bool = True) -> None:
        """The last load has ended."""
        load = next(each for each in reversed(self.effects) if isinstance(each, Load))
        self.take(self.scheduler.load_ended(load.replica.id, load.number, self.now_s, ok=ok))

    def memory(self) -> dict[str, str]:
        states = self.scheduler.snapshot(self.now_s).replicas
        return {state.id: "".join(name[0] for name in state.loaded or ()) for state in states}


# ---- what the gateway's own loads ask for


@pytest.mark.parametrize("keep_alive_s", [3600.0, 0.5, inf, None])
def test_a_load_asks_for_what_the_request_that_waits_for_it_does(keep_alive_s: float | None) -> None:
    on = Stage()
    on.ask(keep_alive_s)
    assert on.loads() == [("a", keep_alive_s)]


@pytest.mark.parametrize("keep_alive_s", [60.0, None])
def test_where_it_is_pinned_a_load_asks_for_ever(keep_alive_s: float | None) -> None:
    on = Stage(ids="a", pinned="a")
    on.ask(keep_alive_s)
    assert on.loads() == [("a", inf)], "else it would leave after some minutes, and be loaded anew, again and again"


def test_a_further_copy_is_kept_as_the_last_request_that_said_anything_wants() -> None:
    on = Stage("a m")
    for keep_alive_s in (60.0, 3600.0, None):
        on.ask(keep_alive_s)
    assert on.loads() == [("b", 3600.0)]


def test_a_request_that_wants_nothing_kept_takes_back_what_others_wanted() -> None:
    on = Stage("a m")
    on.ask(3600.0)
    on.ask(0.0)
    assert on.loads() == [("b", None)]


def test_whoever_lets_go_of_a_model_takes_back_what_others_wanted() -> None:
    on = Stage("a m")
    on.end(on.ask(inf))
    on.end(on.ask(kind="unload"))
    on.ask()
    assert on.loads() == [("a", None)]


def test_it_holds_as_long_as_the_model_would_be_kept_after_its_last_request() -> None:
    on = Stage("a m")
    on.end(on.ask(20.0))
    on.now_s = 15.0
    on.end(on.ask())
    on.now_s = 30.0
    on.read("a")
    on.ask()
    assert on.loads() == [("a", 20.0)]
    on.loaded()
    on.now_s = 51.0
    on.read("b")
    on.ask()
    assert on.loads()[1:] == [("b", None)]


def test_wishes_are_forgotten_by_and_by_and_never_too_many() -> None:
    keeping = Keeping()
    for number in range(5000):
        keeping.asked(f"m{number}", 10.0, 0.0)
    assert len(keeping.wishes) <= 512
    keeping.asked("kept", inf, 0.0)
    keeping.forget_old(11.0)
    assert list(keeping.wishes) == ["kept"]
    keeping.rename("kept", "called")
    assert keeping.of("called", 1e9) == inf
    assert keeping.of("kept", 0.0) is None


# ---- what leaves when


def test_a_request_that_keeps_nothing_has_its_model_leave_and_the_other_copies_told() -> None:
    on = Stage("a m", "b m")
    ticket = on.ask(0.0)
    assert on.memory() == {"a": "m", "b": "m"}
    assert on.end(ticket) == ["b m"]
    assert on.memory() == {"a": "", "b": ""}


def test_who_waited_for_that_slot_has_the_model_loaded_at_once() -> None:
    on = Stage("a m", ids="a")
    first = on.ask(0.0)
    waits = on.ask()
    on.end(first)
    assert waits.queued
    assert on.loads() == [("a", None)]


def test_while_others_wait_for_it_no_other_copy_is_told() -> None:
    on = Stage("a m", "b m")
    first, _beside, _waits = on.ask(0.0), on.ask(), on.ask()
    assert on.end(first) == []
    assert on.memory() == {"a": "", "b": "m"}
    assert on.loads() == [("a", None)], "for the one who waits"


def test_a_client_that_only_lets_go_of_it_has_it_leave_whoever_waits() -> None:
    on = Stage("a m", "b m")
    for _ in range(3):
        on.ask()
    assert on.end(on.ask(kind="unload")) == ["b m"]


def test_where_it_is_pinned_nobody_tells_it() -> None:
    on = Stage("a m", "b m", pinned="b")
    assert on.end(on.ask(0.0)) == []
    assert on.memory() == {"a": "", "b": "m"}


def test_it_stays_while_others_use_it_and_leaves_with_the_last_of_them() -> None:
    on = Stage("a m", "b m", slots=2)
    keeps_nothing, other = on.ask(0.0), on.ask()
    on.scheduler.set_enabled("a", False, 0.0)
    beside = on.ask()
    assert on.end(keeps_nothing) == ["b m"]
    assert on.memory() == {"a": "m", "b": "m"}, "both are in use"
    on.end(other)
    assert on.memory() == {"a": "", "b": "m"}
    on.end(beside)
    assert on.memory() == {"a": "", "b": ""}


def test_whoever_wants_it_kept_afterwards_has_his_way() -> None:
    on = Stage("a m", ids="a", slots=2)
    keeps_nothing, keeps = on.ask(0.0), on.ask(60.0)
    on.end(keeps_nothing)
    on.end(keeps)
    assert on.memory() == {"a": "m"}


def test_who_waits_for_the_room_of_a_model_that_is_let_go_of_has_it_with_the_next_look() -> None:
    on = Stage("a m", ids="a")
    on.end(on.ask())
    on.ask(model="n")
    assert on.loads() == []
    on.end(on.ask(kind="unload"))
    on.take(on.scheduler.tick(0.0))
    assert on.loads() == [("a", None)]


def test_what_was_let_go_of_while_in_use_leaves_when_it_is_idle() -> None:
    on = Stage("a m", ids="a")
    used = on.ask()
    on.end(on.ask(kind="unload"))
    assert on.memory() == {"a": "m"}
    on.end(used)
    assert on.memory() == {"a": ""}


def test_an_error_changes_nothing() -> None:
    on = Stage("a m", "b m")
    assert on.end(on.ask(0.0), figures=None) == []
    assert on.memory() == {"a": "m", "b": "m"}


def test_a_client_that_leaves_has_its_replica_let_go_and_nobody_else() -> None:
    on = Stage("a m", "b m")
    ticket = on.ask(0.0)
    assert on.scheduler.spared(ticket, 0.0) == []
    assert on.memory() == {"a": "", "b": "m"}


def test_a_batch_after_which_nothing_is_kept_is_not_cut() -> None:
    on = Stage("a m", "b m")
    kept = RouteRequest(RequestKind.INFERENCE, "m:latest", text_bytes=1 << 20)
    assert on.scheduler.sharing(kept, 0.0) is not None
    leaves = RouteRequest(RequestKind.INFERENCE, "m:latest", text_bytes=1 << 20, keep_alive_s=0.0)
    assert on.scheduler.sharing(leaves, 0.0) is None


# ---- what leaves first


@pytest.mark.parametrize(("kept", "leaves"), [("m", "n"), ("n", "m")])
@pytest.mark.parametrize("keep_alive_s", [3600.0, inf])
def test_of_two_that_nobody_asks_for_the_one_that_a_client_wants_kept_stays(
    kept: str, leaves: str, keep_alive_s: float
) -> None:
    on = Stage("a m n", ids="a", most=2)
    for model in "mn":
        on.end(on.ask(keep_alive_s if model == kept else None, model))
    on.now_s = 600.0
    on.read("a", "m", "n")
    on.ask(model="o")
    assert on.scheduler.snapshot(600.0).replicas[0].changing == f"lets {leaves}:latest go for o:latest, for 0 s"


def test_one_that_was_loaded_to_be_kept_stays_though_nobody_has_used_it_since() -> None:
    on = Stage(ids="a", most=2)
    leaves = on.ask(inf)
    on.scheduler.cancel(leaves)
    on.loaded()
    for on.now_s in (1.0, 600.0):
        on.read("a", "m", "n")
    on.take(on.scheduler.tick(600.0))  # that it was asked for is forgotten by now
    on.ask(model="o")
    assert on.scheduler.snapshot(600.0).replicas[0].changing == "lets n:latest go for o:latest, for 0 s"


def test_of_two_that_are_kept_the_one_that_would_leave_sooner_leaves() -> None:
    on = Stage("a m n", ids="a", most=2)
    on.end(on.ask(7200.0, "m"))
    on.end(on.ask(700.0, "n"))
    on.now_s = 600.0
    on.read("a", "m", "n")
    on.ask(model="o")
    assert on.scheduler.snapshot(600.0).replicas[0].changing == "lets n:latest go for o:latest, for 0 s"


def test_one_that_is_kept_but_not_asked_for_leaves_for_and_before_one_that_is() -> None:
    pool = Pool(replicas("a", slots=2, max_loaded=2), loaded={"a": "mn"})
    request = RouteRequest(RequestKind.INFERENCE, "m:latest", keep_alive_s=inf)
    pool.do(pool.scheduler.submit(Ticket(request, 0.0), 0.0))
    pool.keep_asking("n", 5.0, 300.0)
    pool.run(280.0)
    pool.ask("o")
    pool.run(290.0)
    assert [(what, model) for _, what, _, model in pool.log if what in ("load", "unload")] == [
        ("unload", "m"),
        ("load", "o"),
    ]
