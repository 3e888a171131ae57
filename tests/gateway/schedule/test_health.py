"""Health: the table itself, the counts before it, and what a flip does to requests."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from corral.gateway.schedule.health import TRANSITIONS, HealthRecord, HealthRules, Sign
from corral.model import Health, ProbeResult
from tests.gateway.schedule.history import Stage, check

PROBES = {
    "two refused probes are down, two answered are up": """
        probe a refused   ->
        probe a refused   -> a down
        probe a refused   ->
        probe a answered  ->
        probe a answered  -> a up
        probe a answered  ->
    """,
    "three timeouts are down, a late answer begins anew": """
        at 1
        probe a timeout   ->
        at 2
        probe a timeout   ->
        at 3
        probe a answered  ->
        at 4
        probe a timeout   ->
        at 5
        probe a timeout   ->
        at 6
        probe a timeout   -> a down
    """,
    "three nonsense answers are down": """
        probe a nonsense  ->
        probe a nonsense  ->
        probe a nonsense  -> a down
    """,
    "answers must come in a row to be up again": """
        probe a refused   ->
        probe a refused   -> a down
        probe a answered  ->
        probe a timeout   ->
        probe a answered  ->
        probe a answered  -> a up
    """,
    "a connection refused to a request breaks a row of answers": """
        submit 1          -> send 1 a
        probe a refused   ->
        probe a refused   -> a down, interrupt 1
        probe a answered  ->
        fail 1 connect    -> send 1 b
        probe a answered  ->
        probe a answered  -> a up
    """,
    "a connection refused to a request is a refused probe": """
        submit 1          -> send 1 a
        fail 1 connect    -> send 1 b
        probe a refused   -> a down
    """,
    "two requests that meet a dead replica take it out": """
        submit 1          -> send 1 a
        fail 1 connect    -> send 1 b
        submit 2          -> send 2 a
        fail 2 connect    -> a down
        finish 1          -> send 2 b
    """,
    "a probe that is answered in between clears the count": """
        submit 1          -> send 1 a
        fail 1 connect    -> send 1 b
        probe a answered  ->
        submit 2          -> send 2 a
        fail 2 connect    ->
    """,
    "a busy replica that does not answer its probe is not down": """
        submit 1          -> send 1 a
        at 1
        probe a timeout   ->
        at 2
        probe a timeout   ->
        at 2.5
        heard a           ->
        at 3
        probe a timeout   ->
        at 4
        probe a timeout   ->
        at 4.1
        first 1           ->
        at 5
        probe a timeout   ->
        at 6
        probe a timeout   ->
        at 7
        probe a timeout   ->
        at 8
        probe a timeout   -> a down
    """,
    "a request that ends well is a sign of life": """
        submit 1          -> send 1 a
        probe a refused   ->
        finish 1          ->
        probe a refused   ->
        probe a refused   -> a down
    """,
    "also to a probe that is under way": """
        submit 1          -> send 1 a
        at 1
        probe a timeout   ->
        at 1.5
        finish 1          ->
        at 2
        probe a timeout   ->
        at 3
        probe a timeout   ->
        at 4
        probe a timeout   ->
        at 5
        probe a timeout   -> a down
    """,
    "a client that leaves is none": """
        submit 1          -> send 1 a
        probe a refused   ->
        spare 1           ->
        probe a refused   -> a down
    """,
    "a refused probe counts though bytes came before it": """
        at 1
        heard a           ->
        probe a refused   ->
        heard a           ->
        probe a refused   -> a down
    """,
    "who has no byte yet is interrupted when its replica goes down, who has one is not": """
        replicas a:3
        submit 1          -> send 1 a
        submit 2          -> send 2 a
        submit 3 - other  -> send 3 a
        first 1           ->
        probe a refused   ->
        probe a refused   -> a down, interrupt 2, interrupt 3
        finish 1          ->
        fail 2 hung       -> refuse 2 EXHAUSTED
    """,
    "an interrupted request goes elsewhere at its old place": """
        replicas a b
        submit 1          -> send 1 a
        submit 2          -> send 2 b
        submit 3          ->
        probe a refused   ->
        probe a refused   -> a down, interrupt 1
        fail 1 hung       ->
        finish 2          -> send 1 b
    """,
    "a replica that comes back takes what waits": """
        replicas a b
        probe a refused   ->
        probe a refused   -> a down
        submit 1          -> send 1 b
        submit 2          ->
        probe a answered  ->
        probe a answered  -> a up, send 2 a
    """,
    "one not probed yet gets requests": """
        replicas a b
        replicas a b c    ->
        tags c new        ->
        submit 1 new      -> send 1 c
        probe c answered  -> c up
    """,
    "one never seen alive goes down like any other": """
        replicas a
        replicas a b      ->
        probe b refused   ->
        probe b refused   -> b down
    """,
    "a replica that reload removed is not probed any more": """
        replicas a b
        replicas b        ->
        probe a refused   ->
        probe a refused   ->
        tags a m          ->
        heard a           ->
    """,
}


@pytest.mark.parametrize("name", PROBES)
def test_history(name: str) -> None:
    check(PROBES[name])


def ejected(stage: Stage, fault: str = "crashed") -> None:
    """Have replica a fail five requests in a row; each of them then ends well on b."""
    for number in range(5):
        assert stage.send(f"e{number}") == "a"
        stage.play(f"fail e{number} {fault}", f"finish e{number}")
    assert stage.scheduler.snapshot(0).replicas[0].health is Health.EJECTED


@pytest.mark.parametrize("fault", ["busy", "crashed", "malformed", "reset"])
def test_five_failures_in_a_row_eject_and_requests_go_elsewhere(fault: str) -> None:
    stage = Stage("a b")
    ejected(stage, fault)
    assert stage.send("1") == "b"
    assert stage.play("submit 2") == "", "an ejected replica takes no request that a healthy one could serve later"
    assert "5 requests failed in a row" in stage.scheduler.snapshot(0).replicas[0].reason


@pytest.mark.parametrize("fault", ["stale", "hung"])
def test_what_is_nobodys_fault_ejects_nobody(fault: str) -> None:
    stage = Stage("a b")
    for number in range(9):
        stage.play(f"submit {number}", f"fail {number} {fault}", f"spare {number}")
    assert stage.scheduler.snapshot(0).replicas[0].health is Health.UP


def test_one_good_answer_in_between_begins_the_count_anew() -> None:
    stage = Stage("a b")
    for number in range(4):
        stage.play(f"submit {number}", f"fail {number} crashed", f"finish {number}")
    stage.play("submit good", "finish good")
    for number in range(4, 8):
        assert "ejected" not in stage.play(f"submit {number}", f"fail {number} crashed", f"finish {number}")
    assert stage.play("submit 8", "fail 8 crashed") == "send 8 a, a ejected, send 8 b"


def test_slowness_ejects_nobody() -> None:
    stage = Stage("a b")
    for number in range(9):
        stage.play(f"submit {number}", f"at {1000 * (number + 1)}", f"finish {number}", "tick")
    assert [replica.health for replica in stage.scheduler.snapshot(0).replicas] == [Health.UP, Health.UP]


def test_streams_that_break_together_are_one_failure() -> None:
    """A process that dies with ten streams and is back in a second must not sit out ten."""
    stage = Stage("a:10 b")
    numbers = range(10)
    for number in numbers:
        stage.play(f"submit {number}", f"first {number}")
    stage.play("at 1", *(f"broke {number}" for number in numbers))
    assert stage.scheduler.snapshot(1).replicas[0].health is Health.UP


def test_streams_that_break_one_after_the_other_eject() -> None:
    stage = Stage("a b")
    effects = [stage.play(f"submit {n}", f"first {n}", f"broke {n}") for n in range(5)]
    assert effects[-1] == "send 4 a, a ejected"


def test_a_replica_that_fails_fast_does_not_attract_traffic() -> None:
    """It looks idle after each failure. Of a thousand requests it must see a handful."""
    stage = Stage("a:4 b:4")
    met: Counter[str] = Counter()
    for number in range(1000):
        stage.play(f"at {number / 100}")
        if stage.send(str(number)) == "a":
            met["a"] += 1
            assert stage.play(f"fail {number} busy").endswith(f"send {number} b")
        stage.play(f"finish {number}", "tick")
    assert met["a"] == 5, "no more than it took to find out, in the ten seconds that it sits out"


def test_an_ejected_replica_sits_out_and_is_tried_with_one_request_at_a_time() -> None:
    stage = Stage("a:4 b:4")
    ejected(stage)
    stage.play("at 9.9", "tick")
    assert stage.send("1") == "b"
    stage.play("at 10", "tick")
    assert stage.send("2") == "a"
    assert stage.send("3") == "b"
    assert stage.play("finish 2") == "a up"
    assert stage.send("4") == "a"


def test_what_waits_goes_to_an_ejected_replica_when_its_time_is_over() -> None:
    stage = Stage("a b")
    ejected(stage)
    assert stage.send("1") == "b"
    assert stage.play("submit 2", "at 10", "tick") == "send 2 a"


def test_a_client_that_leaves_frees_the_trial_for_the_next() -> None:
    stage = Stage("a:4 b")
    ejected(stage)
    stage.play("at 10", "tick")
    assert stage.send("1") == "a"
    assert stage.send("2") == "b"
    assert stage.play("submit 3") == ""
    assert stage.play("spare 1") == "send 3 a"


def test_a_trial_that_is_being_answered_is_enough() -> None:
    """Its stream may last for minutes."""
    stage = Stage("a:4 b")
    ejected(stage)
    stage.play("at 10", "tick")
    assert stage.send("1") == "a"
    assert stage.send("2") == "b"
    assert stage.play("submit 3", "tick") == ""
    assert stage.play("first 1", "tick") == "a up, send 3 a"
    assert stage.play("broke 1") == "a ejected", "but the count goes on until one ends well"


def test_a_trial_that_still_streams_proves_nothing_after_the_next_ejection() -> None:
    stage = Stage("a:4 b")
    ejected(stage)
    stage.play("at 10", "tick", "submit 1", "first 1", "tick")
    assert stage.play("submit 2", "fail 2 crashed") == "send 2 a, a ejected, send 2 b"
    assert stage.play("finish 2", "at 11", "tick") == ""
    stage.play("at 30", "tick")
    assert stage.send("3") == "a"


def test_each_failed_trial_doubles_then_triples_the_time_up_to_the_limit() -> None:
    stage = Stage("a b", rules=HealthRules(eject_base_s=10, eject_max_s=25))
    ejected(stage)
    back_s = 0.0
    for attempt, time_s in enumerate((10, 20, 25, 25)):
        back_s += time_s
        stage.play(f"at {back_s - 0.1}", "tick")
        assert stage.send(f"early{attempt}") == "b"
        stage.play(f"finish early{attempt}", f"at {back_s}", "tick")
        assert stage.send(f"trial{attempt}") == "a"
        stage.play(f"fail trial{attempt} crashed", f"finish trial{attempt}")
    stage.play(f"at {back_s + 25}", "tick")
    assert stage.send("good") == "a"
    assert stage.play("finish good") == "a up"
    stage.now_s += 1
    for number in range(5):
        stage.play(f"submit again{number}", f"fail again{number} crashed", f"finish again{number}")
    stage.play(f"at {stage.now_s + 10}", "tick")
    assert stage.send("after") == "a", "a good answer has taken the count back: ten seconds again"


def test_an_ejected_replica_is_the_last_resort_and_comes_back_by_it() -> None:
    stage = Stage("a:2 b:2")
    ejected(stage)
    stage.play("drain b")
    assert stage.send("1") == "a"
    decision = stage.tickets["1"].decision
    assert decision is not None
    assert decision.reason == "last resort"
    assert stage.play("finish 1") == "a up"


def test_an_ejected_replica_is_the_last_resort_of_a_request_that_failed_elsewhere() -> None:
    stage = Stage("a b")
    ejected(stage)
    assert stage.send("1") == "b"
    assert stage.play("fail 1 reset") == "send 1 a"


def test_a_replica_that_comes_back_takes_what_waits_for_any_model() -> None:
    stage = Stage("a b")
    ejected(stage)
    stage.play("submit 1 n", "submit 2 n", "submit 3 m", "fail 3 reset")
    assert stage.play("finish 3") == "a up, send 2 a"


def test_failures_as_a_last_resort_do_not_lengthen_the_time() -> None:
    stage = Stage("a b")
    ejected(stage)
    stage.play("drain b", "at 5")
    for number in range(20):
        stage.play(f"submit {number}", f"fail {number} crashed")
    stage.play("resume b", "at 10", "tick")
    assert stage.send("1") == "a"


def test_the_last_one_is_not_ejected() -> None:
    """A model that crashes everywhere must not take everything out."""
    stage = Stage("a b c")
    for number in range(60):
        stage.play(f"submit {number}", *(f"fail {number} crashed" for _ in "abc"))
    assert Counter(replica.health for replica in stage.scheduler.snapshot(0).replicas) == {
        Health.EJECTED: 2,
        Health.UP: 1,
    }


def test_a_drained_or_dead_replica_is_no_reason_to_eject_the_last_working_one() -> None:
    stage = Stage("a b c")
    stage.play("drain b", "probe c refused", "probe c refused")
    for number in range(9):
        stage.play(f"submit {number}", f"fail {number} crashed")
    assert stage.scheduler.snapshot(0).replicas[0].health is Health.UP


def test_an_ejected_replica_that_dies_comes_back_by_probes_with_a_clean_slate() -> None:
    stage = Stage("a b")
    ejected(stage)
    assert stage.play("probe a refused", "probe a refused") == "a down"
    assert stage.play("at 1", "probe a answered", "probe a answered") == "a up"
    assert stage.send("1") == "a"
    assert stage.play("fail 1 crashed") == "send 1 b"


def test_an_ejected_replica_leads_only_if_there_is_no_other() -> None:
    stage = Stage("a b")
    ejected(stage)
    assert stage.play("submit s m store") == "send s b"
    stage.play("finish s", "drain b")
    assert stage.play("submit t m store") == "send t a"


def test_answered_probes_alone_do_not_end_an_ejection() -> None:
    stage = Stage("a b")
    ejected(stage)
    assert stage.play(*["probe a answered"] * 5) == ""
    assert stage.send("1") == "b"


def test_an_old_stream_that_ends_well_proves_nothing_about_an_ejected_replica() -> None:
    stage = Stage("a:2 b:2")
    stage.play("submit old", "first old", "at 1")
    ejected(stage)
    assert stage.play("finish old") == ""
    assert stage.send("1") == "b"


def test_a_dead_replica_is_out_within_three_probes_and_back_within_two() -> None:
    rules = HealthRules()
    assert max(rules.fall_refused, rules.fall_timeouts, rules.fall_nonsense) <= 3
    assert rules.rise <= 2


ALIVE_FIRST = {Health.UNKNOWN: 1, Health.UP: 1, Health.DOWN: 2, Health.EJECTED: 1}


def reach(state: Health) -> HealthRecord:
    record = HealthRecord(HealthRules())
    if state is Health.DOWN:
        record.probed(ProbeResult.REFUSED, 0)
        record.probed(ProbeResult.REFUSED, 0)
    elif state is not Health.UNKNOWN:
        record.probed(ProbeResult.ANSWERED, 0)
    if state is Health.EJECTED:
        for now_s in range(5):
            record.request_failed(now_s, now_s, may_eject=True, reason="crash")
    assert record.state is state
    return record


@pytest.mark.parametrize(("state", "sign"), list(product(Health, Sign)))
def test_the_table_is_what_happens(state: Health, sign: Sign) -> None:
    """Each sign in each state: the line of the table, or nothing."""
    record = reach(state)
    expected = TRANSITIONS.get((state, sign), state)
    match sign:
        case Sign.ALIVE:
            for _ in range(ALIVE_FIRST[state]):
                record.probed(ProbeResult.ANSWERED, 20)
        case Sign.DEAD:
            for _ in range(2):
                record.probed(ProbeResult.REFUSED, 20)
        case Sign.FAULTY:
            for now_s in range(20, 25):
                record.request_failed(now_s, now_s, may_eject=True, reason="crash")
        case Sign.PROVEN:
            record.request_answered(20, 21)
    assert record.state is expected


def test_one_that_only_an_ejected_replica_can_serve_does_not_wait_behind_those_that_wait_for_a_healthy_one() -> None:
    stage = Stage("a:5 b")
    for number in range(5):
        stage.play("drain a", f"submit e{number}", "resume a", f"fail e{number} crashed", f"finish e{number}")
    stage.play("submit 0", "submit 1", "submit 2", "submit 3", "submit 4", "replicas a:1 b")
    assert stage.play("fail 3 reset") == "send 3 b", "the last resort"
    assert stage.play("fail 4 reset", "fail 2 stale", "fail 1 stale") == "", "1 and 2 wait for a, 4 waits for b"
    assert stage.play("spare 3") == "send 4 b"
