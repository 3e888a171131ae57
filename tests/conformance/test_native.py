"""Ollama's own API: shapes, statuses and what is sent when."""

from __future__ import annotations

import json
import re
import select
import time
from typing import Any

import pytest

from tests.conformance.raw import Wire, ask
from tests.conformance.targets import Target

NDJSON = "application/x-ndjson"
JSON = "application/json; charset=utf-8"
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
METRICS = [
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
]


def chat(target: Target, **fields: Any) -> dict[str, Any]:
    body = {"model": target.model, "messages": [{"role": "user", "content": "Count to ten."}]}
    return body | {"options": {"num_predict": 6, "temperature": 0}} | fields


def generate(target: Target, **fields: Any) -> dict[str, Any]:
    body = {"model": target.model, "prompt": "Count to ten.", "options": {"num_predict": 6, "temperature": 0}}
    return body | fields


def loaded(target: Target) -> list[dict[str, Any]]:
    return list(ask(target.url, "GET", "/api/ps").json()["models"])


def wait_until_unloaded(target: Target) -> None:
    until = time.monotonic() + 20
    while loaded(target):
        assert time.monotonic() < until, "the models stay loaded"
        time.sleep(0.02)


def unload(target: Target) -> None:
    for model in loaded(target):
        ask(target.url, "POST", "/api/generate", {"model": model["name"], "keep_alive": 0})
    wait_until_unloaded(target)


def test_a_stream_sends_one_line_in_each_chunk(target: Target) -> None:
    answer = ask(target.url, "POST", "/api/chat", chat(target))
    assert answer.status == 200
    assert answer.header("Content-Type") == NDJSON
    assert answer.ended
    assert len(answer.chunks) > 1
    assert all(chunk.endswith(b"\n") and chunk.count(b"\n") == 1 for chunk in answer.chunks)


@pytest.mark.parametrize(
    ("path", "piece", "last"),
    [
        (
            "/api/chat",
            ["model", "created_at", "message", "done"],
            ["model", "created_at", "message", "done", "done_reason", *METRICS],
        ),
        (
            "/api/generate",
            ["model", "created_at", "response", "done"],
            ["model", "created_at", "response", "done", "done_reason", "context", *METRICS],
        ),
    ],
)
def test_lines_have_ollamas_keys_in_its_order(target: Target, path: str, piece: list[str], last: list[str]) -> None:
    body = chat(target) if path == "/api/chat" else generate(target)
    lines = ask(target.url, "POST", path, body).lines()
    assert all(list(line) == piece for line in lines[:-1])
    assert list(lines[-1]) == last
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert all(STAMP.fullmatch(line["created_at"]) for line in lines)
    assert {line["model"] for line in lines} == {target.model}


def test_the_last_line_accounts_for_the_time(target: Target) -> None:
    last = ask(target.url, "POST", "/api/chat", chat(target)).lines()[-1]
    assert last["done_reason"] == "length"
    assert last["eval_count"] == 6
    assert last["prompt_eval_count"] > 0
    parts = last["load_duration"] + last["prompt_eval_duration"] + last["eval_duration"]
    assert 0 < parts <= last["total_duration"] * 1.05


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_without_streaming_the_answer_is_one_object(target: Target, path: str) -> None:
    body = chat(target, stream=False) if path == "/api/chat" else generate(target, stream=False)
    answer = ask(target.url, "POST", path, body)
    assert answer.header("Content-Type") == JSON
    assert int(answer.header("Content-Length") or 0) == len(answer.body)
    found = answer.json()
    assert found["done"] is True
    assert found["message"]["content"] if path == "/api/chat" else found["response"]


def test_raw_answers_carry_no_context(target: Target) -> None:
    found = ask(target.url, "POST", "/api/generate", generate(target, stream=False, raw=True)).json()
    assert "context" not in found


def test_a_body_above_two_kibibytes_is_chunked_and_a_smaller_one_has_a_length(target: Target) -> None:
    small, big = chat(target, stream=False), chat(target, stream=False, options={"num_predict": 900, "temperature": 0})
    assert ask(target.url, "POST", "/api/chat", small).header("Content-Length")
    answer = ask(target.url, "POST", "/api/chat", big)
    if len(answer.body) > 2048:
        assert answer.header("Transfer-Encoding") == "chunked"
        assert len(answer.chunks) == 1


def test_nothing_is_sent_before_the_first_token(target: Target) -> None:
    if target.legacy:
        pytest.skip("the older engine lists a model while it loads, so its list does not tell")
    unload(target)
    with Wire(target.url) as wire:
        wire.send("POST", "/api/chat", chat(target))
        while True:
            arrived = bool(select.select([wire.socket], [], [], 0)[0])
            if loaded(target):
                break
            assert not arrived, "bytes came before the model was loaded"
        assert wire.receive().lines()[-1]["done"] is True


