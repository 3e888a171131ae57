"""A real small model answers through the same dialects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.raw import Wire, ask
from tests.emulator.child import EmulatorProcess, emulator
from tests.emulator.gguf import needs_engine, smollm2

MODEL = "smollm2:135m"


@pytest.fixture(scope="module")
def gguf() -> Path:
    needs_engine()
    return smollm2()


@pytest.fixture(scope="module")
def child(gguf: Path) -> Iterator[EmulatorProcess]:
    engine = ("--engine", "llamacpp", "--gguf", str(gguf), "--threads", "2", "--parallel", "2")
    with emulator(*engine, "--model", MODEL, "--speed", "50") as started:
        yield started


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "options": {"num_predict": 6, "temperature": 0}} | fields


def test_a_completion_is_the_models_own(child: EmulatorProcess) -> None:
    answer = ask(
        child.url, "POST", "/api/generate", body(prompt="The capital of France is", raw=True, stream=False)
    ).json()
    assert "Paris" in answer["response"]
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 6)


def test_streamed_and_whole_chat_say_the_same(child: EmulatorProcess) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    lines = ask(child.url, "POST", "/api/chat", body(messages=messages)).lines()
    whole = ask(child.url, "POST", "/api/chat", body(messages=messages, stream=False)).json()
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"] != ""
    assert whole["prompt_eval_count"] > 10


@pytest.mark.parametrize(
    ("path", "fields", "end"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}, b"[DONE]"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}, b"message_stop"),
    ],
)
def test_every_dialect_streams_it(child: EmulatorProcess, path: str, fields: dict[str, Any], end: bytes) -> None:
    answer = ask(child.url, "POST", path, {"model": MODEL, "stream": True} | fields)
    assert answer.ended
    assert end in answer.body


def test_a_client_that_leaves_stops_the_model(child: EmulatorProcess) -> None:
    with Wire(child.url) as wire:
        wire.send(
            "POST", "/api/chat", {"model": MODEL, "messages": [{"role": "user", "content": "Tell a long story."}]}
        )
        wire.first_bytes()
    until = time.monotonic() + 20
    while ask(child.url, "GET", "/emulator/stats").json()["slots_held"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert ask(child.url, "POST", "/api/chat", body(messages=[{"role": "user", "content": "Hi"}])).status == 200
