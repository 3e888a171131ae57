"""Processes are known by number and birth, found by their mark, and only then signalled."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from corral.gateway.run.processes import MARKER, MarkedProcess, ProcessId, boot_id, identify, reap, send
from tests.gateway.run.stage import marked, until_marked

TOKEN = f"test{os.getpid()}-1"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    env = {"A": "1", MARKER: f"{TOKEN}:a"}
    with subprocess.Popen(["/bin/sleep", "100"], env=env, start_new_session=True) as child:
        try:
            until_marked(TOKEN)
            yield child
        finally:
            child.kill()


def mine() -> MarkedProcess:
    (found,) = marked(TOKEN)
    return found


def test_a_marked_process_is_found_by_the_beginning_of_its_token(child: subprocess.Popen[bytes]) -> None:
    found = mine()
    assert (found.id, found.token, found.leads, found.frozen) == (identify(child.pid), TOKEN, True, False)
    assert marked(f"x{TOKEN}") == []
    assert marked(TOKEN[1:]) == []


def test_a_process_that_ended_is_nobody_even_before_it_is_fetched(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identify(child.pid) is None
    assert marked(TOKEN) == []


def test_a_frozen_process_is_found_frozen(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert mine().frozen


def test_another_process_with_the_same_number_is_not_signalled(child: subprocess.Popen[bytes]) -> None:
    found = mine()
    send(replace(found, id=ProcessId(child.pid, found.id.start_ticks - 1)), signal.SIGKILL)
    send(replace(found, token=f"{TOKEN}0"), signal.SIGKILL)
    send(replace(found, id=ProcessId(4_000_000, 1)), signal.SIGKILL)
    assert child.poll() is None
    send(found, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL


def test_a_child_that_somebody_waits_for_is_not_fetched(child: subprocess.Popen[bytes]) -> None:
    found = mine()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    reap(found)
    assert child.wait(10) == -signal.SIGKILL


def test_the_machine_tells_its_run() -> None:
    assert boot_id() == boot_id() != ""
