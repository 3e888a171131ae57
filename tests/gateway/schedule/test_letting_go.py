"""A client's request that only lets go of a model: where it goes, and what is known afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from corral.model import Decision, Figures, OllamaSample, ReplicaView, RouteRequest
from tests.gateway.schedule.history import Stage, loaded, words


class Placing:
    """The first candidate, under a policy that places models."""

    places = True

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(candidates[0].id, "first")


def stage(*memory: str, replicas: str = "a:1 b:1 c:1") -> Stage:
    """Three replicas that have the models m and n; of ``memory``, ``b m`` says what b holds."""
    made = Stage(replicas, policy=Placing())
    for id in [word.partition(":")[0] for word in replicas.split()]:
        made.play(f"tags {id} m n")
        made.play(f"ps {id}")
    for each in memory:
        made.play(f"ps {each}")
    return made


def let_go(on: Stage, number: str = "9", *, is_answered: bool = True) -> str:
    figures = Figures() if is_answered else None
    effects = on.scheduler.finish(on.tickets[number], on.now_s, ok=True, figures=figures)
    return ", ".join(words(effect) for effect in effects)


def in_memory(on: Stage) -> dict[str, tuple[str, ...] | None]:
    return {state.id: state.loaded for state in on.scheduler.snapshot(on.now_s).replicas}


def test_it_goes_where_the_model_is_and_takes_no_slot() -> None:
    on = stage("b m")
    on.play("submit 1 m")
    assert on.play("submit 9 m unload") == "send 9 b"


def test_where_nobody_holds_the_model_it_goes_anywhere_and_loads_nothing() -> None:
    on = stage("b n")
    assert on.play("submit 9 m unload") == "send 9 a"
    assert let_go(on) == ""
    assert in_memory(on) == {"a": (), "b": ("n:latest",), "c": ()}


def test_all_that_hold_the_model_let_go_of_it_and_the_next_request_has_it_loaded() -> None:
    on = stage("b m", "c m n")
    assert on.play("submit 9 m unload") == "send 9 b"
    assert let_go(on) == "let go c m"
    assert in_memory(on) == {"a": (), "b": (), "c": ("n:latest",)}
    assert on.play("submit 1 m").startswith("load")


def test_where_it_is_in_use_it_counts_as_in_memory_until_it_was_seen_to_be_gone() -> None:
    on = stage("b m", "c m")
    on.play("submit 1 m")
    on.play("submit 9 m unload")
    let_go(on)
    assert in_memory(on) == {"a": (), "b": ("m:latest",), "c": ()}


def test_an_error_of_the_replica_changes_nothing() -> None:
    on = stage("b m", "c m")
    on.play("submit 9 m unload")
    assert let_go(on, is_answered=False) == ""
    assert in_memory(on) == {"a": (), "b": ("m:latest",), "c": ("m:latest",)}


def test_what_somebody_else_had_a_replica_let_go_of_is_not_there_and_the_next_request_has_it_loaded() -> None:
    on = stage("b m n", "c m")
    assert on.play("left b m") == ""
    assert in_memory(on) == {"a": (), "b": ("n:latest",), "c": ("m:latest",)}
    assert on.play("left c m", "submit 1 m").startswith("load")


def test_it_is_there_all_the_same_while_it_is_in_use() -> None:
    on = stage("b m")
    assert on.play("submit 1 m") == "send 1 b"
    assert on.play("left b m", "left b o", "left z m") == ""
    assert in_memory(on)["b"] == ("m:latest",)


def test_a_reading_of_before_it_left_says_nothing() -> None:
    on = stage("b m")
    on.play("at 5")
    on.play("left b m")
    on.scheduler.sampled(OllamaSample("b", 4.9, None, None, loaded("m")), 5.0)
    assert in_memory(on)["b"] == ()
    on.play("at 6", "ps b m")
    assert in_memory(on)["b"] == ("m:latest",)


def test_one_that_fails_goes_to_another_replica_that_holds_the_model() -> None:
    on = stage("a m", "c m")
    assert on.play("submit 9 m unload") == "send 9 a"
    assert on.play("fail 9 reset").endswith("send 9 c")


def test_the_first_that_waits_for_a_model_is_let_into_a_full_queue() -> None:
    on = stage("a n", replicas="a:1")
    on.play("limits 1 60")
    assert on.play("submit 1 n") == "send 1 a"
    assert on.play("submit 2 n") == ""
    assert on.play("submit 3 n").startswith("refuse 3 QUEUE_FULL")
    assert on.play("submit 4 m") == "load a m"
    assert on.play("submit 5 m").startswith("refuse 5 QUEUE_FULL")
