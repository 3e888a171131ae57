"""The demo's child processes: started, read, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corral.errors import OperatorError
from corral.gateway.cli import emulators as module
from corral.gateway.cli.emulators import EmulatedReplica, Emulators
from corral.gateway.config import ReplicaUrl

CHILD = Path(__file__).with_name("child.py")
TWO = [EmulatedReplica("a", "RTX 3060 12GB", 2, 1.0), EmulatedReplica("b", "RTX 4090 24GB", 4, 2.8)]


def emulators(how: str, *, start_s: float = 20.0) -> Emulators:
    return Emulators(TWO, ["m"], 1.0, command=[sys.executable, str(CHILD), how], start_s=start_s)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def gone_within(pids: list[int], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_children_say_where_they_listen_and_end_with_the_context() -> None:
    with emulators("good") as children:
        assert children.urls() == [ReplicaUrl("127.0.0.1", 21001)] * 2
        pids = children.pids()
        assert all(map(alive, pids))
    assert not any(map(alive, pids))


def test_a_child_whose_output_nobody_reads_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "END_S", 30.0)
    with emulators("noisy") as children:
        children.urls()
        processes = [child.process for child in children._children]
    assert [process.returncode for process in processes] == [0, 0], "ended by themselves, not by a signal"


def test_a_child_that_dies_at_start_is_an_error_with_its_last_words_and_the_others_end() -> None:
    with emulators("dies") as children:
        with pytest.raises(OperatorError) as caught:
            children.urls()
        pids = children.pids()
    said = "the emulated replica 'a' ended at once with exit code 3; it said:\n  no such GPU: RTX 9999"
    assert str(caught.value) == said
    assert not any(map(alive, pids))


def test_a_child_that_never_listens_is_an_error_after_the_limit() -> None:
    with emulators("silent", start_s=0.2) as children, pytest.raises(OperatorError, match="'a' did not start in time"):
        children.urls()


def test_a_child_that_cannot_be_run_is_said() -> None:
    with pytest.raises(OperatorError, match="cannot run"), Emulators(TWO, ["m"], 1.0, command=["/nowhere/corral"]):
        pass


def test_a_child_that_ignores_everything_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "END_S", 0.1)
    monkeypatch.setattr(module, "INSIST_S", 0.1)
    with emulators("stubborn") as children:
        children.urls()
        pids = children.pids()
    assert not any(map(alive, pids))


PARENT = """
import sys, time
from tests.gateway.cli.test_emulators import emulators
with emulators("good") as children:
    children.urls()
    print(*children.pids(), flush=True)
    time.sleep(60)
"""


def test_children_end_even_when_their_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    parent.stdout.close()
    assert gone_within(pids, 10)
