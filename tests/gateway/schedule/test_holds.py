"""Replicas whose process is not ready, and replicas that serve only some models."""

from __future__ import annotations

import pytest

from corral.model import Health, Hold
from tests.gateway.schedule.history import Stage, check


@pytest.mark.parametrize(
    "history",
    [
        # a replica that is held gets nothing new, what it does goes on
        """
        submit 1 -> send 1 a
        hold a coming ->
        submit 2 -> send 2 b
        finish 1 ->
        submit 3 ->
        release a -> send 3 a
        """,
        # where only one that is held could serve, requests wait while it is coming
        """
        replicas a
        hold a coming ->
        submit 1 ->
        submit 2 m other ->
        release a -> send 1 a, send 2 a
        """,
        # and are refused once it is not
        """
        replicas a
        hold a coming ->
        submit 1 ->
        hold a gone -> refuse 1 NO_REPLICA
        submit 2 -> refuse 2 NO_REPLICA
        """,
        # what changes a store waits for a leader that is coming, and not for one of another store
        """
        replicas a%big b%small
        hold a coming ->
        submit 1 - store big ->
        submit 2 - blob ->
        submit 3 - store small -> send 3 b
        drain b ->
        submit 4 - store small -> refuse 4 NO_REPLICA
        release a -> send 1 a, send 2 a
        """,
        # a drained one is not waited for
        """
        replicas a
        hold a coming ->
        drain a ->
        submit 1 -> refuse 1 NO_REPLICA
        """,
        # one that is coming but does not have the model is not waited for
        """
        tags b m x ->
        drain b ->
        hold a coming ->
        submit 1 x -> refuse 1 NO_REPLICA
        """,
        # where nobody has the model, the one that is coming is asked, so that Ollama itself says so
        """
        replicas a
        hold a coming ->
        submit 1 x ->
        release a -> send 1 a
        """,
        # nor is the one that failed the request
        """
        replicas a
        submit 1 -> send 1 a
        hold a coming ->
        fail 1 reset -> refuse 1 EXHAUSTED
        """,
        # a failed attempt waits for the one that is coming
        """
        submit 1 -> send 1 a
        hold b coming ->
        hold a coming ->
        fail 1 reset ->
        release a ->
        release b -> send 1 b
        """,
        # a gateway that stops waits for nobody
        """
        replicas a
        hold a coming ->
        submit 1 ->
        stop -> refuse 1 STOPPING
        """,
        # it may be held before it is there
        """
        replicas a
        hold b coming ->
        replicas a b ->
        drain a ->
        submit 1 ->
        release b -> refresh
        tags b m -> send 1 b
        """,
        # a hold ends with its replica
        """
        replicas a b
        hold b coming ->
        replicas a ->
        replicas a b ->
        tags b m ->
        drain a ->
        submit 1 -> send 1 b
        """,
        # probes while it is held say nothing of the process that comes
        """
        replicas a
        hold a coming ->
        probe a refused ->
        probe a refused ->
        probe a refused ->
        submit 1 ->
        release a -> send 1 a
        """,
    ],
)
def test_a_replica_whose_process_is_not_ready(history: str) -> None:
    check(history)


def test_health_begins_anew_with_another_process() -> None:
    stage = Stage("a b")
    stage.play("probe a refused", "probe a refused")
    assert stage.scheduler.snapshot(0).replicas[0].health is Health.DOWN
    stage.play("hold a coming", "release a")
    assert stage.scheduler.snapshot(0).replicas[0].health is Health.UNKNOWN
    assert stage.send("1") == "a"


def test_what_was_in_memory_is_forgotten_with_the_process() -> None:
    stage = Stage("a b")
    stage.play("ps a m", "hold a coming", "release a")
    assert stage.scheduler.snapshot(0).replicas[0].loaded is None


def test_the_reason_of_a_hold_is_shown_and_may_change() -> None:
    stage = Stage("a")
    stage.scheduler.set_hold("a", Hold("starting", coming=True), 0)
    stage.scheduler.set_hold("a", Hold("given up", coming=False), 0)
    assert stage.scheduler.snapshot(0).replicas[0].held == "given up"
    stage.play("release a")
    assert stage.scheduler.snapshot(0).replicas[0].held is None


def test_a_replica_that_moves_to_another_port_stays_drained_and_held() -> None:
    stage = Stage("a b")
    stage.play("drain a", "hold b coming", "replicas a@7001 b@7002")
    first, second = stage.scheduler.snapshot(0).replicas
    assert (first.enabled, second.held) == (False, "starting")


@pytest.mark.parametrize(
    "history",
    [
        # a model that one lists goes only there, any other model only elsewhere
        """
        replicas a=m b
        submit 1 n -> send 1 b
        submit 2 m -> send 2 a
        submit 3 m ->
        finish 2 -> send 3 a
        """,
        # also when the one that lists it is away
        """
        replicas a=m b
        drain a ->
        submit 1 m -> refuse 1 NO_REPLICA
        submit 2 n -> send 2 b
        """,
        # two may list the same model
        """
        replicas a=m b=m c
        submit 1 -> send 1 a
        submit 2 -> send 2 b
        submit 3 ->
        """,
        # what names no model, and what runs none, may go to any
        """
        replicas a=m
        submit 1 - other -> send 1 a
        submit 2 n show -> send 2 a
        submit 3 n -> refuse 3 NO_REPLICA
        """,
        # one that lists the model is waited for
        """
        replicas a=m b
        hold a coming ->
        submit 1 m ->
        submit 2 n -> send 2 b
        release a -> send 1 a
        """,
        # and one that does not list it is not
        """
        replicas a=m b
        hold b coming ->
        drain a ->
        submit 1 m -> refuse 1 NO_REPLICA
        """,
        # a reload that takes the list away opens the replica
        """
        replicas a=m b
        submit 1 n -> send 1 b
        submit 2 n ->
        replicas a b -> send 2 a
        """,
    ],
)
def test_a_replica_that_serves_only_some_models(history: str) -> None:
    check(history)
