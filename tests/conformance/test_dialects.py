"""OpenAI's and Anthropic's APIs as Ollama speaks them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.conformance.raw import Answer, ask
from tests.conformance.targets import Target


def post(target: Target, path: str, **fields: Any) -> Answer:
    return ask(target.url, "POST", path, {"model": target.model} | fields)


def messages() -> list[dict[str, str]]:
    return [{"role": "user", "content": "Count to ten."}]


def chunks_of(answer: Answer) -> list[dict[str, Any]]:
    """The JSON events of an OpenAI stream, whose last event must be [DONE]."""
    assert answer.ended
    assert answer.header("Content-Type") == "text/event-stream"
    events = [data for _, data in answer.events()]
    assert events[-1] == "[DONE]"
    return [json.loads(data) for data in events[:-1]]


def test_a_chat_stream_begins_with_a_role_and_ends_with_a_reason(target: Target) -> None:
    answer = post(target, "/v1/chat/completions", messages=messages(), max_tokens=5, stream=True)
    chunks = chunks_of(answer)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"fp_ollama"}
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert re.fullmatch(r"chatcmpl-\d{1,3}", chunks[0]["id"])
    roles = ["role" in chunk["choices"][0]["delta"] for chunk in chunks]
    assert roles == ([True] * len(chunks) if target.legacy else [True] + [False] * (len(chunks) - 1))
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    if not target.legacy:
        assert chunks[-1]["choices"][0]["delta"] == {}


def test_usage_is_a_chunk_without_choices_before_the_end(target: Target) -> None:
    options = {"include_usage": True}
    answer = post(
        target, "/v1/chat/completions", messages=messages(), max_tokens=5, stream=True, stream_options=options
    )
    last = chunks_of(answer)[-1]
    assert last["choices"] == []
    usage = last["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 5


def test_a_whole_chat_completion_has_one_choice_and_usage(target: Target) -> None:
    answer = post(target, "/v1/chat/completions", messages=messages(), max_tokens=5)
    assert answer.header("Content-Type") == "application/json"
    found = answer.json()
    assert answer.body.endswith(b"}\n")
    assert list(found) == ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    assert found["object"] == "chat.completion"
    (choice,) = found["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"


def test_a_plain_completion_streams_text(target: Target) -> None:
    chunks = chunks_of(post(target, "/v1/completions", prompt="Count", max_tokens=5, stream=True))
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert all(isinstance(chunk["choices"][0]["text"], str) for chunk in chunks)
    assert list(chunks[0]) == ["id", "object", "created", "choices", "model", "system_fingerprint"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (
            {"model": "no-such-model", "messages": [{"role": "user", "content": "x"}]},
            404,
            "not_found_error",
            "not found",
        ),
        ({"messages": []}, 400, "invalid_request_error", "[] is too short - 'messages'"),
    ],
)
def test_errors_have_openais_shape(target: Target, body: Any, status: int, kind: str, message: str) -> None:
    answer = post(target, "/v1/chat/completions", **body)
    assert answer.status == status
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == kind
    assert message in error["message"]


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_are_numbers_or_base64(target: Target, encoding: str) -> None:
    if target.embedding is None:
        pytest.skip("the target has no embedding model")
    fields = {"model": target.embedding, "input": ["one", "two"], "encoding_format": encoding}
    found = ask(target.url, "POST", "/v1/embeddings", fields).json()
    assert list(found) == ["object", "data", "model", "usage"]
    assert [entry["index"] for entry in found["data"]] == [0, 1]
    assert isinstance(found["data"][0]["embedding"], str if encoding == "base64" else list)


def test_a_tool_call_carries_its_arguments_as_a_string(emulated: Target) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "integer"}}}}}
    chunks = chunks_of(
        post(emulated, "/v1/chat/completions", messages=messages(), max_tokens=50, stream=True, tools=[tool])
    )
    (call,) = next(
        chunk["choices"][0]["delta"]["tool_calls"] for chunk in chunks if "tool_calls" in chunk["choices"][0]["delta"]
    )
    assert (call["type"], call["index"]) == ("function", 0)
    assert json.loads(call["function"]["arguments"]) == {"at": 1}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_messages_stream_opens_and_closes_its_blocks_in_order(target: Target) -> None:
    answer = post(target, "/v1/messages", messages=messages(), max_tokens=5, stream=True)
    assert answer.header("Content-Type") == "text/event-stream"
    names = [name for name, _ in answer.events()]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}
    data = [json.loads(text) for _, text in answer.events()]
    assert [entry["type"] for entry in data] == names
    assert re.fullmatch(r"msg_[0-9a-f]{24}", data[0]["message"]["id"])
    assert data[-2]["delta"]["stop_reason"] == "max_tokens"
    assert data[-2]["usage"]["output_tokens"] == 5
    assert len(answer.chunks) == len(names)


def test_a_whole_message_has_blocks_and_usage(target: Target) -> None:
    found = post(target, "/v1/messages", messages=messages(), max_tokens=5).json()
    assert (found["type"], found["role"], found["stop_reason"]) == ("message", "assistant", "max_tokens")
    assert found["content"][0]["type"] == "text"


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        (
            {"model": "no-such-model", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]},
            404,
            "not_found_error",
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, "invalid_request_error"),
        ({"max_tokens": 5, "messages": []}, 400, "invalid_request_error"),
    ],
)
def test_errors_have_anthropics_shape(target: Target, fields: Any, status: int, kind: str) -> None:
    answer = post(target, "/v1/messages", **fields)
    assert answer.status == status
    found = answer.json()
    assert (found["type"], found["error"]["type"]) == ("error", kind)
    assert re.fullmatch(r"req_[0-9a-f]{24}", found["request_id"])


def test_a_response_stream_is_numbered_and_ends_completed(target: Target) -> None:
    answer = post(target, "/v1/responses", input="Count to ten.", max_output_tokens=5, stream=True)
    events = [(name, json.loads(data)) for name, data in answer.events()]
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    names = [name for name, _ in events]
    assert names[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert names[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(data["delta"] for name, data in events if name == "response.output_text.delta")
    assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == text


def test_a_whole_response_is_completed(target: Target) -> None:
    found = post(target, "/v1/responses", input="Count to ten.", max_output_tokens=5).json()
    assert (found["object"], found["status"]) == ("response", "completed")
    assert found["output"][0]["type"] == "message"


def test_thinking_streams_as_reasoning_beside_empty_content(emulated: Target) -> None:
    answer = post(emulated, "/v1/chat/completions", model="qwen3:8b", messages=messages(), max_tokens=9, stream=True)
    first = chunks_of(answer)[0]["choices"][0]["delta"]
    assert list(first) == ["role", "content", "reasoning"]
    assert first["content"] == ""


def test_an_unknown_encoding_of_embeddings_is_refused(target: Target) -> None:
    if target.embedding is None:
        pytest.skip("the target has no embedding model")
    answer = ask(
        target.url, "POST", "/v1/embeddings", {"model": target.embedding, "input": "x", "encoding_format": "int8"}
    )
    assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