def test_an_empty_prompt_loads_the_model(target: Target) -> None:
    unload(target)
    answer = ask(target.url, "POST", "/api/generate", {"model": target.model})
    assert answer.header("Content-Type") == JSON
    assert list(answer.json()) == ["model", "created_at", "response", "done", "done_reason"]
    assert answer.json()["done_reason"] == "load"
    assert [model["name"] for model in loaded(target)] == [_tagged(target.model)]


def test_no_messages_load_and_unload_the_model(target: Target) -> None:
    assert ask(target.url, "POST", "/api/chat", {"model": target.model, "messages": []}).json() | {
        "created_at": ""
    } == {
        "model": target.model,
        "created_at": "",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "load",
    }
    answer = ask(target.url, "POST", "/api/chat", {"model": target.model, "messages": [], "keep_alive": 0})
    assert answer.json()["done_reason"] == "unload"
    wait_until_unloaded(target)


def test_nothing_loaded_is_an_empty_list_and_not_null(target: Target) -> None:
    unload(target)
    assert ask(target.url, "GET", "/api/ps").body == b'{"models":[]}'


def test_a_loaded_model_is_listed_with_its_memory(target: Target) -> None:
    ask(target.url, "POST", "/api/generate", {"model": target.model})
    found = next(model for model in loaded(target) if model["name"] == _tagged(target.model))
    keys = ["name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"]
    assert list(found) == keys
    assert found["size"] >= found["size_vram"] >= 0
    assert re.fullmatch(r"[0-9a-f]{64}", found["digest"])
    assert found["context_length"] > 0


def test_a_request_with_keep_alive_zero_unloads_when_it_ends(target: Target) -> None:
    ask(target.url, "POST", "/api/chat", chat(target, keep_alive=0))
    wait_until_unloaded(target)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/api/chat", "model 'no-such-model' not found"),
        ("/api/generate", "model 'no-such-model' not found"),
        ("/api/show", "model 'no-such-model' not found"),
        ("/api/embed", 'model "no-such-model" not found, try pulling it first'),
        ("/api/embeddings", 'model "no-such-model" not found, try pulling it first'),
    ],
)
def test_an_unknown_model_is_a_404_with_this_routes_quotes(target: Target, path: str, error: str) -> None:
    answer = ask(target.url, "POST", path, {"model": "no-such-model", "prompt": "x", "input": "x"})
    assert (answer.status, answer.json()) == (404, {"error": error})
    assert answer.header("Content-Type") == JSON


def test_text_in_json_is_escaped_as_go_does(target: Target) -> None:
    answer = ask(target.url, "POST", "/api/chat", {"model": "<&>", "messages": []})
    assert answer.status in (400, 404)
    assert not set(answer.body) & set(b"<&>")


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/chat", {"messages": []}, 400, "model is required"),
        ("/api/embeddings", {"prompt": "x"}, 400, "model is required"),
        ("/api/generate", {"prompt": "x"}, 404, "model '' not found"),
        ("/api/copy", {"source": "no-such-model", "destination": "x"}, 404, 'model "no-such-model" not found'),
    ],
)
def test_a_missing_model_is_refused(target: Target, path: str, body: Any, status: int, error: str) -> None:
    answer = ask(target.url, "POST", path, body)
    assert (answer.status, answer.json()) == (status, {"error": error})


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ({"options": {"num_ctx": "big"}}, 500, 'option "num_ctx" must be of type integer'),
    ],
)
def test_a_wrong_option_is_refused(target: Target, fields: dict[str, Any], status: int, error: str) -> None:
    answer = ask(target.url, "POST", "/api/chat", chat(target, **fields))
    assert (answer.status, answer.json()) == (status, {"error": error})


def test_an_unknown_field_or_option_is_ignored(target: Target) -> None:
    answer = ask(target.url, "POST", "/api/chat", chat(target, nonsense=1, options={"num_predict": 2, "nonsense": 2}))
    assert answer.status == 200


def test_a_client_that_leaves_frees_its_place(target: Target) -> None:
    long = chat(target, options={"num_predict": 5000})
    for _ in range(6):
        with Wire(target.url) as wire:
            wire.send("POST", "/api/chat", long)
            wire.first_bytes()
    assert ask(target.url, "POST", "/api/chat", chat(target)).lines()[-1]["done"] is True


def test_an_embedding_has_numbers_for_each_input(target: Target) -> None:
    body = {"model": _embedding(target), "input": ["one", "two"]}
    found = ask(target.url, "POST", "/api/embed", body).json()
    assert list(found) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert len(found["embeddings"]) == 2
    assert sum(value * value for value in found["embeddings"][0]) == pytest.approx(1.0, abs=0.01)


