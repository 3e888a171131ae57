"""What the service manager hears, on a real socket."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from corral.gateway.notify import Notifier
from tests.gateway.service_manager import Ear, ear, one_replica, service
from tests.probes.fake_ollama import fake_ollama


def notifier(listener: Ear, **more: str) -> Notifier:
    return Notifier.from_environment({"NOTIFY_SOCKET": listener.address} | more)


@pytest.mark.parametrize("is_abstract", [True, False], ids=["abstract", "path"])
async def test_what_is_said_is_heard(is_abstract: bool, tmp_path: Path) -> None:
    with ear(None if is_abstract else tmp_path) as manager:
        notifier(manager).ready()
        assert await manager.until("READY") == "1"


async def test_a_reload_says_when_it_began_and_that_it_is_over_however_it_went() -> None:
    with ear() as manager:
        reload = notifier(manager).reloading()
        await reload.__aenter__()
        manager.listen()
        assert manager.heard[-1]["RELOADING"] == "1"
        assert int(manager.heard[-1]["MONOTONIC_USEC"]) > 0
        assert not await reload.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
        await manager.until("READY")


async def test_the_time_to_drain_is_asked_for_with_a_margin() -> None:
    with ear() as manager:
        notifier(manager).stopping(300)
        manager.listen()
        assert manager.heard[-1]["STOPPING"] == "1"
        assert int(manager.heard[-1]["EXTEND_TIMEOUT_USEC"]) > 300e6


def test_only_a_loop_that_turns_says_so_and_in_good_time() -> None:
    with ear() as manager:
        watched = notifier(manager, WATCHDOG_USEC="200000", WATCHDOG_PID=str(os.getpid()))
        loop = asyncio.new_event_loop()
        try:
            watched.keep_watch(loop, lambda: "well")
            manager.listen()
            assert manager.heard == [{"WATCHDOG": "1", "STATUS": "well"}]  # the loop has not turned yet
            began_s = loop.time()
            loop.run_until_complete(manager.until("WATCHDOG"))
            loop.run_until_complete(manager.until("WATCHDOG"))
            assert loop.time() - began_s >= 0.1  # half of it for each, not as fast as it can
            watched.end_watch()
        finally:
            loop.close()


async def test_a_status_is_told_when_it_is_another_one() -> None:
    with ear() as manager:
        watched = notifier(manager, WATCHDOG_USEC="20000")
        statuses = iter(["a", "a", "a", "b"])
        watched.keep_watch(asyncio.get_running_loop(), lambda: next(statuses, "b"))
        await manager.until("STATUS", "a")
        assert await manager.until("STATUS") == "b"
        watched.end_watch()


async def test_a_loop_that_cannot_tell_what_it_does_turns_all_the_same() -> None:
    loop, problems = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: problems.append(context["exception"]))
    with ear() as manager:
        watched = notifier(manager, WATCHDOG_USEC="20000")
        statuses = iter(["well"])
        watched.keep_watch(loop, lambda: next(statuses, None) or str(1 // 0))
        for _ in range(3):
            await manager.until("WATCHDOG")
        watched.end_watch()
    assert {type(problem) for problem in problems} == {ZeroDivisionError}


async def test_another_process_s_watchdog_is_none_of_ours() -> None:
    with ear() as manager:
        watched = notifier(manager, WATCHDOG_USEC="20000", WATCHDOG_PID="1")
        watched.keep_watch(asyncio.get_running_loop(), lambda: "well")
        watched.end_watch()
        manager.listen()
        assert manager.heard == [{"STATUS": "well"}]


def test_nothing_of_it_is_left_for_children() -> None:
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1", "HOME": "/root"}
    Notifier.from_environment(environ)
    assert environ == {"HOME": "/root"}


@pytest.mark.parametrize("address", ["", "vsock:1:2", "/no/such/socket"])
async def test_without_a_service_manager_nothing_is_said_and_nothing_fails(address: str) -> None:
    told = Notifier.from_environment({"NOTIFY_SOCKET": address})
    told.ready()
    told.stopping(1)
    told.keep_watch(asyncio.get_running_loop(), lambda: "well")
    told.end_watch()


@pytest.mark.e2e
async def test_a_service_tells_of_its_whole_life(tmp_path: Path) -> None:
    async with fake_ollama() as ollama:
        path = one_replica(tmp_path, ollama.replica().port)
        with ear() as manager:
            async with service("serve", "--config", str(path), notify=manager.address, watchdog_s=2) as gateway:
                await manager.until("READY")
                assert await manager.until("STATUS") == "1 of 1 replicas up; requests: 0 running, 0 waiting"
                gateway.process.send_signal(signal.SIGHUP)
                await manager.until("RELOADING")
                await manager.until("READY")
                await manager.until("WATCHDOG")
                gateway.process.send_signal(signal.SIGTERM)
                await manager.until("STOPPING")
                assert await gateway.ended() == 0
