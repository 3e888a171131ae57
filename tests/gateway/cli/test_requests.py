"""``corral requests`` against an admin port that says what a real one once said."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator

import pytest_asyncio

from tests.gateway.cli.shell import corral, running
from tests.gateway.cli.top.fake_admin import FakeAdmin, fake_admin


@pytest_asyncio.fixture
async def admin() -> AsyncIterator[FakeAdmin]:
    async with fake_admin() as made:
        yield made


async def test_the_last_ones_are_a_table_with_the_latest_last(admin: FakeAdmin) -> None:
    last = admin.records["requests"][-2:]
    last[0]["failed"] = [{"replica": "rtx-3060", "fault": "refused", "sent_s": 0.0, "ended_s": 0.1}]
    last[1] |= {"at": 1_700_000_000.0, "total_s": 1.0, "queue_s": 0.25, "first_byte_s": None, "figures": None}
    ended = await corral("requests", "-n", "2", "--admin", admin.url, TZ="UTC")
    assert (ended.code, ended.err) == (0, "")
    head, first, second = ended.out.splitlines()
    assert head.split("  ")[0] == "ID"
    assert first.endswith("rtx-3060: refused")
    assert [cell.strip() for cell in second.split("  ") if cell] == [
        *(last[1]["id"], "22:13:21", last[1]["model"], last[1]["replica"], last[1]["reason"]),
        *("0.250", "-", "1.00", "-", last[1]["outcome"].replace("_", " "), "-"),
    ]


async def test_json_is_the_page(admin: FakeAdmin) -> None:
    page = json.loads((await corral("requests", "--json", CORRAL_ADMIN=admin.url)).out)
    assert page == {"schema": 1, "requests": admin.records["requests"]}


async def test_where_there_are_none_it_says_so(admin: FakeAdmin) -> None:
    admin.records["requests"] = []
    assert (await corral("requests", "--admin", admin.url)).out == "no request is over yet\n"


async def test_in_a_pipe_nothing_is_cut_off_and_nothing_steers(admin: FakeAdmin) -> None:
    name = "very-long-" * 9 + "\x1b[2J"
    admin.records["requests"][-1]["model"] = name
    ended = await corral("requests", "--admin", admin.url)
    assert name.replace("\x1b", "?") in ended.out
    assert "\x1b" not in ended.out


async def test_following_goes_on_until_ctrl_c(admin: FakeAdmin) -> None:
    last = admin.records["requests"][-1]
    async with running("requests", "-f", "-n", "10", "--admin", admin.url) as child:
        await child.until(last["id"])
        admin.say("request", last | {"id": "brand-new"})
        await child.until("brand-new")
        child.process.send_signal(signal.SIGINT)
        assert await child.ended() == 0
    assert sum("1ST BYTE" in line for line in child.said) == 1


async def test_following_as_json_is_one_object_a_line(admin: FakeAdmin) -> None:
    async with running("requests", "-f", "--json", "--admin", admin.url) as child:
        line = await child.until(admin.records["requests"][0]["id"])
        assert json.loads(line) == admin.records["requests"][0]
