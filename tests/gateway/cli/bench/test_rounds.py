"""How many are asked at a time, for how long, and when it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from corral.errors import OperatorError
from corral.gateway.cli.bench.client import Question, given_url, is_loopback, retry_after
from corral.gateway.cli.bench.record import Ending, Record
from corral.gateway.cli.bench.rounds import EACH, LEAST, ROUNDS, Amount, Round, hopeless, streams

OK = Record(Ending.OK, 0.0, 1.0, 0.5, 10, 10)
ERROR = Record(Ending.ERROR, 0.0, 1.0, why="status 500")


class Asking:
    """Answers after a turn of the loop, and counts who asks at a time."""

    def __init__(self, *records: Record) -> None:
        self.records = list(records)
        self.now_s = 0.0
        self.asked = self.at_a_time = self.most = 0

    def clock(self) -> float:
        return self.now_s

    async def __call__(self) -> Record:
        self.asked += 1
        self.at_a_time += 1
        self.most = max(self.most, self.at_a_time)
        await asyncio.sleep(0)
        self.now_s += 0.1
        self.at_a_time -= 1
        return self.records[(self.asked - 1) % len(self.records)]


async def test_so_many_at_a_time_and_so_many_in_all() -> None:
    asking = Asking(OK)
    done = await streams(asking, 4, Amount(10), asking.clock)
    assert (asking.most, asking.asked, len(done.records)) == (4, 10, 10)
    assert done.took_s == pytest.approx(1.0)


async def test_when_the_time_is_over_nobody_asks_anew_and_what_runs_is_waited_for() -> None:
    asking = Asking(OK)
    done = await streams(asking, 2, Amount(None, 1.0), asking.clock)
    assert 10 <= len(done.records) <= 12
    assert all(record.ending is Ending.OK for record in done.records)
    assert asking.at_a_time == 0


async def test_where_only_errors_come_it_stops_at_once() -> None:
    asking = Asking(ERROR)
    done = await streams(asking, 8, Amount(10_000), asking.clock)
    assert len(done.records) < 20
    with pytest.raises(OperatorError, match=r"http://x answers none of the requests \(status 500\)"):
        hopeless("http://x", [done])


async def test_some_errors_are_no_reason_to_stop() -> None:
    asking = Asking(OK, ERROR)
    done = await streams(asking, 2, Amount(40), asking.clock)
    assert len(done.records) == 40
    hopeless("http://x", [done])
    hopeless("http://x", [Round([], 1.0)])


async def test_after_a_refusal_it_waits_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def sleeping(real: Callable[[float], Awaitable[None]]) -> Callable[[float], Awaitable[None]]:
        async def sleep(seconds: float) -> None:
            if seconds:
                waited.append(seconds)
            await real(0)

        return sleep

    monkeypatch.setattr("corral.gateway.cli.bench.rounds.asyncio.sleep", sleeping(asyncio.sleep))
    refusals = [Record(Ending.REFUSED, 0.0, 0.1, retry_after_s=seconds) for seconds in (3.0, 0.0, 9e5, None)]
    asking = Asking(*refusals)
    done = await streams(asking, 1, Amount(4), asking.clock)
    assert len(done.records) == 4
    assert waited == [3.0, 0.05, 10.0, 1.0]


def test_amounts_are_divided_among_the_rounds_but_every_stream_asks() -> None:
    assert Amount(30).part(4) == Amount(10)
    assert Amount(2).part(4) == Amount(4)
    assert Amount(None, 6.0).part(4) == Amount(None, 2.0)
    assert Amount().part(1) == Amount(LEAST // ROUNDS)
    assert Amount().part(16) == Amount(EACH * 16 // ROUNDS)


# -- addresses and questions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("localhost:8080", "http://localhost:8080"),
        ("http://[::1]:5/", "http://[::1]:5"),
        ("https://box.example", "https://box.example:443"),
    ],
)
def test_an_address_is_what_people_write(text: str, url: str) -> None:
    assert given_url(text, "--url") == url


@pytest.mark.parametrize(
    "text", ["", "http://", "ftp://localhost", "http://localhost/api", "http://[::1", "http://a:x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(OperatorError, match=r"--against .* is not an address"):
        given_url(text, "--against")


def test_only_what_is_this_machine_for_sure_is_this_machine() -> None:
    assert all(map(is_loopback, ("http://127.0.0.1:1", "http://127.9.9.9:1", "http://localhost:1", "http://[::1]:1")))
    others = (
        "http://127.evil.com:1",
        "http://localhost.evil.com",
        "http://10.0.0.1",
        "http://0.0.0.0:1",
        "http://127.1",
    )
    assert not any(map(is_loopback, others))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3.0), ("0.5", 0.5), (None, None), ("Wed, 25 Nov 2026", None), ("-1", None), ("nan", None)],
)
def test_a_refusal_says_how_long_to_wait_or_it_does_not(text: str | None, seconds: float | None) -> None:
    assert retry_after(text) == seconds


def test_no_two_prompts_begin_alike_and_they_are_as_long_as_asked() -> None:
    question, rng = Question("m:1", 200, 64), Random(1)
    first, second = question.body(rng), question.body(rng)
    assert first["prompt"][:9] != second["prompt"][:9]
    assert 180 <= len(first["prompt"].split()) <= 200
    assert first["options"]["num_predict"] == 64
    assert Question("m:1", 200, 64).body(Random(1)) == first
