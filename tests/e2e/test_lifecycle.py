"""The gateway's own life: start, SIGTERM, SIGINT on a terminal, SIGKILL, an address in use, and drained replicas."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.e2e.fleets import fleet
from tests.e2e.processes import CORRAL, Child, Emulator, ask, emulators, until, write_config
from tests.e2e.shapes import CHAT, WHOLE, Verdict
from tests.e2e.streaming import BROKEN_AND_SAID, MODEL, SLOW, WHOLE_AND_SAID, Open, load_everywhere, streams
from tests.e2e.traffic import Client, once
from tests.gateway.cli.shell import corral, environment


async def test_ready_is_reported_in_seconds_and_at_the_admin_port(tmp_path: Path) -> None:
    async with fleet(tmp_path, 1, *SLOW) as running:
        line = await running.gateway.says("is ready after")
        seconds = re.search(r"ready after (\d+\.\d) s", line)
        assert seconds is not None
        assert float(seconds[1]) < 10
        assert await ask(running.gateway.admin_port, "GET", "/readyz") == (200, {"ready": True, "reason": "ready"})
        print(f"\n{line}")  # noqa: T201


async def test_sigterm_lets_streams_and_waiting_requests_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    async with fleet(tmp_path, 1, *SLOW, slots=4) as running:
        gateway = running.gateway
        idle = Client(gateway.port)
        await idle.ask(CHAT, MODEL, tokens=2)
        begun = await streams(gateway.port, 60)
        waiting = asyncio.create_task(once(gateway.port, WHOLE, MODEL, tokens=5))
        await gateway.until(lambda page: page["requests"]["queued"] == 1, 5, "a full replica and one that waits")
        gateway.signal(signal.SIGTERM)
        await gateway.says("stopping: waiting for 5 running requests")
        with pytest.raises(ConnectionRefusedError):
            await ask(gateway.port, "GET", "/api/version")
        assert (await ask(gateway.admin_port, "GET", "/readyz"))[0] == 503
        assert [await each.end() for each in begun] == [WHOLE_AND_SAID] * 4
        assert (await waiting).verdict is Verdict.COMPLETE
        assert await gateway.ended() == 0
        assert "Traceback" not in gateway.said()
        idle.close()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_now_and_every_client_is_told(tmp_path: Path, second: signal.Signals) -> None:
    async with fleet(tmp_path, 1, *SLOW, slots=5) as running:
        gateway = running.gateway
        begun = await streams(gateway.port, 10_000)
        unanswered = asyncio.create_task(once(gateway.port, WHOLE, MODEL, tokens=10_000))
        await gateway.until(lambda page: page["requests"]["in_flight"] == 5, 5, "five requests")
        waiting = asyncio.create_task(once(gateway.port, CHAT, MODEL))
        await gateway.until(lambda page: page["requests"]["queued"] == 1, 5, "one that waits")
        gateway.signal(signal.SIGTERM)
        await gateway.says("stopping: waiting for 6 running requests")
        gateway.signal(second)
        assert [await each.end() for each in begun] == [BROKEN_AND_SAID] * 4
        for answer in (await unanswered, await waiting):
            assert (answer.status, answer.text) == (503, '{"error":"the gateway is shutting down"}')
        assert await gateway.ended(3) == 0
        assert "Traceback" not in gateway.said()
        await until_at_rest(running.emulators[0])


async def test_ctrl_c_on_a_terminal_says_what_it_waits_for_and_a_second_one_stops(tmp_path: Path) -> None:
    async with emulators(tmp_path, 1, *SLOW) as replicas:
        config = write_config(tmp_path / "corral.yaml", replicas)
        terminal, inner = pty.openpty()
        command = [*CORRAL, "serve", "--config", str(config)]
        process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, env=environment(), preexec_fn=_own_terminal
        )
        os.close(inner)
        with ExitStack() as stack:
            stack.callback(os.close, terminal)
            stack.callback(process.wait)
            stack.callback(process.kill)
            screen = Screen(terminal)
            port = int((await screen.shows(r"clients +http://127\.0\.0\.1:(\d+)"))[1])
            stream = await Open(port, CHAT, 10_000).begin()
            os.write(terminal, b"\x03")
            await screen.shows(r"stopping: waiting for 1 running request, up to 300 s; again \(Ctrl-C\) stops now")
            assert process.poll() is None
            os.write(terminal, b"\x03")
            assert await stream.end() == BROKEN_AND_SAID
            await until(lambda: process.poll() is not None, 5, "the end")
            assert process.returncode == 0
            assert "Traceback" not in screen.text


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def _own_terminal() -> None:
    os.setsid()
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen:
    """What a terminal shows."""

    def __init__(self, terminal: int) -> None:
        os.set_blocking(terminal, False)
        self._terminal = terminal
        self.text = ""

    async def shows(self, pattern: str) -> re.Match[str]:
        def found() -> bool:
            try:
                self.text += os.read(self._terminal, 65_536).decode("utf-8", "replace")
            except (BlockingIOError, OSError):
                pass
            self.text = _COLOURS.sub("", self.text)
            return re.search(pattern, self.text) is not None

        await until(found, 20, pattern)
        match = re.search(pattern, self.text)
        assert match is not None
        return match


async def test_an_address_where_an_ollama_answers_is_one_clear_error_with_the_ways_out(tmp_path: Path) -> None:
    async with emulators(tmp_path, 2, *SLOW) as (replica, other):
        config = write_config(tmp_path / "corral.yaml", [replica])
        address = f"127.0.0.1:{other.port}"
        config.write_text(config.read_text().replace("listen: 127.0.0.1:0", f"listen: {address}", 1))
        ended = await corral("serve", "--config", str(config))
        assert ended.code == 1
        first, *ways_out = ended.err.splitlines()
        assert first.startswith(f"error: {address} is taken by an Ollama (version 0.32.15). Choose one:")
        assert any("OLLAMA_HOST" in line for line in ways_out)
        assert "Traceback" not in ended.err


async def test_a_second_gateway_on_the_same_address_is_told_so(tmp_path: Path) -> None:
    async with fleet(tmp_path, 1, *SLOW) as running:
        config = tmp_path / "second.yaml"
        config.write_text(
            running.gateway.config.read_text().replace(
                "listen: 127.0.0.1:0", f"listen: 127.0.0.1:{running.gateway.port}", 1
            )
        )
        ended = await corral("serve", "--config", str(config))
        assert (ended.code, ended.err.splitlines()) == (
            1,
            [
                f"error: 127.0.0.1:{running.gateway.port} is taken by another Corral; "
                "stop that one or choose another address"
            ],
        )


@pytest.mark.parametrize("how", ["admin port", "command line"])
async def test_a_drained_replica_finishes_what_it_does_and_gets_nothing_new_until_resumed(
    tmp_path: Path, how: str
) -> None:
    async def operate(verb: str) -> None:
        admin = running.gateway.admin_port
        if how == "admin port":
            assert (await ask(admin, "POST", f"/replicas/r0/{verb}"))[0] == 200
        else:
            assert (await corral(verb, "r0", "--admin", f"http://127.0.0.1:{admin}")).code == 0

    async def replicas_met() -> set[str]:
        answers = await asyncio.gather(*(once(port, CHAT, MODEL, tokens=1) for _ in range(8)))
        assert {answer.verdict for answer in answers} == {Verdict.COMPLETE}
        return {answer.header("x-corral-replica") for answer in answers}

    async with fleet(tmp_path, 2, *SLOW, slots=8) as running:
        port = running.gateway.port
        await load_everywhere(running)
        begun = await streams(port, 120)
        assert {each.replica for each in begun} == {"r0", "r1"}
        await operate("drain")
        assert await replicas_met() == {"r1"}
        assert (await running.gateway.replica("r0"))["in_flight"] == 2
        assert [await each.end() for each in begun] == [WHOLE_AND_SAID] * 4
        assert (await running.gateway.replica("r0"))["enabled"] is False
        await operate("resume")
        assert await replicas_met() == {"r0", "r1"}


async def until_at_rest(emulator: Emulator) -> float:
    """Nothing runs or waits on it; returns the seconds it took."""
    began_s = time.monotonic()
    while True:
        stats = await emulator.stats()
        if (stats["active_streams"], stats["slots_held"], stats["pending"], stats["waiting_for_slot"]) == (0, 0, 0, 0):
            return time.monotonic() - began_s
        assert time.monotonic() < began_s + 5, stats


async def test_a_killed_gateway_leaves_no_work_on_its_replicas(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, *SLOW, slots=8) as running:
        begun = await streams(running.gateway.port, 10_000)
        whole = asyncio.create_task(once(running.gateway.port, WHOLE, MODEL, tokens=10_000))
        await running.gateway.until(lambda page: page["requests"]["in_flight"] == 5, 5, "five requests")
        running.gateway.process.kill()
        for each in running.emulators:
            await until_at_rest(each)
        assert {verdict_ended[1] for verdict_ended in [await each.end() for each in begun]} == {False}
        assert (await whole).verdict is Verdict.LOST


async def test_a_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    options = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    demo = Child(tmp_path / "demo.log", "demo", *options)
    with ExitStack() as stack:
        stack.callback(demo.end)
        port = int((await demo.says("  clients ")).rpartition(":")[2])
        children = [each.pid for each in psutil.Process(demo.pid).children(recursive=True)]
        assert len(children) == 3
        answer = await once(port, CHAT, "llama3.1:8b", tokens=1)
        assert answer.verdict is Verdict.COMPLETE
        demo.process.kill()
        await until(lambda: not any(map(alive, children)), 10, "the end of the emulated replicas")


def alive(pid: int) -> bool:
    """Whether a process still runs (one that has ended and was not waited for does not)."""
    try:
        os.kill(pid, 0)
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
