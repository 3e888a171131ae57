"""The reader of ``/live``: it begins anew whenever the stream breaks off, ever less often."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import aiohttp

from corral.gateway.cli.top.stream import LONGEST_PAUSE_S, Broken, Reader
from tests.gateway.cli.top.fake_admin import FakeAdmin, fake_admin

ROUNDS = 8


class Told:
    """What a reader told, and how long it paused; it goes on at once."""

    def __init__(self) -> None:
        self.beginnings = 0
        self.events: list[str] = []
        self.broken: list[Broken] = []
        self.pauses: list[float] = []
        self.enough = asyncio.Event()

    def begun(self) -> None:
        self.beginnings += 1

    def take(self, kind: str, data: dict[str, Any]) -> None:
        self.events.append(kind)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) >= ROUNDS:
            self.enough.set()
            await asyncio.Event().wait()


async def run(told: Told, url: str, until: asyncio.Event) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        reader = Reader(
            session, url, begun=told.begun, take=told.take, broken=told.broken.append, rng=Random(1), sleep=told.sleep
        )
        task = asyncio.create_task(reader.run())
        await until.wait()
        task.cancel()
        await asyncio.wait([task])


async def test_where_nobody_answers_the_pauses_grow_to_a_limit() -> None:
    told = Told()
    await run(told, "http://127.0.0.1:1", told.enough)
    assert all(broken.why == "connection refused" for broken in told.broken)
    assert told.pauses == [broken.again_in_s for broken in told.broken]
    assert told.pauses[0] <= 0.7
    assert told.pauses[2] > told.pauses[0]
    assert 0.7 * LONGEST_PAUSE_S < told.pauses[-1] <= 1.25 * LONGEST_PAUSE_S
    assert told.beginnings == 0


async def test_what_is_no_admin_port_is_told_as_such() -> None:
    told = Told()
    async with fake_admin() as admin:
        admin.is_shut = True
        await run(told, admin.url, told.enough)
    assert {broken.why for broken in told.broken} == {"it answers 503 Service Unavailable"}


async def test_a_stream_that_has_spoken_is_soon_taken_up_again() -> None:
    told = Told()
    async with fake_admin() as admin, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_cut_again_and_again(admin, told))
        await run(told, admin.url, told.enough)
        task.cancel()
    assert max(told.pauses) <= 0.7
    assert told.beginnings == ROUNDS
    assert told.events.count("snapshot") >= ROUNDS


async def _cut_again_and_again(admin: FakeAdmin, told: Told) -> None:
    cut = 0
    while True:
        if told.beginnings > cut and told.events.count("snapshot") > cut:
            cut = told.beginnings
            admin.cut()
        await asyncio.sleep(0.01)
