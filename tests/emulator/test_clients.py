"""The official Python clients understand the emulator, in all they commonly do."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import ollama
import openai
import pytest

from tests.emulator.child import EmulatorProcess, emulator

MODEL = "llama3.2:1b"


@pytest.fixture(scope="module")
def child() -> Iterator[EmulatorProcess]:
    models = ("--model", MODEL, "--model", "qwen3:8b", "--model", "all-minilm")
    with emulator(*models, "--speed", "50", "--parallel", "2", "--context-length", "4096") as started:
        yield started


def look(at: str) -> str:
    """Look somewhere.

    Args:
      at: Where to look.
    """
    return f"nothing at {at}"


def test_ollamas_client(child: EmulatorProcess) -> None:
    client = ollama.Client(child.url)
    messages = [{"role": "user", "content": "hi"}]
    whole = client.chat(MODEL, messages, options={"num_predict": 5})
    pieces = list(client.chat(MODEL, messages, options={"num_predict": 5}, stream=True))
    assert whole.message.content == "".join(piece.message.content or "" for piece in pieces)
    assert pieces[-1].done
    assert client.generate(MODEL, "hi", options={"num_predict": 5}).eval_count == 5
    assert client.chat("qwen3:8b", messages, think=True, options={"num_predict": 9}).message.thinking
    called = client.chat(MODEL, messages, tools=[look]).message.tool_calls
    assert called is not None
    assert called[0].function.name == "look"
    assert len(client.embed("all-minilm", ["a", "b"]).embeddings) == 2
    assert client.ps().models[0].context_length
    assert client.show(MODEL).capabilities == ["completion", "tools"]
    assert [step.status for step in client.pull("smollm2:135m", stream=True)][-1] == "success"
    client.copy(MODEL, "mine")
    assert {model.model for model in client.list().models} >= {MODEL, "mine:latest"}
    client.delete("mine")
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.chat("no-such-model", messages)
    client.close()  # type: ignore[no-untyped-call]


def test_openais_client(child: EmulatorProcess) -> None:
    with openai.OpenAI(base_url=f"{child.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=5)
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=5, stream=True
        )
        assert whole.choices[0].message.content == "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        called = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            tools=[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        )
        assert called.choices[0].finish_reason == "tool_calls"
        assert client.completions.create(model=MODEL, prompt="hi", max_tokens=5).choices[0].text
        assert len(client.embeddings.create(model="all-minilm", input=["a", "b"]).data[0].embedding) == 384
        assert MODEL in [model.id for model in client.models.list()]
        answer = client.responses.create(model=MODEL, input="hi", max_output_tokens=5)
        with client.responses.stream(model=MODEL, input="hi", max_output_tokens=5) as events:
            assert events.get_final_response().output_text == answer.output_text
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hi"}])


def test_anthropics_client(child: EmulatorProcess) -> None:
    with anthropic.Anthropic(base_url=child.url, api_key="none", max_retries=0) as client:
        whole = client.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "hi"}])
        assert whole.stop_reason == "max_tokens"
        with client.messages.stream(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "hi"}]) as stream:
            text = "".join(stream.text_stream)
        assert whole.content[0].type == "text"
        assert whole.content[0].text == text
        called = client.messages.create(
            model=MODEL,
            max_tokens=50,
            messages=[{"role": "user", "content": "hi"}],
            tools=[{"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}],
        )
        assert called.stop_reason == "tool_use"
        assert [block.name for block in called.content if block.type == "tool_use"] == ["look"]
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="no-such-model", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
