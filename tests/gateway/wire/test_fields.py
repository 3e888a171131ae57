"""What routing reads of a body, and what it must not be fooled by."""

from __future__ import annotations

import json

import pytest

from corral.gateway.wire.fields import route_request
from corral.gateway.wire.routes import find_route
from corral.model import RequestKind, RouteRequest


def request(path: str, body: bytes, content_type: bytes = b"application/json") -> RouteRequest:
    return route_request(find_route(b"POST", path), body, content_type, "127.0.0.1")


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"llama3.1"}', "llama3.1:latest"),
        (b'{"model":"Llama3.1:LATEST"}', "llama3.1:latest"),
        (b'{"model":"registry.ollama.ai/library/llama3.1"}', "llama3.1:latest"),
        (b'{"nested":{"model":"b"},"model":"a:1"}', "a:1"),
        (b'{"messages":[{"model":"b"}],"model":"a:1"}', "a:1"),
        (b'{"model":"b","model":"a:1"}', "a:1"),  # the last one counts, as in Go
        (b'{"MODEL":"a:1"}', "a:1"),
        (b'{"model":"a:1","prompt":"\xff"}', "a:1"),
        (b'{"model":"a:1","options":{"num_ctx":"big"}}', "a:1"),
        (b'{"model":"a:1","options":[]}', "a:1"),
        (b'{"model":"hf.co/Org/Repo:Q4_K_M"}', "hf.co/org/repo:q4_k_m"),
    ],
)
def test_the_model_is_found(body: bytes, model: str) -> None:
    assert request("/api/chat", body).model == model
    assert request("/api/chat", body).kind is RequestKind.INFERENCE


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b'{"model":1}', b'{"model":""}', b'{"model":"%b"}' % (b"x" * 600)]
)
def test_without_a_readable_model_no_slot_is_taken(body: bytes) -> None:
    assert request("/api/chat", body) == RouteRequest(RequestKind.OTHER, None, "", len(body), "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt-oss:120b-cloud", RequestKind.CLOUD), ("m:cloud", RequestKind.CLOUD), ("cloud:7b", RequestKind.INFERENCE)],
)
def test_cloud_models_take_no_slot(name: str, kind: RequestKind) -> None:
    assert request("/v1/chat/completions", json.dumps({"model": name}).encode()).kind is kind


def test_the_signature_names_what_makes_ollama_reload() -> None:
    body = b'{"model":"m","options":{"temperature":0.1,"num_gpu":1,"num_ctx":4096,"use_mmap":false},"shift":false}'
    assert request("/api/chat", body).signature == "num_ctx=4096,num_gpu=1,use_mmap=0,shift=0"
    assert request("/api/chat", b'{"model":"m","options":{"temperature":0.1}}').signature == ""
    assert request("/api/chat", b'{"model":"m","options":{"num_predict":7},"shift":true}').signature == ""
    assert request("/api/chat", b'{"model":"m","shift":false}').signature == "shift=0"


@pytest.mark.parametrize(
    ("path", "fields", "limit"),
    [
        ("/api/chat", b'"options":{"num_predict":7}', 7),
        ("/api/chat", b'"options":{"num_predict":7.0}', 7),
        ("/api/chat", b'"options":{"num_predict":-1}', None),
        ("/api/chat", b'"options":{"num_predict":0}', None),
        ("/api/chat", b'"options":{"num_predict":1e300}', None),
        ("/api/chat", b'"options":{}', None),
        ("/v1/chat/completions", b'"max_tokens":9', 9),
        ("/v1/chat/completions", b'"max_tokens":9,"max_completion_tokens":8', 8),
        ("/v1/chat/completions", b'"max_tokens":null', None),
        ("/v1/responses", b'"max_output_tokens":6', 6),
        ("/v1/messages", b'"max_tokens":1024', 1024),
    ],
)
def test_the_most_tokens_that_are_wanted(path: str, fields: bytes, limit: int | None) -> None:
    assert request(path, b'{"model":"m",%b}' % fields).output_limit == limit


