"""Each ordered fault shows on the wire as documented, in every dialect; nothing is left behind by any of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from corral.emulator.faults import KINDS, Fault, Faults, Moment, fault_given
from corral.errors import OperatorError
from tests.conformance.raw import Answer, Wire, ask
from tests.emulator.child import EmulatorProcess, emulator

MODEL = "llama3.2:1b"
DIALECTS: dict[str, dict[str, Any]] = {
    "/api/chat": {"messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 8}},
    "/api/generate": {"prompt": "x", "options": {"num_predict": 8}},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8},
    "/v1/completions": {"prompt": "x", "max_tokens": 8},
    "/v1/responses": {"input": "x", "max_output_tokens": 8},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8},
}
TERMINATORS = {
    "/api/chat": b'"done":true',
    "/api/generate": b'"done":true',
    "/v1/chat/completions": b"[DONE]",
    "/v1/completions": b"[DONE]",
    "/v1/responses": b"response.completed",
    "/v1/messages": b"message_stop",
}


@pytest.fixture(scope="module")
def ollama() -> Iterator[EmulatorProcess]:
    with emulator("--model", MODEL, "--speed", "50", "--parallel", "2", "--context-length", "4096") as child:
        yield child


@pytest.fixture
def url(ollama: EmulatorProcess) -> Iterator[str]:
    """Without a fault before and after; nothing may be left running by the test."""
    ask(ollama.url, "DELETE", "/emulator/fault")
    yield ollama.url
    ask(ollama.url, "DELETE", "/emulator/fault")
    until = time.monotonic() + 10
    while (left := _left(ollama.url)) != (0, 0, 0):
        assert time.monotonic() < until, left
        time.sleep(0.01)


def _left(url: str) -> tuple[int, int, int]:
    stats = ask(url, "GET", "/emulator/stats").json()
    return stats["active_streams"], stats["slots_held"], stats["pending"]


def order(url: str, kind: str, **fields: Any) -> None:
    assert ask(url, "POST", "/emulator/fault", {"kind": kind, **fields}).status == 200


def request(url: str, path: str, *, stream: bool = True) -> Answer:
    return ask(url, "POST", path, {"model": MODEL, "stream": stream, **DIALECTS[path]})


@pytest.mark.parametrize("path", DIALECTS)
def test_without_a_fault_every_dialect_ends_with_its_terminator(url: str, path: str) -> None:
    answer = request(url, path)
    assert answer.ended
    assert TERMINATORS[path] in answer.body


@pytest.mark.parametrize("path", DIALECTS)
def test_a_stream_can_end_cleanly_without_its_terminator(url: str, path: str) -> None:
    order(url, "end-without-done")
    answer = request(url, path)
    assert (answer.status, answer.ended) == (200, True)
    assert len(answer.chunks) >= 3
    assert TERMINATORS[path] not in answer.body


@pytest.mark.parametrize("kind", ["error-mid-stream", "crash-runner", "oom"])
@pytest.mark.parametrize("path", DIALECTS)
def test_an_error_after_the_first_byte_is_as_ollama_shows_it(url: str, path: str, kind: str) -> None:
    order(url, kind, after=3)
    answer = request(url, path)
    assert (answer.status, answer.ended) == (200, True)
    assert TERMINATORS[path] not in answer.body
    if path.startswith("/api/"):
        assert list(answer.lines()[-1]) == ["error"]
    elif path.endswith("completions"):
        assert b'"model":""' in answer.chunks[-1]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", DIALECTS)
def test_a_crash_before_the_first_byte_is_a_500_and_the_next_request_loads_again(
    url: str, path: str, stream: bool
) -> None:
    order(url, "crash-runner")
    loads = ask(url, "GET", "/emulator/stats").json()["loads"]
    answer = request(url, path, stream=stream)
    assert answer.status == 500
    assert b"unexpected EOF" in answer.body
    assert request(url, path).status == 200
    assert ask(url, "GET", "/emulator/stats").json()["loads"] > loads


@pytest.mark.parametrize("kind", ["truncate", "reset-mid-stream"])
@pytest.mark.parametrize("path", DIALECTS)
def test_a_broken_connection_ends_in_the_middle_of_a_chunk(url: str, path: str, kind: str) -> None:
    order(url, kind)
    answer = request(url, path)
    assert answer.status == 200
    assert not answer.ended
    assert TERMINATORS[path] not in answer.body


@pytest.mark.parametrize("kind", ["truncate", "reset-mid-stream"])
def test_an_answer_that_is_not_streamed_breaks_off_too(url: str, kind: str) -> None:
    order(url, kind)
    with pytest.raises((EOFError, ConnectionError)):
        request(url, "/api/chat", stream=False)


def test_a_bad_chunk_has_no_size(url: str) -> None:
    order(url, "bad-chunk")
    with pytest.raises(ValueError, match="zz"):
        request(url, "/api/chat")


@pytest.mark.parametrize("path", DIALECTS)
def test_busy_is_a_503_in_the_dialects_shape(url: str, path: str) -> None:
    order(url, "busy")
    answer = request(url, path)
    assert answer.status == 503
    assert b"try again.  maximum pending" in answer.body
    assert answer.header("Retry-After") is None


def test_a_reset_comes_before_any_byte(url: str) -> None:
    order(url, "reset")
    with pytest.raises(ConnectionResetError):
        request(url, "/api/chat")


@pytest.mark.parametrize("kind", ["hang", "hang-mid-stream"])
def test_a_hanging_answer_leaves_the_connection_open_until_the_client_goes(url: str, kind: str) -> None:
    order(url, kind)
    with Wire(url, timeout_s=0.3) as wire:
        wire.send("POST", "/api/chat", {"model": MODEL, **DIALECTS["/api/chat"]})
        with pytest.raises(TimeoutError):
            wire.receive()
    assert ask(url, "GET", "/api/version").status == 200


def test_nonsense_is_not_http(url: str) -> None:
    order(url, "nonsense-head")
    with Wire(url) as wire:
        wire.send("POST", "/api/chat", {"model": MODEL})
        assert not wire.first_bytes().startswith(b"HTTP/")


def test_content_length_can_be_given_twice(url: str) -> None:
    order(url, "double-content-length")
    with pytest.raises(AssertionError, match="given 2 times"):
        request(url, "/api/chat")


def test_a_head_can_be_a_mebibyte_long(url: str) -> None:
    order(url, "oversized-head")
    answer = request(url, "/api/chat")
    assert len(answer.header("X-Long") or "") == 1 << 20


def test_interim_answers_can_be_without_end(url: str) -> None:
    order(url, "early-hints-flood")
    with Wire(url) as wire:
        wire.send("POST", "/api/chat", {"model": MODEL})
        assert [wire.receive().status for _ in range(100)] == [103] * 100


def test_a_head_can_dribble(url: str) -> None:
    order(url, "slow-loris")
    with Wire(url) as wire:
        wire.send("POST", "/api/chat", {"model": MODEL})
        assert wire.first_bytes() == b"H"


def test_bytes_can_follow_a_complete_answer(url: str) -> None:
    order(url, "data-after-end")
    with Wire(url) as wire:
        wire.send("POST", "/api/chat", {"model": MODEL, **DIALECTS["/api/chat"]})
        assert wire.receive().ended
        assert wire.receive().body == b"unasked"


def test_the_list_of_running_models_can_be_slow_or_nonsense(url: str) -> None:
    order(url, "nonsense-ps", count=2)
    assert ask(url, "GET", "/api/ps").body.startswith(b"<html>")
    assert not isinstance(ask(url, "GET", "/api/ps").json()["models"], list)
    assert ask(url, "GET", "/api/ps").json()["models"] is not None
    order(url, "slow-ps", seconds=0.3)
    began = time.monotonic()
    assert ask(url, "GET", "/api/ps").status == 200
    assert time.monotonic() - began >= 0.3


def test_a_leaked_slot_is_lost_until_the_model_is_unloaded() -> None:
    with emulator("--model", MODEL, "--speed", "50", "--parallel", "2") as child:
        order(child.url, "slot-leak")
        request(child.url, "/api/chat")
        assert _left(child.url) == (0, 1, 0)
        ask(child.url, "POST", "/api/generate", {"model": MODEL, "keep_alive": 0})
        until = time.monotonic() + 10
        while _left(child.url)[1]:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_crash_of_the_process_ends_it_at_once() -> None:
    with emulator("--model", MODEL, "--speed", "50", "--fault", "crash-process,after=2") as child:
        answer = request(child.url, "/api/chat")
        assert not answer.ended
        assert child.process.wait(10) == 1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((child.host, child.port))


def test_a_fault_can_hit_any_path(url: str) -> None:
    order(url, "busy", path="/api/version")
    assert ask(url, "GET", "/api/version").status == 503
    order(url, "busy", path="*", count=None)
    assert ask(url, "GET", "/").status == 503
    ask(url, "DELETE", "/emulator/fault")
    assert ask(url, "GET", "/").status == 200


def test_an_unknown_kind_or_field_is_refused_with_the_nearest_name(url: str) -> None:
    answer = ask(url, "POST", "/emulator/fault", {"kind": "crash-runer"})
    assert (answer.status, "crash-runner" in answer.json()["error"]) == (400, True)
    assert ask(url, "POST", "/emulator/fault", {"kind": "busy", "often": 1}).status == 400


def test_counters_tell_what_was_hit(url: str) -> None:
    order(url, "busy", count=2)
    for _ in range(3):
        request(url, "/api/chat")
    assert ask(url, "GET", "/emulator/stats").json()["faults_hit"] == 2


# -- pure -------------------------------------------------------------------------------------------------------------


def faults(*ordered: Fault) -> Faults:
    from random import Random

    return Faults(Random(1), list(ordered))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_ordered_as_an_option(kind: str) -> None:
    fault = fault_given(f"{kind},count=all,model=M,after=7")
    assert (fault.kind, fault.count, fault.model, fault.after) == (kind, None, "M", 7)


def test_a_model_that_is_in_memory_needs_no_load_that_could_fail(url: str) -> None:
    assert request(url, "/api/chat").status == 200
    order(url, "load-fails", count=None)
    assert request(url, "/api/chat").status == 200
    assert ask(url, "POST", "/api/generate", {"model": MODEL, "options": {"num_ctx": 64}}).status == 500
    ask(url, "POST", "/api/generate", {"model": MODEL, "keep_alive": 0})
    for path in DIALECTS:
        answer = request(url, path)
        assert answer.status == 500
        assert b"more system memory" in answer.body


def test_a_request_that_only_loads_meets_no_fault_of_an_answer(url: str) -> None:
    order(url, "truncate", after=0)
    assert ask(url, "POST", "/api/generate", {"model": MODEL}).json()["done_reason"] == "load"
    assert not request(url, "/api/generate").ended


@pytest.mark.parametrize("text", ["", "nonsense", "busy,count", "busy,count=x", "busy,colour=red"])
def test_an_option_that_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(OperatorError):
        fault_given(text)


def test_a_fault_hits_only_its_model_and_only_so_often() -> None:
    ordered = faults(Fault("busy", count=2, model="llama3.2"))
    hits = [
        ordered.take(Moment.ARRIVAL, "/api/chat", name) for name in ("x", "LLAMA3.2:latest", "llama3.2", "llama3.2")
    ]
    assert [hit is not None for hit in hits] == [False, True, True, False]


def test_every_and_ratio_thin_the_hits_out() -> None:
    third = faults(Fault("busy", count=None, every=3))
    assert [third.take(Moment.ARRIVAL, "/api/chat", None) is not None for _ in range(6)] == [False, False, True] * 2
    some = faults(Fault("busy", count=None, ratio=0.3))
    hits = sum(some.take(Moment.ARRIVAL, "/api/chat", None) is not None for _ in range(1000))
    assert 250 < hits < 350
