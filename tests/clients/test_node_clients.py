"""The clients for Node, ``ollama`` and ``openai`` of npm, work through the gateway as they do with one Ollama."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.compare import plain
from tests.clients.conftest import CHAT, EMBEDDING, MODELS, SPEED, THINKING
from tests.clients.node_packages import FOLDER, node
from tests.clients.processes import Stack, stack

Results = dict[str, Any]

_SESSION_S = 60


@pytest.fixture(scope="module")
def program() -> str:
    return node()


@pytest.fixture(scope="module")
def breakable(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway of its own: the session breaks so many answers that a replica is rightly ejected."""
    folder = tmp_path_factory.mktemp("node")
    with stack(folder, (*MODELS, *SPEED, "--store", str(folder / "models"))) as started:
        yield started


@pytest.fixture(scope="module")
def through(program: str, breakable: Stack) -> Results:
    """What came out of the session with the gateway."""
    addresses = (breakable.url, breakable.admin_url, *(replica.url for replica in breakable.replicas))
    return session(program, *addresses)


@pytest.fixture(scope="module")
def direct(program: str, breakable: Stack) -> Results:
    """What came out of the same session with one replica."""
    return session(program, breakable.replicas[0].url)


def session(program: str, *addresses: str) -> Results:
    run = subprocess.run(
        [program, "session.mjs", *addresses], cwd=FOLDER, capture_output=True, text=True, timeout=_SESSION_S
    )
    assert run.returncode == 0, run.stderr
    results: Results = json.loads(run.stdout)
    return results


def value(results: Results, case: str) -> Any:
    """What a case gave; fails with its stack where it threw."""
    assert "failed" not in results[case], results[case]["failed"]
    return results[case]["value"]


def native_text(answer: Any) -> str:
    pieces = answer if isinstance(answer, list) else [answer]
    return "".join(piece["message"]["content"] for piece in pieces)


def called(answer: Any) -> list[str]:
    pieces = answer if isinstance(answer, list) else [answer]
    return [call["function"]["name"] for piece in pieces for call in piece["message"].get("tool_calls", ())]


def openai_called(answer: Any) -> list[str]:
    pieces = answer if isinstance(answer, list) else [answer]
    parts = [choice.get("message") or choice["delta"] for piece in pieces for choice in piece["choices"]]
    return [call["function"]["name"] for part in parts for call in part.get("tool_calls", ())]


def thrown(status: int | None, words: str) -> Callable[[Any], bool]:
    return lambda error: error["status"] == status and words in error["message"]


CALLS: dict[str, Callable[[Any], object]] = {
    "chat": native_text,
    "stream": lambda pieces: native_text(pieces) and len(pieces) == 13 and pieces[-1]["done"],
    "tools": lambda answer: called(answer) == ["weather"],
    "tools, streamed": lambda pieces: called(pieces) == ["weather"],
    "thinking": lambda answer: answer["message"]["thinking"] and native_text(answer),
    "format": lambda answer: set(json.loads(native_text(answer))) == {"name", "people"},
    "generate": lambda answer: answer["response"] and answer["eval_count"] == 12,
    "generate, streamed": lambda pieces: len(pieces) == 13,
    "embed": lambda answer: [len(vector) for vector in answer["embeddings"]] == [768, 768],
    "embeddings": lambda answer: len(answer["embedding"]) == 768,
    "list": lambda answer: {CHAT, THINKING, f"{EMBEDDING}:latest"} <= {model["name"] for model in answer["models"]},
    "show": lambda answer: answer["capabilities"] == ["completion", "tools"],
    "version": lambda answer: answer["version"],
    "unknown model": thrown(404, "model 'cow' not found"),
    "unknown model, streamed": thrown(404, "model 'cow' not found"),
    "unknown model, embed": thrown(404, 'model "cow" not found, try pulling it first'),
    "unknown model, show": thrown(404, "model 'cow' not found"),
    "unknown model, pull": thrown(None, "pull model manifest: file does not exist"),
    "openai chat": lambda answer: answer["choices"][0]["message"]["content"],
    "openai stream": lambda pieces: pieces[-1]["choices"][0]["finish_reason"] == "length",
    "openai tools": lambda answer: openai_called(answer) == ["weather"],
    "openai tools, streamed": lambda pieces: openai_called(pieces) == ["weather"],
    "openai format": lambda answer: json.loads(answer["choices"][0]["message"]["content"]),
    "openai completions": lambda answer: answer["choices"][0]["text"],
    "openai embeddings": lambda answer: [len(entry["embedding"]) for entry in answer["data"]] == [768, 768],
    "openai embeddings, numbers": lambda answer: len(answer["data"][0]["embedding"]) == 768,
    "openai response": lambda answer: answer["output_text"],
    "openai response, streamed": lambda events: events[0] == "response.created",
    "openai models": lambda models: CHAT in [model["id"] for model in models],
    "openai model": lambda model: model["id"] == CHAT,
    "openai unknown model": thrown(404, "model 'cow' not found"),
    "openai unknown model, retrieved": thrown(404, "model 'cow' not found"),
}


@pytest.mark.parametrize("case", CALLS)
def test_an_answer_is_what_one_ollama_gives(through: Results, direct: Results, case: str) -> None:
    answer = value(through, case)
    assert CALLS[case](answer)
    assert plain(answer) == plain(value(direct, case))


def test_ps_shows_loaded_models(through: Results) -> None:
    assert CHAT in value(through, "ps")


def test_a_pulled_model_is_listed_and_chats_at_once(through: Results) -> None:
    pulled = value(through, "pull")
    assert (pulled["statuses"][0], pulled["statuses"][-1]) == ("pulling manifest", "success")
    assert pulled["listed"]
    assert pulled["said"]


def test_models_are_copied_created_pushed_and_deleted(through: Results) -> None:
    changed = value(through, "copy, create, push, delete")
    assert changed.pop("said")
    assert changed == {"created": "success", "pushed": "success", "left": []}


@pytest.mark.parametrize(
    "case",
    ["abort", "abort all", "openai abort", "openai abort by leaving the loop", "openai abort before the answer"],
)
def test_an_aborted_request_stops_the_replica_within_a_second(through: Results, case: str) -> None:
    left = value(through, case)
    assert left["waited"] < 1000
    if not case.startswith("openai abort") or case.endswith("answer"):  # that stream ends quietly when it is left
        assert "abort" in left["error"]["message"]


@pytest.mark.parametrize("library", ["", "openai "])
@pytest.mark.parametrize("kind", ["end-without-done", "error-mid-stream", "reset-mid-stream", "truncate"])
def test_a_stream_that_breaks_throws_after_what_was_said(through: Results, library: str, kind: str) -> None:
    broken = value(through, f"{library}broken: {kind}")
    assert len(broken["heard"]) == 3
    assert broken["error"] is not None


def test_the_answer_names_its_replica(through: Results) -> None:
    assert value(through, "replica of a request") in ("a", "b", "c")


def test_every_case_of_the_session_is_asserted(through: Results, direct: Results) -> None:
    assert set(direct) == set(CALLS)
    assert all("failed" not in result for result in through.values())
