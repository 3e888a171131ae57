"""What changes a store shows at once: pull, create, copy, delete, and pull again."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.raw import Answer, ask
from tests.conformance.targets import Target

JSON = "application/json; charset=utf-8"
PLAIN_JSON = "application/json"
NDJSON = "application/x-ndjson"
PULLED = "smollm2:135m"
MISSING = "no-such-model"


@pytest.fixture
def name(target: Target) -> Iterator[str]:
    """The name of a model that is not there, and that is not there after the test either."""
    made = f"made-{secrets.token_hex(4)}:latest"
    yield made
    remove(target, made)


def post(target: Target, path: str, **fields: Any) -> Answer:
    return ask(target.url, "POST", path, fields)


def remove(target: Target, model: str) -> Answer:
    """As ``ollama rm`` does, which unloads it first."""
    post(target, "/api/generate", model=model, keep_alive=0)
    return delete(target, model)


def delete(target: Target, model: str) -> Answer:
    return ask(target.url, "DELETE", "/api/delete", {"model": model})


def tags(target: Target) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in ask(target.url, "GET", "/api/tags").json()["models"]}


def listed(target: Target) -> tuple[str, ...]:
    return tuple(model["id"] for model in ask(target.url, "GET", "/v1/models").json()["data"] or ())


def chat(target: Target, model: str) -> Answer:
    messages = [{"role": "user", "content": "Hi."}]
    return post(target, "/api/chat", model=model, messages=messages, stream=False, options={"num_predict": 2})


def create(target: Target, model: str, **fields: Any) -> Answer:
    return post(target, "/api/create", model=model, **fields)


def assert_there(target: Target, model: str) -> None:
    assert model in tags(target)
    assert listed(target) == tuple(tags(target))
    assert ask(target.url, "GET", f"/v1/models/{model}").status == 200
    assert post(target, "/api/show", model=model).status == 200
    answer = chat(target, model)
    assert (answer.status, answer.json()["model"]) == (200, model)


def assert_gone(target: Target, model: str) -> None:
    assert model not in tags(target)
    assert model not in listed(target)
    assert ask(target.url, "GET", f"/v1/models/{model}").status == 404
    for answer in (chat(target, model), post(target, "/api/show", model=model), delete(target, model)):
        assert (answer.status, answer.json()) == (404, {"error": f"model '{model}' not found"})


def test_a_model_is_there_once_it_was_pulled_gone_once_it_was_deleted_and_there_again(emulated: Target) -> None:
    for _ in range(2):
        pulled = post(emulated, "/api/pull", model=PULLED)
        assert (pulled.status, pulled.header("Content-Type")) == (200, NDJSON)
        assert pulled.lines()[-1] == {"status": "success"}
        assert_there(emulated, PULLED)
        deleted = remove(emulated, PULLED)
        assert (deleted.status, deleted.body, deleted.header("Content-Length")) == (200, b"", "0")
        assert_gone(emulated, PULLED)


def test_what_was_pulled_last_is_listed_first(emulated: Target) -> None:
    post(emulated, "/api/pull", model=PULLED, stream=False)
    assert next(iter(tags(emulated))) == listed(emulated)[0] == PULLED
    delete(emulated, PULLED)


def test_a_pull_of_what_is_there_keeps_it(emulated: Target) -> None:
    post(emulated, "/api/pull", model=PULLED, stream=False)
    before = tags(emulated)[PULLED]["digest"]
    assert post(emulated, "/api/pull", name=PULLED, stream=False).json() == {"status": "success"}
    assert tags(emulated)[PULLED]["digest"] == before
    delete(emulated, PULLED)


def test_a_name_without_a_tag_and_in_other_letters_is_the_same_model(target: Target, name: str) -> None:
    plain = name.removesuffix(":latest")
    assert post(target, "/api/copy", source=target.model.upper(), destination=plain).status == 200
    assert name in tags(target)
    assert chat(target, plain).json()["model"] == plain
    post(target, "/api/generate", model=plain, keep_alive=0)
    assert ask(target.url, "DELETE", "/api/delete", {"name": plain.upper()}).status == 200
    assert_gone(target, name)


def test_a_copy_onto_a_name_replaces_what_it_was(target: Target, name: str) -> None:
    create(target, name, **{"from": target.model, "system": "Speak plainly.", "stream": False})
    assert post(target, "/api/show", model=name).json()["system"] == "Speak plainly."
    before = tags(target)[name]["digest"]
    assert post(target, "/api/copy", source=target.model, destination=name).status == 200
    assert "Speak plainly." not in post(target, "/api/show", model=name).body.decode()
    digests = {model: entry["digest"] for model, entry in tags(target).items()}
    assert digests[name] == digests[_tagged(target.model)] != before


def test_a_model_that_is_made_anew_under_its_name_is_the_new_one(target: Target, name: str) -> None:
    for system in ("Speak plainly.", "Sing."):
        made = create(target, name, **{"from": target.model, "system": system, "stream": False})
        assert made.header("Content-Type") == PLAIN_JSON
        assert made.json() == {"status": "success"}
        assert post(target, "/api/show", model=name).json()["system"] == system
    assert_there(target, name)


def test_a_model_is_made_from_an_uploaded_file(emulated: Target, name: str) -> None:
    """Of an emulator only: a file that a real engine takes is a hundred megabytes long."""
    content = b"GGUF" + secrets.token_bytes(5000)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert ask(emulated.url, "HEAD", f"/api/blobs/{digest}").status == 404
    uploaded = ask(emulated.url, "POST", f"/api/blobs/{digest}", content)
    assert (uploaded.status, uploaded.body) == (201, b"")
    lines = [line["status"] for line in create(emulated, name, files={"model.gguf": digest}).lines()]
    assert lines[0] == "parsing GGUF"
    assert f"using existing layer {digest}" in lines
    assert lines[-2:] == ["writing manifest", "success"]
    assert digest.replace(":", "-") in post(emulated, "/api/show", model=name).json()["modelfile"]
    assert_there(emulated, name)


def test_a_blob_of_a_megabyte_arrives_whole(target: Target) -> None:
    content = secrets.token_bytes(1 << 20)
    path = f"/api/blobs/sha256:{hashlib.sha256(content).hexdigest()}"
    assert ask(target.url, "POST", path, content).status == 201
    found = ask(target.url, "HEAD", path)
    assert (found.status, found.body) == (200, b"")


def test_a_file_that_was_not_uploaded_makes_no_model(emulated: Target, name: str) -> None:
    answer = create(emulated, name, files={"model.gguf": "sha256:" + "1" * 64})
    assert answer.status == 400
    assert "no such file or directory" in answer.json()["error"]
    assert name not in tags(emulated)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "content_type", "error"),
    [
        ("POST", "/api/pull", {"model": MISSING, "stream": False}, 500, PLAIN_JSON, "pull model manifest: file does"),
        ("POST", "/api/copy", {"source": MISSING, "destination": "x"}, 404, JSON, f'model "{MISSING}" not found'),
        ("POST", "/api/copy", {"source": "", "destination": "x"}, 400, JSON, 'source "" is invalid'),
        ("POST", "/api/copy", {"source": "x", "destination": "a b"}, 400, JSON, 'destination "a b" is invalid'),
        ("DELETE", "/api/delete", {"model": MISSING}, 404, JSON, f"model '{MISSING}' not found"),
        ("DELETE", "/api/delete", None, 400, JSON, "missing request body"),
        ("POST", "/api/pull", None, 400, JSON, "missing request body"),
        ("POST", "/api/push", None, 400, JSON, "missing request body"),
        ("POST", "/api/create", None, 400, JSON, "missing request body"),
        ("POST", "/api/copy", None, 400, JSON, "missing request body"),
        ("POST", "/api/pull", b"{bad", 400, JSON, "invalid character 'b' looking for beginning of object key string"),
        ("POST", "/api/copy", b"[", 400, JSON, "unexpected EOF"),
        ("DELETE", "/api/delete", b"nonsense", 400, JSON, "invalid character 'o' in literal null (expecting 'u')"),
    ],
)
def test_what_cannot_be_done_is_told_in_ollamas_words(
    target: Target, method: str, path: str, body: Any, status: int, content_type: str, error: str
) -> None:
    answer = ask(target.url, method, path, body)
    assert (answer.status, answer.header("Content-Type")) == (status, content_type)
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].startswith(error)


def test_an_unknown_push_fails_after_a_status_of_200(emulated: Target) -> None:
    answer = post(emulated, "/api/push", model=MISSING)
    assert (answer.status, answer.header("Content-Type")) == (200, NDJSON)
    lines = answer.lines()
    assert lines[0] == {"status": "retrieving manifest"}
    assert list(lines[-1]) == ["error"]
    failed = post(emulated, "/api/push", model=MISSING, stream=False)
    assert (failed.status, failed.header("Content-Type")) == (500, PLAIN_JSON)


def test_an_empty_store_lists_nothing_and_openais_list_is_null(emulated: Target) -> None:
    before = list(tags(emulated))
    for model in before:
        assert remove(emulated, model).status == 200
    assert ask(emulated.url, "GET", "/api/tags").body == b'{"models":[]}'
    answer = ask(emulated.url, "GET", "/v1/models")
    assert (answer.status, answer.header("Content-Type")) == (200, PLAIN_JSON)
    assert answer.body == b'{"object":"list","data":null}\n'
    for name in (emulated.model, emulated.embedding, *emulated.others):
        assert post(emulated, "/api/pull", model=name, stream=False).json() == {"status": "success"}
    assert chat(emulated, emulated.model).status == 200


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"
