"""Embeddings of one text and of many: in order, alike whatever asks for them, and refused in Ollama's words."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from tests.conformance.raw import Answer, ask
from tests.conformance.targets import Target

JSON = "application/json; charset=utf-8"
PLAIN_JSON = "application/json"
TEXTS = [f"Text {number} is about {'cattle and ' * (number % 7)}horses." for number in range(100)]


@pytest.fixture
def model(target: Target) -> str:
    if target.embedding is None:
        pytest.skip("the target has no embedding model")
    return target.embedding


def embed(target: Target, model: str, **fields: Any) -> Answer:
    return ask(target.url, "POST", "/api/embed", {"model": model} | fields)


def openai(target: Target, model: str, **fields: Any) -> Answer:
    return ask(target.url, "POST", "/v1/embeddings", {"model": model} | fields)


def numbers(embedding: list[float] | str) -> Sequence[float]:
    if isinstance(embedding, str):
        raw = base64.b64decode(embedding, validate=True)
        return struct.unpack(f"<{len(raw) // 4}f", raw)
    return embedding


def differ(one: Sequence[float], other: Sequence[float]) -> float:
    """By how much, where they differ most: the same text twice is the same to a real model only almost."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_many_texts_have_the_embeddings_that_each_has_alone_in_their_order(target: Target, model: str) -> None:
    answer = embed(target, model, input=TEXTS)
    assert (answer.status, answer.header("Content-Type")) == (200, JSON)
    found = answer.json()
    assert list(found) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert (found["model"], len(found["embeddings"])) == (model, len(TEXTS))
    counted = 0
    for number in (0, 1, 49, 98, 99):
        alone = embed(target, model, input=TEXTS[number]).json()
        assert differ(found["embeddings"][number], alone["embeddings"][0]) < 1e-3
        counted += alone["prompt_eval_count"]
    some = [TEXTS[number] for number in (0, 1, 49, 98, 99)]
    assert embed(target, model, input=some).json()["prompt_eval_count"] == counted


def test_the_durations_are_part_of_the_whole(target: Target, model: str) -> None:
    found = embed(target, model, input=TEXTS).json()
    assert 0 < found["load_duration"] <= found["total_duration"]


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_openais_embeddings_are_the_same_numbers(target: Target, model: str, encoding: str) -> None:
    native = embed(target, model, input=TEXTS).json()
    answer = openai(target, model, input=TEXTS, encoding_format=encoding)
    assert (answer.status, answer.header("Content-Type")) == (200, PLAIN_JSON)
    assert answer.body.endswith(b"}\n")
    found = answer.json()
    assert list(found) == ["object", "data", "model", "usage"]
    assert (found["object"], found["model"]) == ("list", model)
    tokens = native["prompt_eval_count"]
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert [list(entry) for entry in found["data"]] == [["object", "embedding", "index"]] * len(TEXTS)
    assert [entry["index"] for entry in found["data"]] == list(range(len(TEXTS)))
    for entry, expected in zip(found["data"], native["embeddings"], strict=True):
        assert differ(numbers(entry["embedding"]), expected) < 1e-3


def test_a_list_of_one_is_a_list_of_one(target: Target, model: str) -> None:
    assert len(embed(target, model, input=["one"]).json()["embeddings"]) == 1
    assert len(openai(target, model, input=["one"]).json()["data"]) == 1


def test_an_empty_list_gives_no_embeddings(target: Target, model: str) -> None:
    assert embed(target, model, input=[]).json() == {"model": model, "embeddings": []}


def test_dimensions_cut_every_embedding(target: Target, model: str) -> None:
    found = embed(target, model, input=TEXTS, dimensions=16).json()["embeddings"]
    assert {len(embedding) for embedding in found} == {16}
    assert sum(value * value for value in found[-1]) == pytest.approx(1.0, abs=0.01)


def test_one_text_too_long_among_many_fails_them_all_where_it_must_not_be_cut(target: Target, model: str) -> None:
    texts = [*TEXTS[:40], "word " * 40_000, *TEXTS[40:]]
    answer = embed(target, model, input=texts, truncate=False)
    assert answer.status == 400
    assert list(answer.json()) == ["error"]
    assert "context length" in answer.json()["error"]
    assert len(embed(target, model, input=texts).json()["embeddings"]) == len(texts)


@pytest.mark.parametrize("texts", [5, {"a": 1}, ["one", 2]])
def test_an_input_that_is_no_text_is_refused(target: Target, model: str, texts: object) -> None:
    answer = embed(target, model, input=texts)
    assert (answer.status, answer.header("Content-Type")) == (400, JSON)
    assert answer.json() == {"error": "invalid input type"}


def test_many_texts_for_an_unknown_model_are_a_404(target: Target) -> None:
    answer = embed(target, "no-such-model", input=TEXTS)
    assert (answer.status, answer.json()) == (404, {"error": 'model "no-such-model" not found, try pulling it first'})
    assert answer.header("Content-Type") == JSON
    openais = openai(target, "no-such-model", input=TEXTS)
    assert (openais.status, openais.json()["error"]["type"]) == (404, "not_found_error")


def test_openais_embeddings_without_an_input_are_refused(target: Target, model: str) -> None:
    answer = openai(target, model)
    assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
