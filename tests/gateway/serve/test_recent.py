"""What has just been begun and ended at the replicas."""

from __future__ import annotations

from corral.gateway.serve.recent import Recent


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_model_that_was_let_go_of_is_as_good_as_gone_for_a_moment_whatever_is_read() -> None:
    clock = Clock()
    recent = Recent(clock)
    recent.let_go("a", "m")
    assert recent.touched == {"a"}
    assert recent.has_left("a", "m", read_at_s=100.0)
    assert not recent.has_left("a", "n", read_at_s=99.0)
    assert not recent.has_left("b", "m", read_at_s=99.0)
    clock.now_s = 101.5
    assert not recent.has_left("a", "m", read_at_s=100.5), "it is read and read to be there"


def test_a_reading_from_before_says_nothing_for_as_long_as_it_may_take() -> None:
    clock = Clock()
    recent = Recent(clock)
    recent.let_go("a", "m")
    clock.now_s = 109.0
    assert recent.has_left("a", "m", read_at_s=99.0)
    clock.now_s = 111.0
    assert not recent.has_left("a", "m", read_at_s=99.0), "letting go may have failed"


def test_who_is_sent_something_for_it_may_have_it_again() -> None:
    recent = Recent(Clock())
    recent.let_go("a", "m")
    recent.let_go("b", "m")
    recent.wanted("a", "m", None)
    assert not recent.has_left("a", "m", read_at_s=99.0)
    assert recent.has_left("b", "m", read_at_s=99.0)


def test_names_leave_no_memory() -> None:
    clock = Clock()
    recent = Recent(clock)
    for number in range(1000):
        clock.now_s += 1.0
        recent.let_go("a", f"m{number}")
    assert len(recent.leaving) < 20
