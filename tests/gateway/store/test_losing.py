"""A store's leader that is lost in the middle of something: dead, hung, or only its connection."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.gateway.schedule.history import Stage as History
from tests.gateway.store.conftest import Open
from tests.gateway.store.stage import MANIFEST, NEW, SUCCESS, Asked, Feeds, Stage, configuration, entry, layer
from tests.gateway.wire.harness import until

QUICK = "probes: {ollama_interval_s: 0.1}\n"
"""So that a hung replica is found in a moment."""


async def rest_of(asked: Asked) -> list[Any]:
    return await asyncio.wait_for(asked.lines(), 10)


async def test_a_pull_goes_on_at_the_next_replica_when_its_leader_dies(opened: Open) -> None:
    stage = await opened("s", "s", "s")
    first, second = stage[0].feed(), stage[1].feed()
    asked, other = await stage.pull(), await stage.pull(stream=False)
    await (await first.get()).say(MANIFEST, layer(40))
    await asked.client.head()
    await asked.hears(layer(40))
    await stage[0].stop()
    await (await second.get()).end(MANIFEST, layer(40), layer(100), SUCCESS)
    assert (await rest_of(asked))[-2:] == [layer(100), SUCCESS]
    assert json.loads((await other.client.answer())[2]) == SUCCESS
    assert stage[2].asked("/api/pull") == []
    await stage.at_rest()


async def test_it_goes_on_once_at_each_and_then_says_who_was_lost(opened: Open) -> None:
    stage = await opened("s", "s")
    feeds = [replica.feed() for replica in stage.replicas]
    asked = await stage.pull()
    for replica, feed in zip(stage.replicas, feeds, strict=True):
        await (await feed.get()).say(MANIFEST)
        await replica.stop()
    await asked.client.head()
    (*_, last) = await rest_of(asked)
    assert last == {"error": "replica r1 was lost in the middle of the pull, and no other one of its store can go on"}
    await stage.at_rest()


async def test_where_only_the_connection_is_lost_it_goes_on_at_the_same_replica_and_then_at_the_next(
    opened: Open,
) -> None:
    stage = await opened("s", "s")
    first, second = stage[0].feed(), stage[1].feed()
    asked = await stage.pull()
    for number in range(2):
        feed = await first.get(number)
        await feed.say(MANIFEST, layer(number))
        feed.cut()
    await (await second.get()).end(SUCCESS)
    await asked.client.head()
    assert (await rest_of(asked))[-1] == SUCCESS
    assert len(first.all) == 2


async def test_lines_that_end_without_a_last_one_are_a_loss(opened: Open) -> None:
    stage = await opened("s", "s")
    first, second = stage[0].feed(), stage[1].feed()
    asked = await stage.pull()
    for number in range(2):
        await (await first.get(number)).end(MANIFEST)
    await (await second.get()).end(SUCCESS)
    await asked.client.head()
    assert (await rest_of(asked))[-1] == SUCCESS


async def test_who_comes_after_a_loss_hears_nothing_of_before_it(opened: Open) -> None:
    stage = await opened("s", "s")
    first, second = stage[0].feed(), stage[1].feed()
    early = await stage.pull()
    await (await first.get()).say(MANIFEST, layer(90, "sha256:bb"))
    await early.client.head()
    await early.hears(layer(90, "sha256:bb"))
    await stage[0].stop()
    await (await second.get()).say(MANIFEST, layer(10))
    await early.hears(layer(10))
    late = await stage.begun()
    assert [await late.line() for _ in range(2)] == [MANIFEST, layer(10)]


CHANGES: dict[str, dict[str, Any]] = {
    "/api/create": {"model": "n", "from": "m"},
    "/api/copy": {"source": "m", "destination": "n"},
    "/api/push": {"model": "m"},
    "/api/delete": {"model": "m"},
}


async def change(stage: Stage, path: str) -> Asked:
    return await stage.send(path, method="DELETE" if path == "/api/delete" else "POST", **CHANGES[path])


@pytest.mark.parametrize("path", CHANGES)
async def test_what_may_have_been_carried_out_is_not_repeated(opened: Open, path: str) -> None:
    stage = await opened("s", "s")
    feeds = stage[0].feed(path)
    asked = await change(stage, path)
    (await feeds.get()).cut()
    status, _, body = await asked.client.answer()
    act = path.removeprefix("/api/")
    message = f"the connection to replica r0 was lost: the {act} may or may not have been carried out"
    assert (status, json.loads(body)) == (502, {"error": message})
    assert len(feeds.all) == 1
    assert stage[1].asked(path) == []
    await stage.at_rest()


@pytest.mark.parametrize("path", [*CHANGES, "/api/pull"])
async def test_what_was_never_sent_is_sent_to_the_next(opened: Open, path: str) -> None:
    stage = await opened("s", "s")
    await stage[0].stop()
    body: dict[str, Any] = CHANGES.get(path, {"model": NEW})
    status, _ = await stage.ask(path, method="DELETE" if path == "/api/delete" else "POST", **body)
    assert status == 200
    assert stage[1].asked(path) == [body]
    await stage.at_rest()


async def test_where_nobody_is_left_that_is_said(opened: Open) -> None:
    stage = await opened("s")
    await stage[0].stop()
    status, body = await stage.ask("/api/pull", model=NEW)
    assert status in (502, 503)
    assert "replica" in body["error"]
    assert "lost" not in body["error"]  # nothing was begun
    await stage.at_rest()


async def hung(stage: Stage, feeds: Feeds) -> list[Asked]:
    """Two pulls whose leader stops answering in the middle."""
    asked = [await stage.pull(), await stage.pull("other")]
    for number in range(2):
        await (await feeds.get(number)).say(MANIFEST)
    stage[0].awake.clear()
    return asked


async def test_a_leader_that_hangs_is_named_and_its_store_left_alone_until_it_answers(opened: Open) -> None:
    stage = await opened("s", "s", extra=QUICK)
    feeds, next_one = stage[0].feed(), stage[1].feed()
    for asked in await hung(stage, feeds):
        await asked.client.head()
        lines = await rest_of(asked)
        assert "replica r0 stopped answering in the middle of the pull" in lines[-1]["error"]
    for path, body in {**CHANGES, "/api/pull": {"model": NEW}}.items():
        status, answer = await stage.ask(path, method="DELETE" if path == "/api/delete" else "POST", **body)
        assert status == 503
        assert "replica r0 stopped answering while it changed the model store 's'" in answer["error"]
    assert next_one.all == []
    stage[0].awake.set()
    del stage[0].scripts["/api/pull"], stage[1].scripts["/api/pull"]

    async def is_free() -> bool:
        return (await stage.ask("/api/pull", model=NEW))[0] == 200

    async with asyncio.timeout(10):
        while not await is_free():
            await asyncio.sleep(0.02)
    await stage.at_rest()


async def test_a_leader_that_is_too_busy_for_its_probe_but_goes_on_telling_does_not_hang(opened: Open) -> None:
    stage = await opened("s", "s", extra=QUICK)
    feeds = stage[0].feed()
    asked = await stage.pull()
    feed = await feeds.get()
    stage[0].awake.clear()
    for completed in range(100):
        await feed.say(layer(completed))
        await asyncio.sleep(0.01)  # ten times as long as a probe's interval, in all
    await feed.end(SUCCESS)
    stage[0].awake.set()
    await asked.client.head()
    assert (await rest_of(asked))[-1] == SUCCESS
    assert stage.running.states[0].health.value == "up"


async def test_a_hung_leader_that_then_dies_frees_its_store(opened: Open) -> None:
    stage = await opened("s", "s", extra=QUICK)
    feeds = stage[0].feed()
    for asked in await hung(stage, feeds):
        await asked.client.head()
        assert "error" in (await rest_of(asked))[-1]
    assert (await stage.ask("/api/pull", model=NEW))[0] == 503
    await stage[0].stop()
    async with asyncio.timeout(10):
        while (await stage.ask("/api/pull", model=NEW))[0] != 200:
            await asyncio.sleep(0.02)
    assert stage[1].asked("/api/pull") == [{"model": NEW}]


async def test_a_hung_leader_whose_name_another_one_has_by_now_frees_its_store(opened: Open) -> None:
    stage = await opened("s", "s", "s", extra=QUICK)
    for asked in await hung(stage, stage[0].feed()):
        await asked.client.head()
        assert "error" in (await rest_of(asked))[-1]
    await stage.running.app.owner.reload(configuration([(stage[2].port, "s"), (stage[1].port, "s")], QUICK))
    async with asyncio.timeout(10):
        while (await stage.ask("/api/pull", model=NEW))[0] != 200:
            await asyncio.sleep(0.02)


async def test_a_hung_leader_in_whose_store_nothing_was_under_way_holds_up_nothing(opened: Open) -> None:
    stage = await opened("s", "s", extra=QUICK)
    stage[0].awake.clear()
    await until(lambda: stage.running.states[0].health.value == "down")
    assert (await stage.ask("/api/pull", model=NEW))[0] == 200
    assert stage[1].asked("/api/pull") == [{"model": NEW}]


async def test_a_download_at_a_drained_leader_is_finished_before_another_one_begins_elsewhere(opened: Open) -> None:
    stage = await opened("s", "s")
    first, second = stage[0].feed(), stage[1].feed()
    old = await stage.pull()
    feed = await first.get()
    stage.running.gateway.set_enabled("r0", False)
    await stage.pull("other")
    await until(lambda: stage.running.scheduler.inflight_on("r1") == 1)
    stage[1].list(entry("m:latest", "a"))
    assert (await stage.ask("/api/copy", source="m", destination="n"))[0] == 200  # which is no download
    assert second.all == []
    await feed.end(SUCCESS)
    assert (await old.client.answer())[0] == 200
    await (await second.get()).end(SUCCESS)
    await stage.at_rest()


def test_an_hour_of_pulling_is_no_trial_of_an_ejected_replica() -> None:
    history = History("a:4 b:4")
    for number in range(5):
        assert history.send(f"e{number}") == "a"
        history.play(f"fail e{number} crashed", f"finish e{number}")
    assert history.play("at 10", "tick", "submit 1 - store") == "send 1 a"
    assert history.send("2") == "a"
    assert history.play("finish 2") == "a up"
