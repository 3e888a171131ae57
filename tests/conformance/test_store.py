"""The model store: lists, show, copy, create, delete, blobs, pull and push."""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime

import pytest

from tests.conformance.raw import Wire, ask
from tests.conformance.targets import Target


def test_tags_list_models_newest_first(target: Target) -> None:
    models = ask(target.url, "GET", "/api/tags").json()["models"]
    assert models
    for model in models:
        assert list(model)[:2] == ["name", "model"]
        assert re.fullmatch(r"[0-9a-f]{64}", model["digest"])
        assert model["size"] > 0
        assert {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"} <= set(
            model["details"]
        )
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", model["modified_at"])
    changed = [datetime.fromisoformat(model["modified_at"]) for model in models]
    assert changed == sorted(changed, reverse=True)


def test_show_tells_capabilities_and_where_the_weights_are(target: Target) -> None:
    found = ask(target.url, "POST", "/api/show", {"model": target.model}).json()
    assert "completion" in found["capabilities"]
    assert re.search(r"^FROM .*blobs/sha256-[0-9a-f]{64}$", found["modelfile"], re.MULTILINE)
    assert "general.architecture" in found["model_info"]


def test_names_are_found_without_regard_to_case(target: Target) -> None:
    assert ask(target.url, "POST", "/api/show", {"model": target.model.upper()}).status == 200


def test_a_copy_is_listed_with_the_same_digest_until_it_is_deleted(target: Target) -> None:
    name = f"copy-{secrets.token_hex(4)}:latest"
    copied = ask(target.url, "POST", "/api/copy", {"source": target.model, "destination": name})
    assert (copied.status, copied.body) == (200, b"")
    digests = {model["name"]: model["digest"] for model in ask(target.url, "GET", "/api/tags").json()["models"]}
    original = target.model if ":" in target.model else f"{target.model}:latest"
    assert digests[name] == digests[original]
    deleted = ask(target.url, "DELETE", "/api/delete", {"model": name})
    assert (deleted.status, deleted.body) == (200, b"")
    again = ask(target.url, "DELETE", "/api/delete", {"model": name})
    assert (again.status, again.json()) == (404, {"error": f"model '{name}' not found"})


def test_a_model_made_from_another_can_be_shown_and_deleted(target: Target) -> None:
    name = f"made-{secrets.token_hex(4)}"
    body = {"model": name, "from": target.model, "system": "Speak plainly.", "parameters": {"temperature": 0}}
    answer = ask(target.url, "POST", "/api/create", body)
    assert answer.header("Content-Type") == "application/x-ndjson"
    statuses = [line["status"] for line in answer.lines()]
    assert statuses[-2:] == ["writing manifest", "success"]
    assert any(status.startswith("using existing layer sha256:") for status in statuses)
    assert ask(target.url, "POST", "/api/show", {"model": name}).json()["system"] == "Speak plainly."
    assert ask(target.url, "DELETE", "/api/delete", {"model": name}).status == 200


def test_a_blob_is_checked_kept_and_found_again(target: Target) -> None:
    content = secrets.token_bytes(100)
    path = f"/api/blobs/sha256:{hashlib.sha256(content).hexdigest()}"
    with Wire(target.url) as wire:
        assert wire.ask("HEAD", path).status == 404
        assert wire.ask("POST", path, content + b"x").status == 400
        assert wire.ask("POST", path, content).status == 201
        assert wire.ask("POST", path, content).status == 200
        assert wire.ask("HEAD", path).status == 200


def test_a_blob_with_another_digest_is_refused_with_both(target: Target) -> None:
    wanted, got = "0" * 64, hashlib.sha256(b"content").hexdigest()
    answer = ask(target.url, "POST", f"/api/blobs/sha256:{wanted}", b"content")
    error = f'digest mismatch, expected "sha256:{wanted}", got "sha256:{got}"'
    assert (answer.status, answer.json()) == (400, {"error": error})


@pytest.mark.parametrize("digest", ["sha256:12", "md5:" + "0" * 32, "..%2f..%2fetc"])
def test_a_digest_that_is_none_is_refused(target: Target, digest: str) -> None:
    assert ask(target.url, "HEAD", f"/api/blobs/{digest}").status == 400


def test_openais_list_has_the_same_models(target: Target) -> None:
    names = [model["name"] for model in ask(target.url, "GET", "/api/tags").json()["models"]]
    answer = ask(target.url, "GET", "/v1/models").json()
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == names
    assert {model["object"] for model in answer["data"]} == {"model"}
    one = ask(target.url, "GET", f"/v1/models/{names[0]}").json()
    assert one["id"] == names[0]


def test_an_unknown_model_of_openais_list_is_a_404_in_its_shape(target: Target) -> None:
    answer = ask(target.url, "GET", "/v1/models/no-such-model")
    assert answer.status == 404
    assert answer.json()["error"]["type"] == "not_found_error"


def test_a_pull_reports_progress_and_then_success(emulated: Target) -> None:
    ask(emulated.url, "DELETE", "/api/delete", {"model": "smollm2:135m"})
    answer = ask(emulated.url, "POST", "/api/pull", {"model": "smollm2:135m"})
    lines = answer.lines()
    statuses = [line["status"] for line in lines]
    assert statuses[0] == "pulling manifest"
    assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    layer = [line for line in lines if line.get("digest") == lines[1]["digest"]]
    done = [line.get("completed", 0) for line in layer]
    assert done == sorted(done)
    assert done[-1] == layer[-1]["total"]
    assert len(answer.chunks) == len(lines)


def test_an_unknown_pull_fails_after_a_status_of_200(emulated: Target) -> None:
    answer = ask(emulated.url, "POST", "/api/pull", {"model": "no-such-model"})
    assert answer.status == 200
    assert answer.lines() == [
        {"status": "pulling manifest"},
        {"error": "pull model manifest: file does not exist"},
    ]


def test_without_streaming_a_pull_is_one_object(emulated: Target) -> None:
    answer = ask(emulated.url, "POST", "/api/pull", {"model": "smollm2:135m", "stream": False})
    assert answer.json() == {"status": "success"}
    failed = ask(emulated.url, "POST", "/api/pull", {"model": "no-such-model", "stream": False})
    assert (failed.status, failed.json()) == (500, {"error": "pull model manifest: file does not exist"})


def test_a_push_reports_its_layers(emulated: Target) -> None:
    statuses = [line["status"] for line in ask(emulated.url, "POST", "/api/push", {"model": emulated.model}).lines()]
    assert statuses[0] == "retrieving manifest"
    assert statuses[-2:] == ["pushing manifest", "success"]
