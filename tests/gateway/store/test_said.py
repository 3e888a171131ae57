"""What a client is told who asked one Ollama and got several."""

from __future__ import annotations

import json

import pytest

from corral.gateway.store.changes import ABSENT
from corral.gateway.store.said import Outcome, Said, StoreError, all_of, combine

DONE = Said(200, b'{"status":"success"}\n', ok=True, is_line=True)
MADE = Said(201, b"", ok=True)
FULL = StoreError(500, "no space left on device").said()
UNKNOWN = Said(500, b'{"error":"file does not exist"}\n', is_line=True)
MISSING = Said(404, b'{"error":"model \'m\' not found"}')


def outcomes(*saids: Said) -> list[Outcome]:
    return [Outcome(f"r{number}", said) for number, said in enumerate(saids)]


@pytest.mark.parametrize(
    ("saids", "said"),
    [
        ([DONE], DONE),
        ([UNKNOWN], UNKNOWN),
        ([DONE, DONE], DONE),
        ([Said(200, b"", ok=True), MADE], MADE),
        ([UNKNOWN, UNKNOWN], UNKNOWN),
        ([MISSING, MISSING, MISSING], MISSING),
        ([ABSENT, DONE], DONE),
        ([ABSENT, FULL], FULL),
        ([ABSENT, ABSENT], ABSENT),
    ],
)
def test_where_all_say_the_same_it_is_said_as_it_came(saids: list[Said], said: Said) -> None:
    assert combine(outcomes(*saids)) == said


def test_what_failed_in_part_names_where_it_failed_and_why_and_where_it_did_not() -> None:
    said = combine(outcomes(DONE, FULL, DONE))
    assert not said.ok
    assert said.status == 500
    assert json.loads(said.line) == {
        "error": "it failed at r1: no space left on device; it succeeded at r0 and r2",
    }


def test_what_failed_everywhere_in_different_ways_names_each() -> None:
    said = combine(outcomes(MISSING, FULL))
    assert (said.status, said.message) == (
        500,
        "it failed at r0: model 'm' not found; r1: no space left on device",
    )


def test_when_to_come_back_is_a_header() -> None:
    assert StoreError(503, "busy", retry_after_s=3).said().headers == b"Retry-After: 3\r\n"


def test_an_answer_without_a_reason_is_named_by_its_status() -> None:
    assert Said(418, b"teapot").message == "status 418"


def test_lists_in_words() -> None:
    assert [all_of(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_where_there_is_nobody_to_ask_that_is_said() -> None:
    assert combine([]).status == 503
    assert b"no replica can serve" in combine([]).body
