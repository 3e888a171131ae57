"""A streamed answer counts only when it is whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from corral.gateway.cli.bench.answer import MOST_LINE_BYTES, Answer, BadAnswer


def lines(*objects: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in objects)


DONE = {"response": "", "done": True, "done_reason": "length", "prompt_eval_count": 200, "eval_count": 3}


def test_the_first_text_is_timed_and_the_last_line_counts() -> None:
    answer = Answer()
    answer.feed(lines({"response": "", "done": False}), 1.0)
    answer.feed(lines({"response": "a", "done": False}), 2.0)
    answer.feed(lines({"response": "b", "done": False}, DONE), 3.0)
    answer.close(3.5)
    assert (answer.first_s, answer.prompt_tokens, answer.output_tokens) == (2.0, 200, 3)


def test_thinking_is_text() -> None:
    answer = Answer()
    answer.feed(lines({"thinking": "hm", "response": ""}, DONE), 2.0)
    answer.close(2.0)
    assert answer.first_s == 2.0


def test_lines_may_come_in_any_pieces() -> None:
    answer, content = Answer(), lines({"response": "é"}, DONE)
    for number, byte in enumerate(content):
        answer.feed(bytes([byte]), float(number))
    answer.close(999.0)
    assert answer.first_s == content.index(b"\n")


def test_a_last_line_without_its_end_still_counts() -> None:
    answer = Answer()
    answer.feed(lines({"response": "a"}, DONE).removesuffix(b"\n"), 1.0)
    answer.close(2.0)
    assert answer.output_tokens == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cut off"),
        (lines({"response": "a"}), "cut off"),
        (lines({"response": "a"}) + b'{"done": tr', "not Ollama's format"),
        (lines({"response": "a"}, {"error": "out of memory"}), "error in the stream"),
        (lines({"response": "a"}, DONE, {"response": "more"}), "text after the end"),
        (lines(DONE), "answer without text"),
        (b"<html>\n", "not Ollama's format"),
        (b"[" * 100_000 + b"\n", "not Ollama's format"),
        (b'{"response": 7}\n', "not Ollama's format"),
        (b'{"response": "\xff"}\n', "not Ollama's format"),
        (b"x" * (MOST_LINE_BYTES + 1), "line too long"),
    ],
)
def test_whatever_is_not_whole_is_none(content: bytes, said: str) -> None:
    answer = Answer()

    def read() -> None:
        answer.feed(content, 1.0)
        answer.close(2.0)

    with pytest.raises(BadAnswer, match=said):
        read()


def test_who_has_nothing_to_say_has_said_it_all() -> None:
    answer = Answer()
    answer.feed(lines(DONE | {"eval_count": 1}), 1.0)
    answer.close(1.0)
    assert answer.first_s is None
