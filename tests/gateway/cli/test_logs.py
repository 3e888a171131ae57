"""``corral logs`` against a real admin port."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from corral.gateway.cli.logs import gateway_line, replica_line
from corral.gateway.ended import Ended
from corral.gateway.serve.admin import make_admin, make_runner
from corral.gateway.serve.lately import Journal, Line, Ring
from corral.gateway.serve.live import LiveRoutes
from tests.gateway.cli.shell import corral, running
from tests.gateway.serve import history
from tests.gateway.serve.test_admin import Gateway
from tests.gateway.serve.test_replica_log import Box


class Admin:
    """An admin port with a journal, and a replica ``a`` whose log is :attr:`box`'s."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.journal = Journal()
        self.requests: Ring[Ended] = Ring()
        clock = asyncio.get_running_loop().time
        self.live = LiveRoutes(lambda: {"page": 1}, self.requests, self.journal, clock)
        more = [*self.live.routes(), *box.routes.routes()]
        self.runner = make_runner(make_admin(Gateway(), history.metrics(), more=more))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    def say(self, text: str, level: str = "info") -> None:
        self.journal.lines.add(Line(1_700_000_000.0, level, "corral", text))


@pytest_asyncio.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    made = Admin(Box(tmp_path))
    await made.runner.setup()
    await web.TCPSite(made.runner, "127.0.0.1", 0).start()
    yield made
    made.live.close()
    made.box.routes.close()
    await made.box.session.close()
    await made.runner.cleanup()


async def test_the_last_lines_of_the_gateway(admin: Admin) -> None:
    for number in range(3):
        admin.say(f"replica_health replica={number}", "warning")
    ended = await corral("logs", "-n", "2", "--admin", admin.url, TZ="UTC")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        "2023-11-14 22:13:20 warning replica_health replica=1\n2023-11-14 22:13:20 warning replica_health replica=2\n"
    )
    page = json.loads((await corral("logs", "--json", CORRAL_ADMIN=admin.url)).out)
    assert page["schema"] == 1
    assert page["lines"][-1]["text"] == "replica_health replica=2"
    more = await corral("logs", "-n", "5000", "--admin", admin.url)  # than it keeps
    assert (more.code, more.out.count("replica_health")) == (0, 3)


async def test_following_the_gateway_ends_cleanly_with_ctrl_c(admin: Admin) -> None:
    admin.say("first")
    async with running("logs", "-f", "--admin", admin.url) as child:
        await child.until("first")
        admin.say("second")
        await child.until("second")
        child.process.send_signal(signal.SIGINT)
        assert await child.ended() == 0
    assert not any("Traceback" in line or "interrupted" in line for line in child.said)


async def test_following_says_when_the_gateway_ends(admin: Admin) -> None:
    admin.say("first")
    async with running("logs", "-f", "--admin", admin.url) as child:
        await child.until("first")
        admin.live.close()
        assert await child.ended() == 1
    assert child.said[-1] == f"error: the gateway on {admin.url} ended"


async def test_the_log_of_a_replica_and_following_it(admin: Admin) -> None:
    admin.box.write("one", "two\x1b]0;mine\x07", "\x1b[31mthree\x1b[0m\ttab")
    ended = await corral("logs", "a", "-n", "2", "--admin", admin.url)
    assert (ended.code, ended.out) == (0, "two?]0;mine?\nthree   tab\n")
    async with running("logs", "a", "-f", "-n", "1", "--admin", admin.url) as child:
        await child.until("three")
        admin.box.write("four")
        await child.until("four")
        child.process.send_signal(signal.SIGINT)
        assert await child.ended() == 0


async def test_a_replica_that_somebody_else_runs_is_an_error(admin: Admin) -> None:
    for more in ((), ("-f",)):
        ended = await corral("logs", "b", *more, "--admin", admin.url)
        assert ended.code == 1
        assert ended.err == "error: b is not run by Corral: its log is where whoever runs it has it\n"


@pytest.mark.parametrize(
    ("text", "color"),
    [
        ('time=2026-11-25T12:00:00.000Z level=WARN source=x.go:1 msg="runner"', "\x1b[33m"),
        ('time=2026-11-25T12:00:00.000Z level=ERROR source=x.go:1 msg="runner"', "\x1b[31m"),
        ('[GIN] 2026/11/25 - 12:00:00 | 500 |  1.2s | 127.0.0.1 | POST "/api/chat"', "\x1b[31m"),
        ('[GIN] 2026/11/25 - 12:00:00 | 200 |  1.2s | 127.0.0.1 | POST "/api/chat"', ""),
        ('time=2026-11-25T12:00:00.000Z level=INFO source=x.go:1 msg="level=ERRORS"', ""),
    ],
)
def test_a_line_of_ollama_has_the_colour_of_its_level(text: str, color: str) -> None:
    assert replica_line(text).startswith(color or text)


def test_a_line_of_the_gateway_does_not_steer_the_terminal() -> None:
    line = {"at": 0.0, "level": "error", "text": "model=\x1b[2J\u202e"}
    assert gateway_line(line).endswith(" model=?[2J?")
