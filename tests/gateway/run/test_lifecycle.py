"""The life of one replica as a table of histories: what happened, and what was done about it."""

from __future__ import annotations

from random import Random

import pytest

from corral.gateway.run.lifecycle import LifecycleRules, ProcessRecord
from corral.gateway.run.transitions import TRANSITIONS, Action, Hold, Sign
from corral.model import ProcessState

RULES = LifecycleRules(first_s=1, max_s=8, give_up_after=4, window_s=100, ready_s=30, stop_s=10, drain_s=60)


class Exact(Random):
    """No jitter."""

    def random(self) -> float:
        return 0.0


class Life:
    """A record and a clock that the history moves.

    Events: ``at 5`` · ``start`` · ``adopted`` · ``answered`` · ``warm`` · ``ends`` · ``restart`` · ``stop`` ·
    ``lost`` · ``back`` · ``xid`` · ``read`` · ``misread`` · ``tick`` · ``busy`` (a tick with a request in flight).
    """

    def __init__(self, rules: LifecycleRules = RULES) -> None:
        self.now_s = 0.0
        self.record = ProcessRecord(rules, Exact(), 0.0)

    def play(self, event: str) -> str:
        return ", ".join(words(action) for action in self._event(*event.split()))

    def _event(self, name: str, gpu: str = "g") -> list[Action]:
        record, now_s = self.record, self.now_s
        match name:
            case "at":
                self.now_s = float(gpu)
                return []
            case "start":
                return record.start(now_s, "planned")
            case "adopted":
                return record.adopted(now_s)
            case "answered":
                return record.answered(now_s)
            case "warm":
                return record.warm(now_s)
            case "ends":
                return record.ended(now_s, "exit code 1")
            case "restart":
                return record.restart(now_s, "asked for")
            case "stop":
                return record.stop(now_s, "asked for")
        return self._gpu_event(name, gpu)

    def _gpu_event(self, name: str, gpu: str) -> list[Action]:
        record, now_s = self.record, self.now_s
        match name:
            case "lost":
                return record.gpu_unfit(gpu, now_s, "GPU lost", 2.0)
            case "back":
                return record.gpu_fit(gpu, now_s)
            case "xid":
                return record.gpu_faulted(gpu, now_s, "Xid 48", 10.0)
            case "read" | "misread":
                return record.gpu_read(gpu, now_s, well=name == "read")
            case "tick" | "busy":
                return record.tick(now_s, int(name == "busy"))
        raise AssertionError(f"no event {name}")


def words(action: Action) -> str:
    return {"WarmUp": "warm up"}.get(type(action).__name__, type(action).__name__.lower())


