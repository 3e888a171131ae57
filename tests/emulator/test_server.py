"""What the emulator does as a process: slots, loads, leaving clients, its options and its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corral.emulator.nvml.state import read_file
from tests.conformance.raw import Answer, Wire, ask
from tests.emulator.child import EmulatorProcess, emulator

MODEL = "llama3.2:1b"


def chat(tokens: int = 8, model: str = MODEL, content: str = "x", **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "options": {"num_predict": tokens}}
    return body | fields


def stats(child: EmulatorProcess) -> dict[str, Any]:
    found: dict[str, Any] = ask(child.url, "GET", "/emulator/stats").json()
    return found


def until(child: EmulatorProcess, wanted: Callable[[dict[str, Any]], bool], seconds: float = 10.0) -> dict[str, Any]:
    """The counters once they are as wanted."""
    end = time.monotonic() + seconds
    while not wanted(found := stats(child)):
        assert time.monotonic() < end, found
        time.sleep(0.005)
    return found


def in_parallel(count: int, one: Callable[[int], Answer]) -> list[Answer]:
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda number=number: answers.append(one(number))) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_never_more_requests_run_than_there_are_slots() -> None:
    with emulator("--model", MODEL, "--speed", "20", "--parallel", "3") as child:
        answers = in_parallel(12, lambda number: ask(child.url, "POST", "/api/chat", chat(50, content=str(number))))
        assert [answer.lines()[-1]["eval_count"] for answer in answers] == [50] * 12
        assert stats(child)["max_concurrent"] == {MODEL: 3}
        assert stats(child)["tokens"] == 600


def test_the_same_prompt_gives_the_same_text_on_every_emulator() -> None:
    texts = []
    for gpu in ("RTX 4090 24GB", "T4 16GB"):
        with emulator("--model", MODEL, "--speed", "100", "--gpu", gpu) as child:
            body = {"model": MODEL, "prompt": "tell me", "stream": False}
            found = ask(child.url, "POST", "/api/generate", body).json()
            texts.append((found["response"], found["done_reason"]))
            assert 20 <= found["eval_count"] <= 200
    assert texts[0] == texts[1]
    assert texts[0][1] == "stop"


@pytest.mark.parametrize("moment", ["loading", "waiting for a slot", "streaming"])
def test_a_client_that_leaves_is_noticed_at_once(moment: str) -> None:
    load = "30" if moment == "loading" else "0.01"
    with emulator("--model", MODEL, "--parallel", "1", "--load-seconds", load) as child:
        holder = Wire(child.url)
        if moment == "waiting for a slot":
            holder.send("POST", "/api/chat", chat(100_000))
            until(child, lambda found: found["slots_held"] == 1)
        with Wire(child.url) as wire:
            wire.send("POST", "/api/chat", chat(100_000))
            if moment == "loading":
                until(child, lambda found: found["pending"] == 1)
            elif moment == "streaming":
                wire.first_bytes()
            else:
                until(child, lambda found: found["waiting_for_slot"] == 1)
        before = 1 if moment == "waiting for a slot" else 0
        until(child, lambda found: found["aborted"] == 1 and found["slots_held"] == before, 1.0)
        assert stats(child)["pending"] == 0
        holder.socket.close()


def test_a_half_closed_client_counts_as_gone() -> None:
    import socket

    with emulator("--model", MODEL) as child, Wire(child.url) as wire:
        wire.send("POST", "/api/chat", chat(100_000))
        wire.first_bytes()
        wire.socket.shutdown(socket.SHUT_WR)
        until(child, lambda found: found["aborted"] == 1 and found["active_streams"] == 0, 1.0)


def test_a_client_that_does_not_read_stops_its_own_stream_only() -> None:
    options = ("--model", MODEL, "--parallel", "2", "--rate", "20000", "--load-seconds", "0.01")
    with emulator(*options) as child, Wire(child.url) as slow:
        slow.send("POST", "/api/chat", chat(100_000))
        until(child, lambda found: found["tokens"] > 2000)
        answer = ask(child.url, "POST", "/api/chat", chat(3000))
        assert answer.lines()[-1]["eval_count"] == 3000
        assert stats(child)["active_streams"] == 1
        assert stats(child)["tokens"] < 90_000


def test_more_waiting_loads_than_the_queue_holds_are_refused() -> None:
    options = ("--max-queue", "2", "--load-seconds", "60", "--model", MODEL, "--model", "llama3.2:3b")
    with emulator(*options) as child:
        wires = [Wire(child.url) for _ in range(3)]
        for number, wire in enumerate(wires, 1):
            wire.send("POST", "/api/chat", chat())
            until(child, lambda found, number=number: found["pending"] == number)  # type: ignore[misc]
        answer = ask(child.url, "POST", "/api/chat", chat(model="llama3.2:3b"))
        assert (answer.status, answer.header("Retry-After")) == (503, None)
        error = "server busy, please try again.  maximum pending requests exceeded"
        assert answer.json() == {"error": error}
        for wire in wires:
            wire.socket.close()


def test_another_num_ctx_loads_the_model_again() -> None:
    with emulator("--model", MODEL, "--speed", "50", "--context-length", "4096") as child:
        for context in (4096, 8192, 8192, 4096):
            body = chat() | {"options": {"num_ctx": context, "num_predict": 2}}
            assert ask(child.url, "POST", "/api/chat", body).status == 200
        assert stats(child)["loads"] == 3


def test_a_long_prompt_seen_before_starts_sooner() -> None:
    with emulator("--model", "llama3.1:8b", "--gpu", "T4", "--parallel", "1", "--speed", "10") as child:
        body = chat(1, "llama3.1:8b", "a long text " * 1000)
        first, second = (ask(child.url, "POST", "/api/chat", body).lines()[-1] for _ in range(2))
    assert first["prompt_eval_count"] == second["prompt_eval_count"] > 2900
    assert second["prompt_eval_duration"] < first["prompt_eval_duration"] / 5


def test_waiting_for_a_slot_is_in_no_duration_but_the_total() -> None:
    with emulator("--model", MODEL, "--parallel", "1", "--speed", "10") as child:
        ask(child.url, "POST", "/api/generate", {"model": MODEL})
        answers = in_parallel(3, lambda number: ask(child.url, "POST", "/api/chat", chat(200, content=str(number))))
        last = max((answer.lines()[-1] for answer in answers), key=lambda line: line["total_duration"])
        parts = last["load_duration"] + last["prompt_eval_duration"] + last["eval_duration"]
        assert last["total_duration"] - parts > last["eval_duration"]


def test_a_model_is_listed_under_the_name_it_was_first_loaded_by() -> None:
    with emulator("--model", MODEL, "--speed", "50") as child:
        ask(child.url, "POST", "/api/copy", {"source": MODEL, "destination": "mine"})
        for name in ("mine", MODEL):
            ask(child.url, "POST", "/api/chat", chat(model=name))
        assert [model["name"] for model in ask(child.url, "GET", "/api/ps").json()["models"]] == ["mine:latest"]


def test_the_list_of_running_models_can_stall_while_one_loads() -> None:
    with emulator("--model", MODEL, "--stall-ps", "--load-seconds", "0.5") as child, Wire(child.url) as wire:
        wire.send("POST", "/api/generate", {"model": MODEL})
        until(child, lambda found: found["pending"] == 1)
        assert len(ask(child.url, "GET", "/api/ps").json()["models"]) == 1
        assert ask(child.url, "GET", "/api/version").status == 200


def test_a_crash_fails_everybody_who_uses_the_model_and_nobody_waits_for_ever() -> None:
    with emulator("--model", MODEL, "--parallel", "2", "--speed", "5") as child:
        ask(child.url, "POST", "/api/generate", {"model": MODEL})
        ask(child.url, "POST", "/emulator/fault", {"kind": "crash-runner", "after": 50})
        answers = in_parallel(6, lambda number: ask(child.url, "POST", "/api/chat", chat(200, content=str(number))))
        broken = [answer for answer in answers if b'"error"' in answer.body]
        assert 2 <= len(broken) <= 6
        assert {answer.lines()[-1].get("done") for answer in answers if answer not in broken} <= {True}
        found = stats(child)
        assert (found["slots_held"], found["pending"], found["waiting_for_slot"]) == (0, 0, 0)


def test_cloud_models_need_no_gpu() -> None:
    with emulator("--model", "gpt-oss:120b-cloud", "--speed", "50") as child:
        (model,) = ask(child.url, "GET", "/api/tags").json()["models"]
        assert model["remote_model"] == "gpt-oss:120b"
        for name in ("gpt-oss:120b-cloud", "some-other:cloud"):
            line = ask(child.url, "POST", "/api/chat", chat(3, name)).lines()[0]
            assert line["remote_host"] == "https://ollama.com:443"
        assert (stats(child)["loads"], ask(child.url, "GET", "/api/ps").json()) == (0, {"models": []})


def test_two_emulators_share_a_store_and_a_doubled_pull_is_recorded_as_a_race(tmp_path: Path) -> None:
    options = ("--store", str(tmp_path), "--speed", "1")
    with emulator(*options, "--id", "a") as one, emulator(*options, "--id", "b") as two:
        first = Wire(one.url)
        first.send("POST", "/api/pull", {"model": "llama3.1:8b"})
        first.wait_for(b"completed")
        second = Wire(two.url)
        second.send("POST", "/api/pull", {"model": "llama3.1:8b"})
        until(two, lambda found: found["races"] == 1)
        assert "at once" in (tmp_path / "RACE").read_text()
        for wire in (first, second):
            wire.socket.close()


def test_what_one_emulator_of_a_store_pulls_the_other_has_at_once(tmp_path: Path) -> None:
    options = ("--store", str(tmp_path), "--speed", "100")
    with emulator(*options, "--id", "a") as one, emulator(*options, "--id", "b") as two:
        ask(one.url, "POST", "/api/pull", {"model": MODEL})
        assert ask(two.url, "POST", "/api/chat", chat()).status == 200
        ask(two.url, "DELETE", "/api/delete", {"model": MODEL})
        assert ask(one.url, "GET", "/api/tags").json() == {"models": []}
        assert (stats(one)["races"], (tmp_path / "RACE").exists()) == (0, False)


def test_the_gpu_file_follows_what_the_gpu_does(tmp_path: Path) -> None:
    path = tmp_path / "gpu0.live"
    with emulator("--model", MODEL, "--gpu-file", str(path), "--gpu", "T4", "--id", "x") as child:
        end = time.monotonic() + 10
        while not path.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        idle = read_file(path)
        assert (idle["utilisation"], idle["memory_used"], idle["processes"]) == ("0", "0", "")
        with Wire(child.url) as wire:
            wire.send("POST", "/api/chat", chat(100_000))
            while int((busy := read_file(path))["utilisation"]) < 100:
                assert time.monotonic() < end
                time.sleep(0.05)
        assert busy["processes"] == f"{child.process.pid}:{busy['memory_used']}"
        assert int(busy["memory_used"]) > 1e9
        for key in ("power_mw", "energy_mj", "sm_clock"):
            assert int(busy[key]) > int(idle[key]), key


def test_sigterm_breaks_every_connection_and_frees_the_port_at_once() -> None:
    with emulator("--model", MODEL) as child, Wire(child.url) as wire:
        wire.send("POST", "/api/chat", chat(100_000))
        wire.first_bytes()
        child.process.send_signal(signal.SIGTERM)
        with pytest.raises((EOFError, ConnectionError)):
            wire.drain()
        assert child.process.wait(5) == 0
        with emulator("--listen", f"{child.host}:{child.port}") as again:
            assert ask(again.url, "GET", "/").status == 200


def test_it_ends_when_its_parent_closes_standard_input() -> None:
    with emulator() as child:
        assert child.process.stdin is not None
        child.process.stdin.close()
        assert child.process.wait(5) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpu", "RTX 4091"], "RTX 4090 24GB"),
        (["--model", "lama3.1:8b"], "llama3.1:8b"),
        (["--listen", "here"], "HOST:PORT"),
        (["--ollama-version", "new"], "0.32.15"),
        (["--keep-alive", "soon"], "5m"),
        (["--keep-alive", "nan"], "5m"),
        (["--fault", "crash-runer"], "crash-runner"),
        (["--engine", "llamacpp"], "--gguf"),
        (["--engine", "llamacpp", "--gguf", "/no/such/file"], "no such file"),
        (["--speed", "0"], "'--speed': 0.0 is not in the range"),
        (["--speed", "nan"], "'--speed': nan is not a number"),
        (["--rate", "nan"], "'--rate': nan is not a number"),
        (["--load-seconds", "-1"], "'--load-seconds': -1.0 is not in the range"),
        (["--context-length", "0"], "'--context-length': 0 is not in the range"),
        (["--max-queue", "-1"], "'--max-queue': -1 is not in the range"),
        (["--threads", "0"], "'--threads': 0 is not in the range"),
        (["--model", "big=nan"], "number of gigabytes"),
        (["--fault", "hang,count=x"], "fault hang: count=x is not a whole number from 0 up (or all)"),
        (["--fault", "slow-ps,seconds=nan"], "fault slow-ps: seconds=nan is not a number from 0 up"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_clear_line(options: list[str], said: str) -> None:
    run = emulate(*options)
    assert run.returncode == 2
    first, second = run.stderr.splitlines()
    assert first.startswith("error: ")
    assert said in first
    assert second == "  see: corral emulate --help"


@pytest.mark.parametrize("option", ["--store", "--gpu-file"])
def test_a_place_that_cannot_be_written_is_an_error_at_the_start(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = emulate("--listen", "127.0.0.1:0", option, str(tmp_path / "file" / "x"))
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"error: {option} {tmp_path}/file/x: cannot be written: Not a directory\n"


def test_debug_shows_a_traceback_as_with_every_other_command() -> None:
    assert "Traceback" in emulate("--debug", "--listen", "nowhere").stderr


def emulate(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "corral", "emulate", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_an_address_in_use_is_one_clear_line() -> None:
    with emulator() as child:
        run = emulate("--listen", f"{child.host}:{child.port}")
    assert (run.returncode, run.stdout) == (1, "")
    assert f"{child.host}:{child.port}" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_command_can_be_imported_without_the_emulator() -> None:
    check = (
        "import sys, corral.emulator.command; "
        "sys.exit(bool({'asyncio', 'uvloop', 'msgspec', 'httptools'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], timeout=30, check=False).returncode == 0
