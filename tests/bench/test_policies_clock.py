"""Virtual time goes forwards, and equal times keep their order."""

from __future__ import annotations

from corral.laboratory.clock import Alarm, Clock


def test_what_is_due_happens_in_order_of_time_and_then_of_asking() -> None:
    clock, seen = Clock(), []
    for when_s, name in ((2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b")):
        clock.at(when_s, lambda name=name: seen.append((clock.now_s, name)))  # type: ignore[misc]
    clock.run(lambda: False, until_s=10.0)
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c"), (2.0, "d")]


def test_what_is_asked_for_the_past_happens_now() -> None:
    clock, seen = Clock(), []
    clock.at(3.0, lambda: clock.at(1.0, lambda: seen.append(clock.now_s)))
    clock.run(lambda: False, until_s=10.0)
    assert seen == [3.0]


def test_a_run_ends_when_it_is_over_or_its_time_is_past() -> None:
    clock, seen = Clock(), []
    for when_s in (1.0, 2.0, 3.0, 4.0):
        clock.at(when_s, lambda: seen.append(clock.now_s))
    clock.run(lambda: len(seen) == 2, until_s=10.0)
    assert seen == [1.0, 2.0]
    clock.run(lambda: False, until_s=3.5)
    assert seen == [1.0, 2.0, 3.0]


def test_an_alarm_rings_only_for_its_last_setting() -> None:
    clock, seen = Clock(), []
    alarm = Alarm(clock, lambda: seen.append(clock.now_s))
    for due_s in (5.0, 2.0, 5.0, None, 4.0, 5.0):
        alarm.set(due_s)
    clock.run(lambda: False, until_s=10.0)
    assert seen == [5.0]
    alarm.set(6.0)
    clock.run(lambda: False, until_s=10.0)
    assert seen == [5.0, 6.0]