HISTORIES = {
    "it serves only when it answers and is warm": """
        start     -> hold, spawn
        tick      ->
        answered  -> hold, warm up
        answered  ->
        warm      -> release
        tick      ->                       = running
    """,
    "an end by itself is followed by a pause, which doubles": """
        start     -> hold, spawn
        answered  -> hold, warm up
        warm      -> release
        ends      -> hold                  = backing off
        at 0.9
        tick      ->
        at 1
        tick      -> hold, spawn           = starting
        ends      -> hold
        at 2.9
        tick      ->
        at 3
        tick      -> hold, spawn
        ends      -> hold
        at 6.9
        tick      ->
        at 7
        tick      -> hold, spawn           = starting
    """,
    "after it ran well the pause is the shortest again": """
        start     -> hold, spawn
        ends      -> hold
        at 1
        tick      -> hold, spawn
        ends      -> hold
        at 3
        tick      -> hold, spawn
        answered  -> hold, warm up
        warm      -> release
        at 12
        ends      -> hold
        at 13
        tick      -> hold, spawn           = starting
    """,
    "too many ends within the window are a failure, which stays": """
        start     -> hold, spawn
        ends      -> hold
        at 1
        tick      -> hold, spawn
        ends      -> hold
        at 3
        tick      -> hold, spawn
        ends      -> hold
        at 7
        tick      -> hold, spawn
        ends      -> hold                  = failed
        at 7000
        tick      ->                       = failed
    """,
    "ends that are far apart are no failure": """
        start     -> hold, spawn
        ends      -> hold
        at 1
        tick      -> hold, spawn
        ends      -> hold
        at 3
        tick      -> hold, spawn
        ends      -> hold
        at 102
        tick      -> hold, spawn
        ends      -> hold                  = backing off
    """,
    "a restart takes a failure back, and what was counted": """
        start     -> hold, spawn
        ends      -> hold
        at 1
        tick      -> hold, spawn
        ends      -> hold
        at 3
        tick      -> hold, spawn
        ends      -> hold
        at 7
        tick      -> hold, spawn
        ends      -> hold                  = failed
        restart   -> hold, spawn           = starting
        ends      -> hold                  = backing off
        at 8
        tick      -> hold, spawn           = starting
    """,
    "one that does not answer in time is ended, and that counts": """
        start     -> hold, spawn
        at 29
        tick      ->
        at 30
        tick      -> hold                  = stopping
        tick      -> terminate
        ends      -> hold                  = backing off
        at 31
        tick      -> hold, spawn           = starting
    """,
    "one that is frozen while it starts is ended by force": """
        start     -> hold, spawn
        at 30
        tick      -> hold
        tick      -> terminate
        at 39
        tick      ->
        at 40
        tick      -> kill
        tick      ->
        ends      -> hold                  = backing off
    """,
    "a warm-up has no such limit": """
        start     -> hold, spawn
        at 29
        answered  -> hold, warm up
        at 3000
        tick      ->                       = starting
        warm      -> release               = running
    """,
    "while it runs nothing but its end counts": """
        start     -> hold, spawn
        answered  -> hold, warm up
        warm      -> release
        at 5000
        tick      ->
        answered  ->
        warm      ->                       = running
    """,
    "a restart lets requests finish first": """
        start     -> hold, spawn
        answered  -> hold, warm up
        warm      -> release
        restart   -> hold                  = stopping
        busy      ->
        at 5
        busy      ->
        tick      -> terminate
        ends      -> hold, spawn           = starting
    """,
    "requests are not waited for without end": """
        adopted   -> release               = running
        restart   -> hold
        at 59
        busy      ->
        at 60
        busy      -> terminate
        at 70
        busy      -> kill
        ends      -> hold, spawn           = starting
    """,
    "its end while requests are drained starts it at once": """
        adopted   -> release
        restart   -> hold
        busy      ->
        ends      -> hold, spawn           = starting
    """,
    "stopped it stays stopped until it is started": """
        adopted   -> release
        stop      -> hold                  = stopping
        tick      -> terminate
        ends      -> hold                  = stopped
        at 5000
        tick      ->
        start     -> hold, spawn           = starting
    """,
    "stopped while it waits, it does not start": """
        start     -> hold, spawn
        ends      -> hold
        stop      -> hold                  = stopped
        at 10
        tick      ->                       = stopped
    """,
    "stop after restart stops, restart after stop starts": """
        adopted   -> release
        restart   -> hold
        stop      ->
        restart   ->
        tick      -> terminate
        ends      -> hold, spawn           = starting
    """,
    "a stop while it restarts leaves it stopped": """
        adopted   -> release
        restart   -> hold
        stop      ->
        tick      -> terminate
        ends      -> hold                  = stopped
    """,
    "a lost GPU stops it soon, its return starts it": """
        adopted   -> release
        lost      -> hold                  = stopping
        busy      ->
        at 2
        busy      -> terminate
        ends      -> hold                  = stopped
        at 500
        tick      ->
        back      -> hold, spawn           = starting
    """,
    "a GPU lost in a long drain cuts it short": """
        adopted   -> release
        restart   -> hold
        at 10
        lost      ->
        at 12
        busy      -> terminate
        ends      -> hold                  = stopped
        back      -> hold, spawn           = starting
    """,
    "a GPU that is back before its process has ended starts it again": """
        adopted   -> release
        lost      -> hold
        back      ->                       = stopping
        tick      -> terminate
        ends      -> hold, spawn           = starting
    """,
    "all of its GPUs must be back": """
        adopted   -> release
        lost a    -> hold
        lost b    ->
        tick      -> terminate
        ends      -> hold                  = stopped
        back a    ->
        back b    -> hold, spawn           = starting
    """,
    "a lost GPU ends the pause, and its return begins at once": """
        start     -> hold, spawn
        ends      -> hold                  = backing off
        lost      -> hold                  = stopped
        at 9
        tick      ->
        back      -> hold, spawn           = starting
    """,
    "the return of a GPU does not take back a failure, nor what the operator stopped": """
        adopted   -> release
        lost      -> hold
        stop      ->
        tick      -> terminate
        ends      -> hold                  = stopped
        back      ->                       = stopped
    """,
    "a restart while the GPU is lost waits for it": """
        adopted   -> release
        lost      -> hold
        tick      -> terminate
        ends      -> hold                  = stopped
        restart   -> hold                  = stopped
        back      -> hold, spawn           = starting
    """,
    "a restart that was asked for while its GPU is lost and it still ends waits too": """
        adopted   -> release
        lost      -> hold
        restart   ->                       = stopping
        tick      -> terminate
        ends      -> hold                  = stopped
        back      -> hold, spawn           = starting
    """,
    "after a fault it starts when the GPU has been read well for a while": """
        adopted   -> release
        xid       -> hold                  = stopping
        tick      -> terminate
        ends      -> hold                  = stopped
        at 2
        read      ->
        at 11
        read      ->
        misread   ->
        at 13
        read      ->
        at 22
        read      ->
        at 23
        read      -> hold, spawn           = starting
    """,
    "readings alone do not bring back a GPU that was lost": """
        adopted   -> release
        lost      -> hold
        tick      -> terminate
        ends      -> hold
        read      ->
        at 500
        read      ->                       = stopped
    """,
    "many reports of one fault count once, faults count as ends": """
        adopted   -> release
        xid       -> hold
        xid       ->
        tick      -> terminate
        ends      -> hold                  = stopped
        back      -> hold, spawn
        xid       -> hold
        tick      -> terminate
        ends      -> hold                  = stopped
        back      -> hold, spawn
        xid       -> hold
        tick      -> terminate
        ends      -> hold                  = stopped
        back      -> hold, spawn
        xid       -> hold
        tick      -> terminate
        ends      -> hold                  = failed
        back      ->                       = failed
        restart   -> hold, spawn           = starting
    """,
    "an end that is told late or twice changes nothing": """
        start     -> hold, spawn
        ends      -> hold
        ends      ->
        warm      ->
        answered  ->                       = backing off
    """,
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
def test_history(history: str) -> None:
    life = Life()
    for number, line in enumerate(history.strip().splitlines()):
        told, _, state = line.partition("=")
        event, _, expected = told.partition("->")
        happened = life.play(event.strip())
        assert happened == expected.strip(), f"line {number + 1}: {line.strip()}; happened: {happened}"
        assert not state or life.record.state.value == state.strip(), f"line {number + 1}: {line.strip()}"


def test_every_state_can_be_left_and_is_reached() -> None:
    assert {state for state, _ in TRANSITIONS} == set(ProcessState)
    assert set(TRANSITIONS.values()) == set(ProcessState)
    assert {sign for _, sign in TRANSITIONS} == set(Sign)


def test_the_longest_pause_is_kept_and_jitter_only_shortens_it() -> None:
    record = ProcessRecord(LifecycleRules(first_s=1, max_s=60, give_up_after=1000), Random(7), 0.0)
    now_s, pauses = 0.0, []
    record.start(now_s, "planned")
    for _ in range(60):
        record.ended(now_s, "exit code 1")
        assert record.next_start_s is not None
        pauses.append(record.next_start_s - now_s)
        now_s = record.next_start_s
        record.tick(now_s, 0)
    assert all(0.75 <= pause <= 60 for pause in pauses)
    assert all(45 <= pause <= 60 for pause in pauses[6:])
    assert len(set(pauses[6:])) == len(pauses[6:])


def test_a_failure_says_how_often_and_why() -> None:
    life = Life(LifecycleRules(give_up_after=1))
    for event in ("start", "ends"):
        life.play(event)
    assert life.record.reason == "ended 1 times within 600 s, the last: exit code 1"


def test_what_is_known_of_a_gpu_that_it_no_longer_uses_is_forgotten() -> None:
    life = Life()
    for event in ("adopted", "lost", "tick"):
        life.play(event)
    life.record.keep_gpus(lambda uuid: uuid != "g")
    assert life.play("ends") == "hold, spawn"


def test_random_histories_never_serve_without_a_process_nor_start_a_second_one() -> None:
    names = ["start", "answered", "warm", "ends", "restart", "stop", "lost", "back", "xid", "read", "tick", "busy"]
    for seed in range(300):
        rng, life, runs = Random(seed), Life(), False
        for _ in range(120):
            life.now_s += rng.random() * 20
            name = rng.choice(names)
            if name == "ends":
                runs = False
            for action in life._event(name):
                if words(action) == "spawn":
                    assert not runs, f"seed {seed}: started twice"
                    runs = True
                assert words(action) != "release" or runs, f"seed {seed}: serves without a process"
            idle = life.record.state in (ProcessState.STOPPED, ProcessState.FAILED, ProcessState.BACKING_OFF)
            assert not (idle and runs), f"seed {seed}: left running"


def test_hold_tells_why() -> None:
    life = Life()
    life.play("adopted")
    assert life.record.stop(0.0, "the operator wants it") == [Hold("the operator wants it")]