@pytest.mark.parametrize("keep_alive", ["0", "0.0", "-0", "0e3", '"0"', '"0s"', '"0h0m"', '"-0.0s"', '"0\u00b5s"'])
@pytest.mark.parametrize(
    ("path", "text"), [("/api/generate", ""), ("/api/generate", '"prompt":"",'), ("/api/chat", '"messages":[],')]
)
def test_a_request_that_only_lets_go_of_a_model_takes_no_slot(path: str, text: str, keep_alive: str) -> None:
    body = f'{{"model":"m",{text}"keep_alive":{keep_alive}}}'.encode()
    assert request(path, body).kind is RequestKind.UNLOAD


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/generate", b'"prompt":""'),
        ("/api/generate", b'"prompt":"hi","keep_alive":0'),
        ("/api/chat", b'"messages":[{"role":"user","content":""}],"keep_alive":0'),
        ("/api/embed", b'"input":"","keep_alive":0'),
        ("/v1/completions", b'"prompt":"","keep_alive":0'),
        *[
            ("/api/generate", b'"keep_alive":%b' % value)
            for value in (b"5", b"-1", b"0.5", b'"5m"', b'"1ns"', b'""', b'"s"', b"null", b"false", b"[0]")
        ],
    ],
)
def test_whatever_may_run_a_model_is_inference(path: str, fields: bytes) -> None:
    assert request(path, b'{"model":"m",%b}' % fields).kind is RequestKind.INFERENCE


def test_parts_within_parts_only_hide_how_much_text_there_is() -> None:
    for depth in (1, 50, 250, 330, 400, 700, 10_000):
        content = b'[{"content":' * depth + b'"x"' + b"}]" * depth
        found = request("/v1/messages", b'{"model":"m","max_tokens":9,"messages":[{"content":%b}]}' % content)
        assert found.model in ("m:latest", None), depth
        assert found.text_bytes is not None or depth > 250, depth


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/chat", b'"messages":[%b{}]' % (b"{}," * 300_000)),
        ("/api/generate", b'"prompt":"hi","images":[%b1]' % (b"1," * 300_000)),
        ("/v1/responses", b'"input":[%b{}]' % (b"{}," * 300_000)),
        ("/api/embed", b'"input":[%b""]' % (b'"",' * 300_000)),
    ],
)
def test_of_a_body_of_too_many_pieces_only_the_model_is_read(path: str, fields: bytes) -> None:
    found = request(path, b'{"model":"m","options":{"num_ctx":4096},%b}' % fields)
    assert (found.kind, found.key) == (RequestKind.INFERENCE, "m:latest num_ctx=4096")
    assert (found.text_bytes, found.prefix) == (None, ())


def test_a_long_text_is_not_many_pieces() -> None:
    found = request("/api/generate", b'{"model":"m","prompt":"%b"}' % (b"one, two and then three " * 100_000))
    assert found.text_bytes is not None
    assert len(found.prefix) == 1024


@pytest.mark.parametrize("number", [b"1e400", b"-1e999", b"1" + b"0" * 400])
def test_options_that_ollama_refuses_load_nothing(number: bytes) -> None:
    found = request("/api/chat", b'{"model":"m","options":{"num_ctx":%b}}' % number)
    assert (found.kind, found.model) == (RequestKind.OTHER, "m:latest")


