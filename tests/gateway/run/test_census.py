"""The look at all processes: complete, and never held up by one that cannot be looked at."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from corral.gateway.run import census as module
from corral.gateway.run.census import Census
from corral.gateway.run.processes import MARKER, MarkedProcess, look_at
from tests.gateway.run.stage import until_marked

HOME = f"census{os.getpid()}-"


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [
        subprocess.Popen(["/bin/sleep", "100"], env={MARKER: f"{HOME}{number}:a"}, start_new_session=True)
        for number in range(3)
    ]
    try:
        until_marked(HOME, len(started))
        yield started
    finally:
        for child in started:
            child.kill()
            child.wait()


async def test_all_are_found_and_the_spared_are_left(children: list[subprocess.Popen[bytes]]) -> None:
    census = Census()
    assert {process.id.pid for process in await census.take(HOME)} == {child.pid for child in children}
    assert await census.end(HOME, {f"{HOME}1"}, 5.0, 5.0) == []
    assert [child.poll() for child in children] == [-signal.SIGTERM, None, -signal.SIGTERM]
    assert await census.clear(HOME, 5.0) == []
    assert children[1].wait(10) == -signal.SIGKILL


async def test_a_process_that_hangs_in_a_driver_is_passed_over_once_and_for_all(
    children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, never = children[0].pid, threading.Event()

    def look(pid: int, prefix: str) -> MarkedProcess | None:
        if pid == stuck:
            never.wait(60)
        return look_at(pid, prefix)

    monkeypatch.setattr(module, "LOOK_S", 0.5)
    monkeypatch.setattr(module, "look_at", look)
    census = Census()
    try:
        others = {child.pid for child in children[1:]}
        assert {process.id.pid for process in await census.take(HOME)} == others
        async with asyncio.timeout(5):
            for _ in range(20):
                assert {process.id.pid for process in await census.take(HOME)} == others
        assert caplog.text.count("process_unreadable") == 1
    finally:
        never.set()


async def test_one_that_ignores_the_request_is_ended_by_force() -> None:
    words = ["/bin/sh", "-c", "trap '' TERM; echo; exec sleep 100"]
    with subprocess.Popen(words, env={MARKER: f"{HOME}x:a"}, stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert await Census().end(HOME, (), 0.2, 5.0) == []
        assert child.wait(10) == -signal.SIGKILL