def test_no_input_gives_no_embeddings(target: Target) -> None:
    found = ask(target.url, "POST", "/api/embed", {"model": _embedding(target), "input": ""}).json()
    assert found == {"model": _embedding(target), "embeddings": []}


def test_the_older_embedding_route_gives_one_vector(target: Target) -> None:
    found = ask(target.url, "POST", "/api/embeddings", {"model": _embedding(target), "prompt": "one"}).json()
    assert list(found) == ["embedding"]
    assert found["embedding"]
    empty = ask(target.url, "POST", "/api/embeddings", {"model": _embedding(target), "prompt": ""}).json()
    assert empty == {"embedding": []}


def test_an_embedding_model_does_not_chat(target: Target) -> None:
    name = _embedding(target)
    answer = ask(target.url, "POST", "/api/chat", {"model": name, "messages": [{"role": "user", "content": "x"}]})
    assert (answer.status, answer.json()) == (400, {"error": f'"{name}" does not support chat'})


def test_a_model_that_cannot_think_refuses_to(emulated: Target) -> None:
    answer = ask(emulated.url, "POST", "/api/chat", chat(emulated, think=True))
    assert (answer.status, answer.json()) == (400, {"error": f'"{emulated.model}" does not support thinking'})


@pytest.mark.parametrize("think", [None, True, False])
def test_thinking_comes_first_and_in_its_own_field(emulated: Target, think: bool | None) -> None:
    body = chat(emulated, model="qwen3:8b", options={"num_predict": 9}) | ({} if think is None else {"think": think})
    lines = ask(emulated.url, "POST", "/api/chat", body).lines()
    thoughts = [bool(line["message"].get("thinking")) for line in lines]
    assert thoughts == sorted(thoughts, reverse=True)
    assert any(thoughts) is (think is not False)


def test_a_tool_call_is_a_whole_object(emulated: Target) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "string"}}}}}
    lines = ask(emulated.url, "POST", "/api/chat", chat(emulated, tools=[tool])).lines()
    carriers = [line for line in lines if "tool_calls" in line["message"]]
    assert len(carriers) == 1
    # the newer engine delivers calls only with the last line
    assert carriers[0]["done"] is not emulated.legacy
    (call,) = carriers[0]["message"]["tool_calls"]
    assert re.fullmatch(r"call_[a-z0-9]{8}", call["id"])
    assert call["function"]["name"] == "look"
    assert list(call["function"]["arguments"]) == ["at"]


def test_tools_are_refused_where_the_model_has_none(emulated: Target) -> None:
    ask(emulated.url, "POST", "/api/pull", {"model": "gemma3:270m", "stream": False})
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    answer = ask(emulated.url, "POST", "/api/chat", chat(emulated, model="gemma3:270m", tools=[tool]))
    error = "registry.ollama.ai/library/gemma3:270m does not support tools"
    assert (answer.status, answer.json()) == (400, {"error": error})


@pytest.mark.parametrize("shape", ["json", {"type": "object", "properties": {"n": {"type": "integer"}}}])
def test_a_format_gives_json(target: Target, shape: Any) -> None:
    body = chat(target, stream=False, format=shape, options={"num_predict": 200, "temperature": 0})
    found = ask(target.url, "POST", "/api/chat", body).json()
    assert isinstance(json.loads(found["message"]["content"]), dict)


def test_log_probabilities_are_beside_their_token(emulated: Target) -> None:
    lines = ask(emulated.url, "POST", "/api/chat", chat(emulated, logprobs=True, top_logprobs=2)).lines()
    for line in lines[:-1]:
        (entry,) = line["logprobs"]
        assert entry["token"] == line["message"]["content"]
        assert len(entry["top_logprobs"]) == 2


def test_rendering_only_gives_the_prompt_and_no_tokens(emulated: Target) -> None:
    found = ask(emulated.url, "POST", "/api/chat", chat(emulated, _debug_render_only=True)).json()
    assert "Count to ten." in found["_debug_info"]["rendered_template"]
    assert "eval_count" not in found


def test_the_older_engine_lists_a_model_while_it_loads(emulated: Target) -> None:
    if not emulated.legacy:
        pytest.skip("the newer engine lists a model once it is loaded")
    unload(emulated)
    with Wire(emulated.url) as wire:
        wire.send("POST", "/api/chat", chat(emulated))
        while not loaded(emulated):
            pass
        assert not select.select([wire.socket], [], [], 0)[0]
        wire.receive()


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _embedding(target: Target) -> str:
    if target.embedding is None:
        pytest.skip("the target has no embedding model")
    return target.embedding
