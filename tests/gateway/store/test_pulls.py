"""Pulls: one download for all who want the same, and a truthful end for each of them."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from corral.gateway.store.operation import PullView
from tests.gateway.store.conftest import Open
from tests.gateway.store.stage import MANIFEST, NEW, SUCCESS, Asked, entry, layer
from tests.gateway.wire.harness import post, until

VERIFY = {"status": "verifying sha256 digest"}


async def test_lines_pass_as_they_came_each_as_a_chunk(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    asked = await stage.pull(insecure=True)
    feed = await feeds.get()
    assert feed.body == {"model": NEW, "insecure": True}
    assert feed.call.header("origin") is None
    lines = [b'{"status": "pulling manifest"}\n', b'{"digest":"sha256:aa", "odd":[1, 2],"total":5}\n', b"what?\n"]
    await feed.say(*lines)
    status, headers = await asked.client.head()
    assert (status, headers["content-type"], headers["x-corral-replica"]) == (200, "application/x-ndjson", "r0")
    assert [await asked.client.chunk() for _ in lines] == lines
    await feed.end(b'{"status":"success" }\n')
    assert [piece async for piece in asked.client.chunks()] == [b'{"status":"success" }\n']
    await stage.at_rest()


async def test_who_is_told_of_success_finds_the_model_at_once(opened: Open) -> None:
    stage = await opened("s", "s")
    feeds = stage[0].feed()
    asked = await stage.pull()
    feed = await feeds.get()
    for replica in stage.replicas:
        replica.list(entry(NEW, "a"))
    await feed.end(MANIFEST, SUCCESS)
    await asked.client.head()
    assert await asked.lines() == [MANIFEST, SUCCESS]
    assert [state.installed for state in stage.running.states] == [(NEW,), (NEW,)]
    assert await stage.tags() == {NEW: "a"}


async def all_lines(asked: Asked) -> list[object]:
    return [json.loads(line) for line in (await asked.client.answer())[2].splitlines()]


async def test_pulls_of_the_same_are_one_download(opened: Open) -> None:
    stage = await opened("s", "s")
    feeds = stage[0].feed()
    spellings: list[dict[str, Any]] = [{"model": "New"}, {"name": "new:latest"}, {"model": "library/new"}]
    asked = [await stage.send("/api/pull", **spellings[number % 3]) for number in range(50)]
    whole = await stage.pull(stream=False)
    feed = await feeds.get()
    await until(lambda: [view.waiting for view in stage.stores.pulls()] == [51])
    await feed.end(MANIFEST, layer(100), SUCCESS)
    assert await asyncio.gather(*map(all_lines, asked)) == [[MANIFEST, layer(100), SUCCESS]] * 50
    status, headers, body = await whole.client.answer()
    assert (status, headers["content-type"], json.loads(body)) == (200, "application/json", SUCCESS)
    assert len(feeds.all) == 1
    await stage.at_rest()


async def test_pulls_that_differ_in_more_than_the_name_go_one_after_the_other(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    first, second = await stage.pull(), await stage.pull(insecure=True)
    feed = await feeds.get()
    await until(lambda: len(stage.stores.pulls()) == 2)
    await feed.end(MANIFEST, SUCCESS)
    assert await all_lines(first) == [MANIFEST, SUCCESS]
    await (await feeds.get(1)).end(SUCCESS)
    assert await all_lines(second) == [SUCCESS]


async def test_pulls_of_different_models_go_side_by_side(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    for name in ("a", "b"):
        await stage.pull(name)
    assert {(await feeds.get(number)).body["model"] for number in range(2)} == {"a", "b"}


async def test_who_comes_late_hears_how_far_it_is(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    early = await stage.pull()
    feed = await feeds.get()
    await feed.say(MANIFEST)
    await early.client.head()
    assert await early.line() == MANIFEST
    for line in (layer(5), layer(7, "sha256:bb"), layer(9)):
        await feed.say(line)
        assert await early.line() == line
    late = await stage.begun()
    assert [await late.line() for _ in range(3)] == [MANIFEST, layer(9), layer(7, "sha256:bb")]
    await feed.end(VERIFY, SUCCESS)
    assert await early.lines() == await late.lines() == [VERIFY, SUCCESS]


async def test_who_reads_nothing_holds_up_nobody_and_costs_no_memory(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    stuck, reading = await stage.pull(), await stage.pull()
    feed = await feeds.get()
    await until(lambda: [view.waiting for view in stage.stores.pulls()] == [2])
    stuck.client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    count, odd = 3000, "x" * 10_000  # more than the kernel takes for the one that does not read
    feeding = asyncio.create_task(feed.end(*({**layer(n, total=count), "odd": odd} for n in range(count)), SUCCESS))
    assert (await all_lines(reading))[-1] == SUCCESS
    await feeding
    stuck.client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    heard = await all_lines(stuck)
    assert len(heard) < count
    assert heard[-1] == SUCCESS
    assert heard[-2] == {**layer(count - 1, total=count), "odd": odd}


async def test_who_leaves_ends_nothing_that_others_wait_for(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    leaving, staying = await stage.pull(), await stage.pull()
    feed = await feeds.get()
    await feed.say(MANIFEST)
    await leaving.client.head()
    leaving.leave()
    await until(lambda: [view.waiting for view in stage.stores.pulls()] == [1])
    await feed.end(SUCCESS)
    assert await all_lines(staying) == [MANIFEST, SUCCESS]


@pytest.mark.parametrize("said", [(), (MANIFEST, layer(3))])
async def test_when_the_last_one_leaves_the_download_ends(opened: Open, said: tuple[object, ...]) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    asked = [await stage.pull() for _ in range(3)]
    feed = await feeds.get()
    await until(lambda: [view.waiting for view in stage.stores.pulls()] == [3])
    if said:
        await feed.say(*said)
    for each in asked:
        assert not feed.left.is_set()
        each.leave()
    await asyncio.wait_for(feed.left.wait(), 5)
    await stage.at_rest()
    again = await stage.pull()  # and is another one when it is asked for again
    await (await feeds.get(1)).end(SUCCESS)
    assert await all_lines(again) == [SUCCESS]


async def test_a_detached_pull_goes_on_without_a_listener(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    lines = stage.stores.pull("new", detach=True)
    asking = asyncio.create_task(anext(lines))
    feed = await feeds.get()
    await feed.say(MANIFEST, layer(40))
    assert json.loads(await asking) == MANIFEST
    await lines.aclose()
    await until(lambda: [view.completed_bytes for view in stage.stores.pulls()] == [40])
    (view,) = stage.stores.pulls()
    assert view == PullView(NEW, "s", 0, 40, 100, view.since_s)
    await feed.end(SUCCESS)
    await until(lambda: not stage.stores.pulls())


async def test_who_iterates_gets_every_line_and_the_last(opened: Open) -> None:
    stage = await opened("s")
    assert [line async for line in stage.stores.pull("new", insecure=True)] == [
        json.dumps(MANIFEST).encode() + b"\n",
        json.dumps(SUCCESS).encode() + b"\n",
    ]


async def test_an_error_before_the_first_line_keeps_its_status(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    streaming, whole = await stage.pull(), await stage.pull(stream=False)
    await until(lambda: [view.waiting for view in stage.stores.pulls()] == [2])
    await (await feeds.get()).answer("400 Bad Request", {"error": "invalid model name"})
    for asked in (streaming, whole):
        status, _, body = await asked.client.answer()
        assert (status, json.loads(body)) == (400, {"error": "invalid model name"})


async def test_a_later_error_is_the_last_line_or_a_500(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    streaming, whole = await stage.pull(), await stage.pull(stream=False)
    await until(lambda: [view.waiting for view in stage.stores.pulls()] == [2])
    error = {"error": "pull model manifest: file does not exist"}
    await (await feeds.get()).end(MANIFEST, error)
    assert await all_lines(streaming) == [MANIFEST, error]
    status, headers, body = await whole.client.answer()
    assert (status, headers["content-type"], json.loads(body)) == (500, "application/json", error)
    assert len(feeds.all) == 1  # it is the registry's, not the replica's: another one would get the same
    await stage.at_rest()


async def test_it_is_told_when_it_begins_and_ends(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage = await opened("s")
    feeds = stage[0].feed()
    await stage.pull('n"ew')
    await (await feeds.get()).answer("400 Bad Request", {"error": "no\nsuch thing"})
    await stage.at_rest()
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("pull_")]
    assert said[0] == "pull_started store=s model=n'ew:latest"
    assert said[1].startswith("pull_ended store=s model=n'ew:latest seconds=")
    assert said[1].endswith('error="no such thing"')


async def test_a_gateway_that_stops_says_so(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    asked, quiet = await stage.pull(), await stage.pull("other")
    await (await feeds.get()).say(MANIFEST)
    await feeds.get(1)
    await asked.client.head()
    assert await asked.line() == MANIFEST
    own = stage.stores.pull("third")
    listening = asyncio.create_task(anext(own))
    await feeds.get(2)
    await stage.running.app.close()
    assert await asked.lines() == [{"error": "the gateway is shutting down"}]
    assert (await quiet.client.answer())[0] == 503
    assert json.loads(await listening) == {"error": "the gateway is shutting down"}


async def test_http_1_0_gets_lines_too(opened: Open) -> None:
    stage = await opened("s")
    client = await stage.running.connect()
    await client.send(post("/api/pull", b'{"model":"m"}').replace(b"HTTP/1.1", b"HTTP/1.0"))
    await client.head()
    assert [json.loads(line) for line in (await client.rest()).splitlines()] == [MANIFEST, SUCCESS]