@pytest.mark.parametrize(
    "given",
    [
        '"hi"',
        "[]",
        "null",
        '[{"role":"user","content":"hi"}]',
        '[{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}]',
        '[{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}]',
        '[{"type":"function_call_output","call_id":"c","output":"hi"}]',
        '[{"type":"function_call_output","call_id":"c","output":[{"type":"input_text","text":"hi"}]}]',
        '[{"type":"computer_call_output","output":{"type":"computer_screenshot","image_url":"data:x"}}]',
        '[{"type":"reasoning","id":"r","summary":[],"encrypted_content":"hm"}]',
        '[{"type":"item_reference","id":"i"}]',
        '[{"type":"local_shell_call","action":{"type":"exec","command":["ls"]}}]',
    ],
)
@pytest.mark.parametrize("more", ["", ',"tools":[{"type":"web_search"}],"store":false,"include":[]', ',"text":{"a":1}'])
def test_the_model_of_a_response_is_found_whatever_its_input_is(given: str, more: str) -> None:
    body = f'{{"input":{given},"instructions":"be brief","reasoning":{{"effort":"low"}},"model":"m"{more}}}'
    found = request("/v1/responses", body.encode())
    assert (found.kind, found.key) == (RequestKind.INFERENCE, "m:latest")
    assert found.text_bytes is not None


@pytest.mark.parametrize("given", ["5", "[5]", '{"text":"hi"}', '[{"output":5}]', '[{"content":{"a":1}}]'])
def test_the_model_of_an_odd_response_is_found_too(given: str) -> None:
    found = request("/v1/responses", f'{{"model":"m","prompt":{{"id":"p"}},"input":{given}}}'.encode())
    assert (found.kind, found.key, found.text_bytes) == (RequestKind.INFERENCE, "m:latest", None)


def test_unknown_posts_that_name_a_model_are_inference() -> None:
    assert request("/v1/images/generations", b'{"model":"m"}').kind is RequestKind.INFERENCE
    assert request("/v1/anything", b"{}").kind is RequestKind.OTHER


def test_the_model_of_a_multipart_upload_is_found() -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper:tiny\r\n--b--\r\n'
    )
    found = request("/v1/audio/transcriptions", body, b"multipart/form-data; boundary=b")
    assert (found.kind, found.model) == (RequestKind.INFERENCE, "whisper:tiny")


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        (b"POST", "/api/pull", RequestKind.STORE),
        (b"DELETE", "/api/delete", RequestKind.STORE),
        (b"POST", "/api/show", RequestKind.SHOW),
        (b"HEAD", "/api/blobs/sha256:x", RequestKind.BLOB),
        (b"GET", "/api/chat", RequestKind.OTHER),
        (b"POST", "/elsewhere", RequestKind.OTHER),
        (b"POST", "/api/me", RequestKind.CLOUD),
        (b"POST", "/api/signout", RequestKind.CLOUD),
        (b"DELETE", "/api/user/keys/abc", RequestKind.CLOUD),
        (b"POST", "/api/experimental/web_search", RequestKind.CLOUD),
        (b"POST", "/api/experimental/web_fetch", RequestKind.CLOUD),
        (b"GET", "/v1/models/gpt-oss:120b-cloud", RequestKind.CLOUD),
        (b"GET", "/v1/models/gpt-oss:120b", RequestKind.OTHER),
        (b"GET", "/api/me", RequestKind.OTHER),
        (b"DELETE", "/api/user", RequestKind.OTHER),
        (b"GET", "/api/experimental/model-recommendations", RequestKind.OTHER),
    ],
)
def test_routes(method: bytes, path: str, kind: RequestKind) -> None:
    assert find_route(method, path).kind is kind


@pytest.mark.parametrize("body", [b"", b"{", b'{"model":"m","query":"x"}', b'{"name":"m:cloud"}'])
def test_a_request_about_an_account_names_no_model_whatever_its_body_says(body: bytes) -> None:
    assert request("/api/experimental/web_search", body) == RouteRequest(
        RequestKind.CLOUD, None, "", len(body), "127.0.0.1"
    )


@pytest.mark.parametrize("name", ["m:8b num_ctx=4", "two words", "tab\tbed", "bell\x07"])
def test_a_name_that_no_model_can_have_routes_without_a_model(name: str) -> None:
    found = request("/api/generate", json.dumps({"model": name, "prompt": "hi"}).encode())
    assert (found.kind, found.model, found.key) == (RequestKind.OTHER, None, "")
