"""Answers to parts, joined: numbers as they were written, durations the longest, tokens added up."""

from __future__ import annotations

import json

import pytest

from corral.gateway.embed.join import Unjoinable, join, take_apart
from corral.gateway.wire.dialect import Dialect

NATIVE, OPENAI = Dialect.NATIVE, Dialect.OPENAI


def joined(dialect: Dialect, *answers: tuple[bytes, int]) -> bytes:
    pieces, first = [], 0
    for body, texts in answers:
        pieces.append(take_apart(dialect, body, first, texts))
        first += texts
    return b"".join(join(dialect, pieces))


def test_vectors_follow_each_other_and_no_number_is_written_anew() -> None:
    one = (
        b'{"model":"m","embeddings":[[1.0,-2e-07],[3,0.10000000000000001]],'
        b'"total_duration":5,"load_duration":9,"prompt_eval_count":4}'
    )
    two = b'{"model":"m","embeddings":[[4.50]],"total_duration":7,"load_duration":1,"prompt_eval_count":3}'
    assert joined(NATIVE, (one, 2), (two, 1)) == (
        b'{"model":"m","embeddings":[[1.0,-2e-07],[3,0.10000000000000001],[4.50]],'
        b'"total_duration":7,"load_duration":9,"prompt_eval_count":7}'
    )


def test_a_count_that_all_leave_out_is_left_out() -> None:
    answer = b'{"model":"m","embeddings":[[1]],"total_duration":1}'
    assert joined(NATIVE, (answer, 1), (answer, 1)) == b'{"model":"m","embeddings":[[1],[1]],"total_duration":1}'


def test_a_count_that_the_first_leaves_out_is_that_of_the_others() -> None:
    one, two = b'{"model":"m","embeddings":[[1]]}', b'{"model":"m","embeddings":[[2]],"prompt_eval_count":3}'
    assert joined(NATIVE, (one, 1), (two, 1)) == b'{"model":"m","embeddings":[[1],[2]],"prompt_eval_count":3}'


def test_fields_nobody_knows_are_the_first_ones() -> None:
    one, two = b'{"new":{"a" : 1},"embeddings":[[1]]}', b'{"new":{"a":2},"embeddings":[[2]]}'
    assert joined(NATIVE, (one, 1), (two, 1)) == b'{"new":{"a" : 1},"embeddings":[[1],[2]]}'


def test_openai_s_entries_are_numbered_through_and_their_usage_is_added_up() -> None:
    one = (
        b'{"object":"list","data":[{"object":"embedding","embedding":[0.50],"index":0},'
        b'{"object":"embedding","embedding":"AAAA","index":1}],'
        b'"model":"m","usage":{"prompt_tokens":2,"total_tokens":2}}\n'
    )
    two = (
        b'{"object":"list","data":[{"object":"embedding","embedding":[1],"index":0}],'
        b'"model":"m","usage":{"prompt_tokens":5,"total_tokens":5}}\n'
    )
    assert joined(OPENAI, (one, 2), (two, 1)) == (
        b'{"object":"list","data":[{"object":"embedding","embedding":[0.50],"index":0},'
        b'{"object":"embedding","embedding":"AAAA","index":1},{"object":"embedding","embedding":[1],"index":2}],'
        b'"model":"m","usage":{"prompt_tokens":7,"total_tokens":7}}\n'
    )


def test_what_the_scheduler_learns_from() -> None:
    native = b'{"embeddings":[[1]],"total_duration":3000000000,"load_duration":1000000000,"prompt_eval_count":4}'
    figures = take_apart(NATIVE, native, 0, 1).figures
    assert (figures.prompt_tokens, figures.load_s, figures.prefill_s) == (4, 1.0, 2.0)
    openai = b'{"data":[{"embedding":[1],"index":0}],"usage":{"prompt_tokens":6}}'
    assert take_apart(OPENAI, openai, 0, 1).figures.prompt_tokens == 6


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        (NATIVE, b""),
        (NATIVE, b"<html>"),
        (NATIVE, b'{"error":"no"}'),
        (NATIVE, b'{"embeddings":null}'),
        (NATIVE, b'{"embeddings":[]}'),
        (NATIVE, b'{"embeddings":[[1]]}'),
        (NATIVE, b'{"embeddings":[[1],[2],[3]]}'),
        (NATIVE, b'{"embeddings":[[1],[2]],"prompt_eval_count":"many"}'),
        (NATIVE, b'{"embeddings":[[1],[2]],"total_duration":1.5}'),
        (OPENAI, b'{"data":null}'),
        (OPENAI, b'{"data":[{"embedding":[1]},{"embedding":[2]}]}'),
        (OPENAI, b'{"data":[{"embedding":[1],"index":0}]}'),
        (OPENAI, b'{"data":[{"embedding":[1],"index":1},{"embedding":[2],"index":0}]}'),
        (OPENAI, b'{"data":[{"embedding":[1],"index":0},{"embedding":[2],"index":1}],"usage":null}'),
        (NATIVE, json.dumps({"embeddings": [[1], [2]]}).encode()[:-1]),
        (NATIVE, b"[" * 100_000),
    ],
)
def test_what_cannot_be_joined_is_said(dialect: Dialect, answer: bytes) -> None:
    with pytest.raises(Unjoinable):
        take_apart(dialect, answer, 0, 2)
