"""The process of each loaded model: it is there while the model is, its death is a crash, and it can be left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from tests.conformance.raw import Wire, ask
from tests.emulator.child import EmulatorProcess, emulator

MODEL = "llama3.2:1b"
OPTIONS = ("--model", MODEL, "--runner-process", "--load-seconds", "0.05")


def runners(child: EmulatorProcess) -> list[psutil.Process]:
    """They are children of it, and called so."""
    return [found for found in psutil.Process(child.process.pid).children() if found.cmdline()[0] == "llama-server"]


def until(wanted: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.01)


def load(child: EmulatorProcess, **fields: object) -> None:
    assert ask(child.url, "POST", "/api/generate", {"model": MODEL} | fields).status == 200


def long_chat() -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 100_000}}


def listed(child: EmulatorProcess) -> list[str]:
    return [model["name"] for model in ask(child.url, "GET", "/api/ps").json()["models"]]


@contextmanager
def surely_ended(process: psutil.Process) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_loaded_model_has_a_process_and_an_unloaded_one_has_none() -> None:
    with emulator(*OPTIONS) as child:
        assert runners(child) == []
        load(child)
        (process,) = runners(child)
        line = process.cmdline()
        assert line[line.index("--port") + 1].isdigit()
        assert "sha256-" in line[line.index("--model") + 1]
        load(child, keep_alive=0)
        until(lambda: not process.is_running())


def test_a_killed_runner_fails_its_requests_and_the_next_one_loads_it_again() -> None:
    with emulator(*OPTIONS) as child, Wire(child.url) as wire:
        wire.send("POST", "/api/chat", long_chat())
        wire.first_bytes()
        (process,) = runners(child)
        process.kill()
        assert "unexpected EOF" in wire.receive().lines()[-1]["error"]
        assert listed(child) == []
        load(child)
        (again,) = runners(child)
        assert again.pid != process.pid


def test_a_runner_that_is_killed_while_it_loads_fails_the_request_that_had_it_loaded() -> None:
    with emulator("--model", MODEL, "--runner-process", "--load-seconds", "60") as child, Wire(child.url) as wire:
        wire.send("POST", "/api/generate", {"model": MODEL})
        until(lambda: len(runners(child)) == 1)
        runners(child)[0].kill()
        answer = wire.receive()
        assert answer.status == 500
        assert answer.json() == {"error": "llama-server process has terminated: signal: killed"}
        assert runners(child) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_emulator_that_is_asked_to_stop_leaves_nothing(number: signal.Signals) -> None:
    with emulator(*OPTIONS) as child:
        load(child)
        (process,) = runners(child)
        child.process.send_signal(number)
        assert child.process.wait(5) == 0
        assert not process.is_running()


def test_a_killed_emulator_leaves_its_runner_in_its_process_group() -> None:
    with emulator(*OPTIONS) as child:
        load(child)
        (process,) = runners(child)
        with surely_ended(process):
            group, session = os.getpgid(child.process.pid), os.getsid(child.process.pid)
            child.process.kill()
            child.process.wait()
            until(lambda: process.ppid() != child.process.pid)
            assert process.is_running()
            assert process.status() != psutil.STATUS_ZOMBIE
            assert (os.getpgid(process.pid), os.getsid(process.pid)) == (group, session)
