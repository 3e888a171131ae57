"""How a conversation is measured, and by what a shared beginning is recognised."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.gateway.wire.conversation import BLOCK_BYTES, MAX_BLOCKS, block_hashes
from corral.gateway.wire.fields import route_request
from corral.gateway.wire.routes import find_route
from corral.model import RouteRequest

LONG = "The quick brown fox jumps over the lazy dog. " * 40
PICTURE = base64.b64encode(bytes(range(256)) * 8).decode()


def request(path: str, **fields: object) -> RouteRequest:
    body = json.dumps({"model": "m", **fields}).encode()
    return route_request(find_route(b"POST", path), body, b"application/json", "t")


def chat(*messages: dict[str, Any], **fields: object) -> RouteRequest:
    return request("/api/chat", messages=list(messages), **fields)


def said(role: str, content: object, **fields: object) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


texts = st.text(max_size=1500)
messages = st.lists(st.builds(said, st.sampled_from(["system", "user", "assistant", "tool"]), texts), max_size=6)


@given(messages, messages)
def test_appending_messages_changes_no_earlier_hash(earlier: list[dict[str, Any]], later: list[dict[str, Any]]) -> None:
    short, long = chat(*earlier), chat(*earlier, *later)
    assert long.prefix[: len(short.prefix)] == short.prefix
    assert short.text_bytes is not None
    assert long.text_bytes is not None
    assert len(short.prefix) == short.text_bytes // BLOCK_BYTES
    assert long.text_bytes >= short.text_bytes


@given(st.binary(max_size=4000), st.binary(max_size=1500), st.binary(max_size=1500))
def test_hashes_are_equal_as_long_as_the_texts_are(common: bytes, one: bytes, other: bytes) -> None:
    a, b = block_hashes(common + one), block_hashes(common + other)
    shared = len(common) // BLOCK_BYTES
    assert a[:shared] == b[:shared]
    for block, pair in enumerate(zip(a, b, strict=False)):
        end = (block + 1) * BLOCK_BYTES
        assert (pair[0] == pair[1]) == ((common + one)[:end] == (common + other)[:end])


@given(messages)
def test_native_openai_and_anthropic_render_one_conversation_alike(conversation: list[dict[str, Any]]) -> None:
    native = chat(said("system", LONG), *conversation)
    parts = [said(each["role"], [{"type": "text", "text": each["content"]}]) for each in conversation]
    others = [
        request("/v1/chat/completions", messages=[said("system", LONG), *conversation]),
        request("/v1/chat/completions", messages=[said("system", LONG), *parts]),
        request("/v1/messages", system=LONG, messages=conversation),
        request("/v1/messages", system=[{"type": "text", "text": LONG}], messages=parts),
    ]
    assert {(each.text_bytes, each.prefix) for each in others} == {(native.text_bytes, native.prefix)}


def test_a_prompt_is_rendered_as_its_conversation() -> None:
    wanted = chat(said("system", LONG), said("user", LONG))
    given = [
        request("/api/generate", system=LONG, prompt=LONG),
        request("/v1/responses", instructions=LONG, input=LONG),
        request("/v1/responses", instructions=LONG, input=[said("user", [{"type": "input_text", "text": LONG}])]),
    ]
    assert [(each.text_bytes, each.prefix) for each in given] == [(wanted.text_bytes, wanted.prefix)] * 3
    assert request("/v1/completions", prompt=LONG).prefix == chat(said("user", LONG)).prefix


def test_the_length_is_that_of_the_text_in_bytes() -> None:
    marks = len("\x02user\n")
    assert chat(said("user", "ä" * 100)).text_bytes == 200 + marks
    assert chat(said("user", "")).text_bytes == marks
    assert request("/api/generate").text_bytes == 0  # only loads the model


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"content": LONG.replace("fox", "cat")}, "content"),
        ({"role": "system"}, "role"),
        ({"thinking": "hm"}, "thinking"),
        ({"reasoning": "hm"}, "reasoning"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, "tool calls"),
        ({"images": [PICTURE]}, "images"),
        ({"content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}, "image part"),
        ({"content": [{"type": "tool_use", "name": "f", "input": {"a": 1}}]}, "tool use"),
        ({"content": [{"type": "tool_result", "content": [{"type": "text", "text": "42"}]}]}, "tool result"),
    ],
)
def test_whatever_the_model_reads_makes_a_difference(change: dict[str, Any], name: str) -> None:
    last = said("user", LONG)
    plain = chat(said("user", LONG), last)
    changed = chat(said("user", LONG), {**last, **change})
    behind = chat(said("user", LONG), {**last, **change}, last)
    shared = len(chat(said("user", LONG)).prefix)
    assert changed.prefix[:shared] == plain.prefix[:shared]
    assert behind.prefix[-1] not in plain.prefix


def test_tools_stand_first_and_their_order_counts() -> None:
    tools = [{"type": "function", "function": {"name": name, "description": LONG}} for name in "ab"]
    with_tools = chat(said("user", LONG), tools=tools)
    assert with_tools.prefix[0] != chat(said("user", LONG)).prefix[0]
    assert with_tools.prefix[0] != chat(said("user", LONG), tools=tools[::-1]).prefix[0]
    assert (
        chat(said("user", LONG), said("user", "x"), tools=tools).prefix[: len(with_tools.prefix)] == with_tools.prefix
    )


@pytest.mark.parametrize("size", [100, 100_000])
def test_images_count_by_what_they_show_but_not_as_text(size: int) -> None:
    def with_image(fill: str) -> RouteRequest:
        return chat(said("user", "look", images=[fill * size]), said("user", LONG))

    plain = chat(said("user", "look"), said("user", LONG))
    assert with_image("A").text_bytes == with_image("B").text_bytes == plain.text_bytes
    assert with_image("A").prefix == with_image("A").prefix
    assert with_image("A").prefix[0] != with_image("B").prefix[0]
    part = {"type": "image", "source": {"type": "base64", "data": "A" * size}}
    looked = said("user", [{"type": "text", "text": "look"}, part])
    assert request("/v1/messages", messages=[looked, said("user", LONG)]).text_bytes == plain.text_bytes


def test_texts_to_embed_have_a_length_and_nothing_to_share() -> None:
    for path, fields in (
        ("/api/embed", {"input": LONG}),
        ("/api/embed", {"input": [LONG[:100], LONG[100:]]}),
        ("/api/embeddings", {"prompt": LONG}),
        ("/v1/embeddings", {"input": [LONG]}),
    ):
        found = request(path, **fields)
        assert (found.text_bytes, found.prefix) == (len(LONG), ())
    assert request("/v1/embeddings", input=[1, 2, 3]).text_bytes is None


def test_of_an_endless_text_only_the_beginning_is_hashed() -> None:
    large = "ä" * (BLOCK_BYTES * MAX_BLOCKS)
    first, second = chat(said("user", large)), chat(said("user", large + "b"))
    assert first.text_bytes == 2 * len(large) + len("\x02user\n")
    assert first.prefix == second.prefix
    assert len(first.prefix) == MAX_BLOCKS
    assert chat(said("user", "x" + large)).prefix[0] != first.prefix[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": 5},
        {"messages": [5]},
        {"messages": [{"role": 5}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [5]}]},
        {"messages": {"role": "user"}},
        {"prompt": ["a"]},
        {"system": 5},
        {"images": "x"},
        {"max_tokens": "many"},
    ],
)
def test_what_is_odd_leaves_length_and_prefix_unknown_and_the_rest_as_it_is(fields: dict[str, object]) -> None:
    found = request("/api/chat", options={"num_ctx": 4096}, **fields)
    assert (found.model, found.signature) == ("m:latest", "num_ctx=4096")
    assert (found.text_bytes, found.prefix, found.output_limit) == (None, (), None)


def respond(*items: dict[str, Any]) -> RouteRequest:
    return request("/v1/responses", instructions=LONG, input=list(items))


CALL: dict[str, Any] = {"type": "function_call", "call_id": "c", "name": "f", "arguments": json.dumps({"a": LONG})}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "c", "output": LONG}
THOUGHT: dict[str, Any] = {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": LONG}


@pytest.mark.parametrize(
    ("item", "changed"),
    [
        (said("user", LONG), said("user", LONG.replace("fox", "cat"))),
        (CALL, {**CALL, "name": "g"}),
        (CALL, {**CALL, "arguments": "{}"}),
        (RESULT, {**RESULT, "output": LONG.replace("fox", "cat")}),
        (RESULT, {**RESULT, "output": [{"type": "input_image", "image_url": PICTURE}]}),
        (THOUGHT, {**THOUGHT, "encrypted_content": LONG.replace("fox", "cat")}),
        (THOUGHT, {**THOUGHT, "encrypted_content": None, "summary": [{"type": "summary_text", "text": "short"}]}),
    ],
)
def test_every_item_of_a_response_counts_and_what_follows_adds_to_the_end(
    item: dict[str, Any], changed: dict[str, Any]
) -> None:
    first, next_turn = respond(said("user", "hi"), item), respond(said("user", "hi"), item, said("assistant", LONG))
    other = respond(said("user", "hi"), changed, said("assistant", LONG))
    assert next_turn.prefix[: len(first.prefix)] == first.prefix
    assert len(first.prefix) > len(respond(said("user", "hi")).prefix)
    assert other.prefix[-1] not in next_turn.prefix
    assert other.prefix[0] == next_turn.prefix[0]


def test_reasoning_that_comes_back_counts_once() -> None:
    summary = [{"type": "summary_text", "text": LONG}]
    assert respond({**THOUGHT, "summary": summary}).text_bytes == respond(THOUGHT).text_bytes
    assert respond(THOUGHT).text_bytes == (respond().text_bytes or 0) + len(LONG)


def test_the_result_of_a_call_may_be_a_text_its_parts_or_a_picture() -> None:
    whole = respond(CALL, RESULT)
    parts = respond(CALL, {**RESULT, "output": [{"type": "input_text", "text": LONG}]})
    assert (parts.text_bytes, parts.prefix) == (whole.text_bytes, whole.prefix)
    pictured = respond(CALL, {**RESULT, "output": [{"type": "input_image", "image_url": "data:," + "A" * 100_000}]})
    assert pictured.text_bytes == respond(CALL).text_bytes


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["role", "content", "text", "images", "source", "input", "output"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(["messages", "prompt", "system", "input", "tools", "images", "context", "max_tokens", "shift"]),
    st.sampled_from(["/api/chat", "/api/generate", "/api/embed", "/v1/responses", "/v1/messages", "/api/new"]),
)
def test_no_value_of_any_field_keeps_a_request_from_its_model(value: object, field: str, path: str) -> None:
    assert request(path, **{field: value}).model == "m:latest"


@pytest.mark.parametrize("path", ["/api/create", "/api/pull", "/api/show"])
def test_what_no_model_reads_is_not_measured(path: str) -> None:
    found = request(path, system=LONG, messages=[said("user", LONG)])
    assert (found.text_bytes, found.prefix) == (None, ())
