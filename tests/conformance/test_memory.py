"""Loading and unloading by a client, and how long what is loaded stays."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.conformance.raw import Answer, ask
from tests.conformance.targets import Target

JSON = "application/json; charset=utf-8"
FOREVER = math.inf


@pytest.fixture(autouse=True)
def nothing_is_loaded(target: Target) -> Iterator[None]:
    unload_all(target)
    yield
    unload_all(target)


def post(target: Target, path: str, **fields: Any) -> Answer:
    return ask(target.url, "POST", path, {"model": target.model} | fields)


def loaded(target: Target) -> list[dict[str, Any]]:
    return list(ask(target.url, "GET", "/api/ps").json()["models"])


def unload_all(target: Target) -> None:
    for model in {entry["name"] for entry in loaded(target)}:
        ask(target.url, "POST", "/api/generate", {"model": model, "keep_alive": 0})
    until_nothing_is_loaded(target)


def until_nothing_is_loaded(target: Target) -> None:
    deadline_s = time.monotonic() + 20
    while loaded(target):
        assert time.monotonic() < deadline_s, f"{loaded(target)} stays loaded"
        time.sleep(0.02)


def stays_s(target: Target) -> float:
    """How long the one loaded model is going to stay, by its clock."""
    (found,) = loaded(target)
    expires = datetime.fromisoformat(found["expires_at"])
    return FOREVER if expires.year > 2200 else (expires.timestamp() - time.time()) * target.speed


def about(target: Target, seconds: float) -> object:
    """As many, but for two seconds of ours that a test may take."""
    return pytest.approx(seconds, abs=2 * target.speed)


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
@pytest.mark.parametrize(
    ("keep_alive", "expected_s"),
    [(600, 600), (1800.5, 1800.5), ("10m", 600), ("1h30m", 5400), (-1, FOREVER), ("-1s", FOREVER), ("-5m", FOREVER)],
)
def test_a_load_is_kept_as_long_as_it_says(target: Target, path: str, keep_alive: object, expected_s: float) -> None:
    empty: dict[str, Any] = {"prompt": ""} if path == "/api/generate" else {"messages": []}
    answer = post(target, path, keep_alive=keep_alive, **empty)
    assert (answer.status, answer.header("Content-Type")) == (200, JSON)
    assert answer.json()["done_reason"] == "load"
    assert stays_s(target) == about(target, expected_s)


def test_without_keep_alive_it_stays_five_minutes(target: Target) -> None:
    post(target, "/api/generate")
    assert stays_s(target) == about(target, 300)


@pytest.mark.parametrize(("keep_alive", "expected_s"), [("20m", 1200), (-1, FOREVER)])
def test_the_latest_request_says_how_long_it_stays(target: Target, keep_alive: object, expected_s: float) -> None:
    post(target, "/api/generate", keep_alive=600)
    post(target, "/api/generate", prompt="Hi.", options={"num_predict": 2}, keep_alive=keep_alive)
    assert stays_s(target) == about(target, expected_s)
    post(target, "/api/generate", keep_alive=600)
    assert stays_s(target) == about(target, 600)


@pytest.mark.parametrize("keep_alive", [0, 0.0, "0", "0s"])
@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_zero_without_a_text_only_unloads(target: Target, path: str, keep_alive: object) -> None:
    post(target, "/api/generate")
    empty: dict[str, Any] = {} if path == "/api/generate" else {"messages": []}
    answer = post(target, path, keep_alive=keep_alive, **empty)
    assert (answer.status, answer.header("Content-Type")) == (200, JSON)
    assert (answer.json()["done"], answer.json()["done_reason"]) == (True, "unload")
    until_nothing_is_loaded(target)
    assert post(target, path, keep_alive=keep_alive, **empty).json()["done_reason"] == "unload"
    assert loaded(target) == []


@pytest.mark.parametrize("keep_alive", [0, "0s"])
def test_zero_with_a_text_answers_and_then_unloads(target: Target, keep_alive: object) -> None:
    options = {"num_predict": 3, "temperature": 0}
    lines = post(target, "/api/generate", prompt="Hi.", keep_alive=keep_alive, options=options).lines()
    assert lines[-1]["done_reason"] == "length"
    until_nothing_is_loaded(target)


def test_a_model_that_is_not_there_is_neither_loaded_nor_unloaded(target: Target) -> None:
    for fields in ({}, {"keep_alive": 0}):
        answer = post(target, "/api/generate", model="no-such-model", **fields)
        assert (answer.status, answer.json()) == (404, {"error": "model 'no-such-model' not found"})


@pytest.mark.parametrize(
    ("keep_alive", "error"),
    [
        ("soon", 'time: invalid duration "soon"'),
        ("600", 'time: missing unit in duration "600"'),
        ("-1", 'time: missing unit in duration "-1"'),
    ],
)
def test_a_keep_alive_that_is_no_duration_is_refused(target: Target, keep_alive: str, error: str) -> None:
    answer = post(target, "/api/generate", keep_alive=keep_alive)
    assert (answer.status, answer.json()) == (400, {"error": error})


def test_several_loaded_models_are_listed_the_longest_staying_first(emulated: Target) -> None:
    """Of an emulator only: whether two models fit a real GPU together is not the suite's to know."""
    first, second = emulated.model, emulated.others[0]
    post(emulated, "/api/generate", model=first, keep_alive="10m")
    post(emulated, "/api/generate", model=second, keep_alive="20m")
    assert [entry["name"] for entry in loaded(emulated)] == [second, first]
    post(emulated, "/api/generate", model=first, keep_alive="30m")
    assert [entry["name"] for entry in loaded(emulated)] == [first, second]
    post(emulated, "/api/generate", model=second, keep_alive=0)
    deadline_s = time.monotonic() + 20
    while [entry["name"] for entry in loaded(emulated)] != [first]:
        assert time.monotonic() < deadline_s
