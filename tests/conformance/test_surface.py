"""Paths, methods, heads and the protection against browsers."""

from __future__ import annotations

import os
import re

import pytest

from tests.conformance.raw import Wire, ask
from tests.conformance.targets import Target, kinds

JSON = "application/json; charset=utf-8"


def test_a_real_ollama_is_asked_the_same() -> None:
    if not os.environ.get("OLLAMA_BIN"):
        pytest.skip("no real Ollama: set OLLAMA_BIN=/path/to/ollama and OLLAMA_TEST_MODEL=a model it has")
    assert "ollama" in kinds()


def test_the_root_says_that_ollama_is_running(target: Target) -> None:
    answer = ask(target.url, "GET", "/")
    assert (answer.status, answer.body) == (200, b"Ollama is running")
    assert answer.header("Content-Type") == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
def test_head_answers_as_get_without_a_body(target: Target, path: str) -> None:
    with Wire(target.url) as wire:
        head, get = wire.ask("HEAD", path), wire.ask("GET", path)
    assert head.status == get.status == 200
    assert head.header("Content-Type") == get.header("Content-Type")
    assert head.body == b""


def test_every_answer_has_a_date_and_no_server(target: Target) -> None:
    answer = ask(target.url, "GET", "/api/version")
    date = answer.header("Date")
    assert date is not None
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date)
    assert answer.header("Server") is None


def test_the_version_is_one_string(target: Target) -> None:
    answer = ask(target.url, "GET", "/api/version")
    assert answer.header("Content-Type") == JSON
    assert re.fullmatch(rb'\{"version":"\d+\.\d+\.\d+[^"]*"\}', answer.body)


def test_an_unknown_path_is_a_404_in_plain_text(target: Target) -> None:
    answer = ask(target.url, "GET", "/no/such/path")
    assert (answer.status, answer.body) == (404, b"404 page not found")
    assert answer.header("Content-Type") == "text/plain"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/api/version", {"HEAD", "GET"}),
        ("POST", "/api/tags", {"HEAD", "GET"}),
        ("POST", "/api/ps", {"GET"}),
        ("GET", "/api/chat", {"POST"}),
        ("PUT", "/api/pull", {"POST"}),
        ("GET", "/api/delete", {"DELETE"}),
        ("POST", "/v1/models", {"GET"}),
        ("GET", "/v1/embeddings", {"POST"}),
        ("GET", f"/api/blobs/sha256:{'0' * 64}", {"HEAD", "POST"}),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_ones(
    target: Target, method: str, path: str, allowed: set[str]
) -> None:
    answer = ask(target.url, method, path)
    assert (answer.status, answer.body) == (405, b"405 method not allowed")
    assert set((answer.header("Allow") or "").split(", ")) == allowed


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/api/ps", {"GET"}), ("/v1/models", {"GET"}), ("/v1/models/llama3.2", {"GET"}), ("/api/chat", {"POST"})],
)
def test_head_is_a_method_of_its_own(target: Target, path: str, allowed: set[str]) -> None:
    with Wire(target.url) as wire:
        answer = wire.ask("HEAD", path)
        assert (answer.status, answer.header("Content-Type")) == (405, "text/plain")
        assert set((answer.header("Allow") or "").split(", ")) == allowed
        assert wire.ask("HEAD", "/no/such/path").status == 404
        assert wire.ask("GET", "/api/version").status == 200


def test_a_connection_serves_request_after_request(target: Target) -> None:
    with Wire(target.url) as wire:
        assert [wire.ask("GET", "/api/version").status for _ in range(3)] == [200, 200, 200]


def test_connection_close_is_honoured(target: Target) -> None:
    with Wire(target.url) as wire:
        answer = wire.ask("GET", "/api/version", Connection="close")
        assert (answer.header("Connection") or "").lower() == "close"
        assert wire.socket.recv(1) == b""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11434", "8.8.8.8"])
def test_a_foreign_host_header_is_refused(target: Target, host: str) -> None:
    answer = ask(target.url, "GET", "/api/version", Host=host)
    assert (answer.status, answer.body) == (403, b"")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:11434", "box.local", "a.internal", "10.0.0.7"])
def test_a_local_host_header_is_accepted(target: Target, host: str) -> None:
    assert ask(target.url, "GET", "/api/version", Host=host).status == 200


def test_a_foreign_origin_is_refused(target: Target) -> None:
    answer = ask(target.url, "GET", "/api/version", Origin="http://evil.example")
    assert (answer.status, answer.body) == (403, b"")


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "app://obsidian.md", "tauri://x"])
def test_a_local_origin_is_accepted_and_named_back(target: Target, origin: str) -> None:
    answer = ask(target.url, "GET", "/api/version", Origin=origin)
    assert answer.status == 200
    assert answer.header("Access-Control-Allow-Origin") == origin


def test_a_preflight_is_answered_without_content(target: Target) -> None:
    answer = ask(
        target.url,
        "OPTIONS",
        "/api/chat",
        Origin="http://localhost:3000",
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="content-type",
    )
    assert answer.status == 204
    assert answer.header("Access-Control-Allow-Origin") == "http://localhost:3000"
    assert "POST" in (answer.header("Access-Control-Allow-Methods") or "")


def test_a_body_is_asked_for_where_the_client_waits_for_it(target: Target) -> None:
    with Wire(target.url) as wire:
        body = b'{"model":"no-such-model"}'
        head = f"POST /api/show HTTP/1.1\r\nHost: {wire.host}\r\nContent-Length: {len(body)}\r\n"
        wire.socket.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert wire.receive().status == 100
        wire.socket.sendall(body)
        assert wire.receive().status == 404


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/show"])
def test_a_missing_body_is_a_400(target: Target, path: str) -> None:
    answer = ask(target.url, "POST", path)
    assert (answer.status, answer.json()) == (400, {"error": "missing request body"})
    assert answer.header("Content-Type") == JSON


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{bad", "invalid character 'b' looking for beginning of object key string"),
        (b"nonsense", "invalid character 'o' in literal null (expecting 'u')"),
        (b"[", "unexpected EOF"),
    ],
)
def test_malformed_json_is_a_400_in_gos_words(target: Target, body: bytes, error: str) -> None:
    answer = ask(target.url, "POST", "/api/chat", body)
    assert (answer.status, answer.json()) == (400, {"error": error})
