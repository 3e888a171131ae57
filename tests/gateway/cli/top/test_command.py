"""``corral top`` as a person starts it: in a pipe, without textual, and in a real terminal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.gateway.cli.shell import CORRAL, corral, environment
from tests.gateway.cli.top.fake_admin import FakeAdmin, fake_admin

WITHOUT_TEXTUAL = """
import sys
sys.modules["textual"] = None
from corral.gateway.cli.entry import run
sys.exit(run(sys.argv[1:]))
"""


@pytest_asyncio.fixture
async def admin() -> AsyncIterator[FakeAdmin]:
    async with fake_admin() as made:
        yield made


async def test_once_is_one_plain_picture(admin: FakeAdmin) -> None:
    ended = await corral("top", "--once", "--admin", admin.url, PYTHONUTF8="1")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Corral 0.1.0  ready  6 in flight  18 waiting")
    for part in ("\nGPU ", "\nREPLICA ", "\nNOW ", "\nENDED ", "\nLOG\n"):
        assert part in ended.out
    assert "\x1b" not in ended.out
    assert all(line == line.rstrip() and len(line) <= 120 for line in ended.out.splitlines())


async def test_once_shows_all_replicas_and_fits_where_columns_says_so(admin: FakeAdmin) -> None:
    replica = admin.page["replicas"][0]
    admin.page["replicas"] = [replica | {"id": f"gpu{number}"} for number in range(40)]
    ended = await corral("top", "--once", "--ascii", "--admin", admin.url, COLUMNS="80")
    assert sum(line.startswith("gpu") for line in ended.out.splitlines()) == 40
    assert ended.out.isascii()
    assert all(len(line) <= 80 for line in ended.out.splitlines())


async def test_json_goes_with_once(admin: FakeAdmin) -> None:
    ended = await corral("top", "--json", "--admin", admin.url)
    assert (ended.code, ended.err.splitlines()[0]) == (2, "error: --json goes with --once")
    page = json.loads((await corral("top", "--once", "--json", "--admin", admin.url)).out)
    assert page.keys() == {"schema", "snapshot", "requests", "log"}
    assert page["schema"] == 1
    assert page["snapshot"] == admin.page
    assert page["requests"] == admin.records["requests"][-10:]
    assert page["log"] == admin.records["log"][-5:]


async def test_without_a_terminal_it_says_what_to_do(admin: FakeAdmin) -> None:
    ended = await corral("top", "--admin", admin.url)
    assert (ended.code, ended.err) == (1, "error: corral top needs a terminal; for a pipe: corral top --once\n")


async def test_without_textual_one_line_says_what_to_install(admin: FakeAdmin) -> None:
    async def start(*args: str) -> tuple[int | None, str]:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WITHOUT_TEXTUAL, *args, env=environment(), stdout=-1, stderr=-1, stdin=-3
        )
        out, err = await asyncio.wait_for(child.communicate(), 30)
        return child.returncode, (out + err).decode()

    code, said = await start("top", "--admin", admin.url)
    assert code == 1
    assert said == "error: corral top needs textual: pip install 'corral[top]'  (without it: corral top --once)\n"
    code, said = await start("top", "--once", "--admin", admin.url)
    assert (code, said[:6]) == (0, "Corral")


@pytest.mark.parametrize("end", ["q", "\x03", signal.SIGTERM])
async def test_in_a_terminal_it_shows_the_gateway_and_gives_the_terminal_back(
    admin: FakeAdmin, end: str | signal.Signals
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    child = await asyncio.create_subprocess_exec(
        *(*CORRAL, "top", "--admin", admin.url),
        env=environment(TERM="xterm-256color", PYTHONUTF8="1"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    try:
        screen = Screen(ours)
        await screen.until(b"rtx-4090")
        if isinstance(end, str):
            os.write(ours, end.encode())
        else:
            child.send_signal(end)
        await screen.until(b"\x1b[?1049l")
        async with asyncio.timeout(20):
            assert await child.wait() == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        screen.close()
        os.close(ours)
        os.close(theirs)


async def test_a_gateway_of_another_version_is_told_apart(admin: FakeAdmin) -> None:
    admin.page["schema"] = 2
    ended = await corral("top", "--once", "--admin", admin.url)
    assert (ended.code, ended.out) == (1, "")
    assert "has a page of schema 2" in ended.err


async def test_where_no_gateway_answers_the_terminal_is_not_taken(admin: FakeAdmin) -> None:
    ended = await corral("top", "--once", "--admin", "http://127.0.0.1:1")
    assert ended.code == 1
    assert ended.err.startswith("error: no gateway answers on http://127.0.0.1:1")


class Screen:
    """What a program writes to its terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._said = b""
        self._more = asyncio.Event()
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            self._said += os.read(self._fd, 65536)
        except OSError:
            self.close()
        self._more.set()

    async def until(self, part: bytes) -> None:
        async with asyncio.timeout(30):
            while part not in self._said:
                self._more.clear()
                await self._more.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
