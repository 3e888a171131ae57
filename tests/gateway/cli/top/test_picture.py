"""What is kept of a stream, and how it is drawn."""

from __future__ import annotations

import pytest

from corral.gateway.cli.top.layout import heights
from corral.gateway.cli.top.marks import ASCII, TERMINAL, UNICODE, Look
from corral.gateway.cli.top.picture import KEPT, REMEMBERED, Picture, tokens_per_s
from corral.gateway.cli.top.sheet import Column, Row, Rows, Sheet
from corral.gateway.cli.top.sheets import outcome, state_of
from corral.gateway.cli.top.view import seconds
from tests.gateway.cli.top.fake_admin import records

LOOK = Look(UNICODE, TERMINAL)


def test_rates_count_what_ended_lately_and_not_what_was_over_before() -> None:
    found, picture = records(), Picture()
    request = found["requests"][0] | {"figures": {"output_tokens": 50}}
    picture.take("snapshot", found["snapshot"], 100.0)
    picture.take("request", request, 100.0)
    assert picture.rates(100.0) == (0.0, 0.0)
    picture.take("snapshot", found["snapshot"], 101.0)
    for at_s in (101.0, 104.0, 109.0):
        picture.take("request", request, at_s)
    assert picture.rates(110.0) == (0.3, 15.0)
    assert picture.rates(114.5) == (0.1, 5.0)


def test_a_new_stream_repeats_the_old_one_and_is_shown_once() -> None:
    found, picture = records(), Picture()
    for _ in range(2):
        picture.begin()
        picture.take("snapshot", found["snapshot"], 1.0)
        for request in found["requests"]:
            picture.take("request", request, 1.0)
    assert list(picture.requests) == found["requests"]


def test_a_gpus_history_has_gaps_where_nothing_was_known_and_ends_with_the_gpu() -> None:
    page, picture = records()["snapshot"], Picture()
    gpu = page["gpus"][0]
    for value, condition in ((0.5, "ok"), (1.0, "ok"), (1.0, "stale"), (1.0, "hung"), (0.25, "ok"), (0.25, "lost")):
        gpu["sample"]["utilisation_ratio"], gpu["condition"] = value, condition
        picture.take("snapshot", page, 1.0)
    assert list(picture.busy(gpu["uuid"])) == [0.75, None, 0.25]
    picture.take("snapshot", page | {"gpus": page["gpus"][1:]}, 2.0)
    assert list(picture.busy(gpu["uuid"])) == []


def test_nothing_grows_without_a_bound() -> None:
    found, picture = records(), Picture()
    for number in range(2 * max(KEPT, 2 * REMEMBERED)):
        picture.take("snapshot", found["snapshot"], float(number))
        picture.take("request", found["requests"][0], float(number))
        picture.take("log", found["log"][0], float(number))
        picture.rates(float(number))
    assert len(picture.requests) == len(picture.lines) == KEPT
    assert len(list(picture.busy(found["snapshot"]["gpus"][0]["uuid"]))) == REMEMBERED


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (None, None),
        ({"output_tokens": 101, "decode_s": 2.0}, 50.0),
        ({"output_tokens": 1, "decode_s": 0.0}, None),
        ({"output_tokens": 10, "decode_s": None}, None),
    ],
)
def test_tokens_a_second_are_those_after_the_first(figures: dict[str, float] | None, expected: float | None) -> None:
    assert tokens_per_s({"figures": figures}) == expected


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0"), (0.0042, "0.004"), (0.98, "0.980"), (1.25, "1.25"), (73.24, "73.2"), (612.3, "612")],
)
def test_seconds_are_as_exact_as_is_of_interest(value: float | None, shown: str) -> None:
    assert seconds(value) == shown


@pytest.mark.parametrize(
    ("ratio", "unicode", "ascii"),
    [
        (0.0, "────", "----"),
        (0.125, "╸───", "=---"),
        (0.5, "━━──", "==--"),
        (2.0, "━━━━", "===="),
        (-1.0, "────", "----"),
        (None, "    ", "    "),
    ],
)
def test_a_bar_is_as_long_as_its_share(ratio: float | None, unicode: str, ascii: str) -> None:
    assert LOOK.bar(ratio, 4, "").plain == unicode
    assert Look(ASCII, TERMINAL).bar(ratio, 4, "").plain == ascii


def test_a_history_shows_the_latest_at_the_right() -> None:
    assert LOOK.spark([0.0, 0.5, None, 1.0], 6, "").plain == "  ▁▄ █"
    assert LOOK.spark([0.0] * 9 + [1.0], 2, "").plain == "▁█"


def test_columns_stay_in_place_whatever_the_rows_hold() -> None:
    columns = (Column("A", 3), Column("B", None), Column("C", 4, right=True, sort="total"))
    sheet = Sheet(columns, [Row((LOOK.text("x" * 99), LOOK.text("y" * 99), LOOK.text("z" * 99)))])
    assert sheet.widths(30) == Sheet(columns, ()).widths(30) == [3, 21, 4]
    assert [sheet.column_at(x, 30) for x in (0, 4, 25, 29, 40)] == [
        columns[0],
        columns[1],
        columns[1],
        columns[2],
        None,
    ]


def test_only_the_rows_that_are_looked_at_are_made() -> None:
    made: list[int] = []

    def make(record: dict[str, int]) -> Row:
        made.append(record["n"])
        return Row(())

    rows = Rows([{"n": n} for n in range(100)], make)
    assert len(rows) == 100
    assert len(list(rows[10:13])) == 3
    assert made == [10, 11, 12]


@pytest.mark.parametrize("lines", range(3, 80))
def test_the_parts_always_fit_and_replicas_are_always_shown(lines: int) -> None:
    for gpus, replicas, advice in ((0, 1, False), (3, 3, True), (8, 8, False), (16, 64, True)):
        found = heights(lines, gpus=gpus, replicas=replicas, advice=advice)
        assert all(height >= 0 for height in found.values())
        assert found["replicas"] >= 2
        if lines >= 12:
            gaps = 5 if lines >= 40 else 0
            assert sum(found.values()) + gaps + 2 + 2 <= lines  # two lines around, and two of requests at the least
        if lines >= 24 and gpus == 3:
            assert found["gpus"] == found["replicas"] == 4


@pytest.mark.parametrize(
    ("replica", "state"),
    [
        ({"health": "up", "held": None, "enabled": True, "process": None}, "up"),
        ({"health": "up", "held": None, "enabled": False, "process": None}, "up, drained"),
        ({"health": "unknown", "held": "x", "enabled": True, "process": {"state": "starting"}}, "starting"),
        ({"health": "down", "held": "x", "enabled": False, "process": None}, "held, drained"),
    ],
)
def test_a_replicas_state_is_what_corral_status_calls_it(replica: dict[str, object], state: str) -> None:
    assert state_of(replica) == state


def test_an_outcome_tells_how_many_replicas_failed_before() -> None:
    request = {"outcome": "refused_queue_full", "failed": [{}, {}]}
    assert outcome(request, LOOK).plain == "refused queue full +2"
