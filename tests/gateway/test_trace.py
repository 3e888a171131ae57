"""Whose trace a request belongs to, as W3C's Trace Context decides it."""

from __future__ import annotations

import time
from random import Random

import pytest

from corral.gateway.trace import Trail

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def forward(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1")


def as_the_client_says(parent: bool | None, trace_id: str) -> bool:
    return parent is not False


def trail(*lines: str) -> Trail:
    return Trail(forward("Accept: */*", *lines, "User-Agent: x"), Random(1), as_the_client_says)


def parents(lines: bytes) -> list[str]:
    return [line[13:] for line in lines.decode("latin-1").split("\r\n") if line.lower().startswith("traceparent: ")]


def test_the_clients_span_is_the_parent_and_the_replica_is_told_ours() -> None:
    ours = trail(f"Traceparent: {GOOD}", "Tracestate: vendor=a,other=b")
    sent = ours.forward_attempt()
    over = ours.over()
    assert (over.trace_id, over.parent_id, over.is_sampled) == (TRACE, SPAN, True)
    assert over.state == "vendor=a,other=b"
    assert parents(sent) == [f"00-{TRACE}-{over.attempts[0]}-01"]
    assert b"tracestate: vendor=a,other=b\r\n" in sent
    assert sent.startswith(b"Accept: */*\r\nUser-Agent: x\r\n")
    assert over.span_id not in (SPAN, over.attempts[0])


def test_each_attempt_is_a_parent_of_its_own() -> None:
    ours = trail(f"traceparent: {GOOD}")
    first, second = parents(ours.forward_attempt()), parents(ours.forward_attempt())
    assert first != second
    assert [line.split("-")[2] for line in (*first, *second)] == list(ours.over().attempts)


def test_without_an_attempt_the_request_itself_is_the_parent() -> None:
    ours = trail(f"traceparent: {GOOD}")
    assert parents(ours.forward()) == [f"00-{TRACE}-{ours.over().span_id}-01"]


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("traceparent:",),
        ("traceparent: nonsense",),
        (f"traceparent: 00-{TRACE.upper()}-{SPAN}-01",),
        (f"traceparent: 00-{'0' * 32}-{SPAN}-01",),
        (f"traceparent: 00-{TRACE}-{'0' * 16}-01",),
        (f"traceparent: ff-{TRACE}-{SPAN}-01",),
        (f"traceparent: {GOOD}-more",),
        (f"traceparent: {GOOD} {GOOD}",),
        (f"traceparent: {GOOD}", f"traceparent: {GOOD}"),
        (f"traceparent: 00-{TRACE[1:]}-{SPAN}-01",),
        (f"traceparent: 00-{TRACE}-{SPAN}-1",),
    ],
)
def test_a_malformed_parent_is_ignored_and_a_new_trace_begins_without_the_clients_state(lines: tuple[str, ...]) -> None:
    ours = trail(*lines, "tracestate: vendor=a")
    sent, over = ours.forward_attempt(), ours.over()
    assert over.parent_id is None
    assert over.trace_id != TRACE
    assert len(parents(sent)) == 1
    assert b"vendor" not in sent


def test_a_later_version_is_read_as_far_as_ours_goes() -> None:
    assert trail(f"traceparent: 01-{TRACE}-{SPAN}-01-more").over().parent_id == SPAN
    assert trail(f"traceparent: cc-{TRACE}-{SPAN}-01").over().parent_id == SPAN


def test_what_the_client_does_not_keep_is_not_kept_and_the_replica_hears_so() -> None:
    ours = trail(f"traceparent: 00-{TRACE}-{SPAN}-00")
    assert parents(ours.forward_attempt())[0].endswith("-00")
    assert not ours.over().is_sampled


def test_that_a_traces_name_is_random_is_passed_on() -> None:
    assert parents(trail(f"traceparent: 00-{TRACE}-{SPAN}-03").forward())[0].endswith("-03")
    assert parents(trail(f"traceparent: 00-{TRACE}-{SPAN}-ff").forward())[0].endswith("-03")


def test_states_in_several_lines_are_one() -> None:
    ours = trail(f"traceparent: {GOOD}", "tracestate: a=1", "tracestate: b=2,c=3")
    assert ours.forward().count(b"tracestate") == 1
    assert ours.over().state == "a=1,b=2,c=3"


def test_a_long_value_takes_no_time() -> None:
    began_s = time.thread_time()
    trail(f"traceparent: {GOOD}", f"tracestate: a{' ' * 30_000}b")
    assert time.thread_time() - began_s < 0.1  # on the event loop, before anything is known of the client
