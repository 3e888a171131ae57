"""What clients do to one store side by side: what waits for what, what leaves, and who is told."""

from __future__ import annotations

import asyncio
import json

import pytest

from corral.gateway.store.stores import StoreError
from tests.gateway.store.conftest import Open
from tests.gateway.store.stage import MANIFEST, NEW, SUCCESS, Stage, entry, layer
from tests.gateway.wire.harness import until
from tests.gateway.wire.replica import MODEL


async def waiting(stage: Stage, count: int) -> None:
    """So many operations wait for their turn."""
    await until(lambda: stage.stores._gate._turns.waiting == count)


async def test_a_delete_waits_for_a_pull_of_its_model_but_not_for_another(opened: Open) -> None:
    stage = await opened("s")
    stage[0].list(entry(NEW, "a"), entry("other:latest", "b"))
    feeds = stage[0].feed()
    await stage.pull()
    feed = await feeds.get()
    assert await stage.delete("other") == (200, None)
    deleting = asyncio.create_task(stage.delete("new"))
    await waiting(stage, 1)
    assert stage[0].asked("/api/delete") == [{"model": "other"}]
    await feed.end(SUCCESS)
    await (await feeds.get(1)).end(SUCCESS)  # a removal went on beside it
    assert await deleting == (200, None)


async def test_a_delete_waits_for_what_is_about_to_name_layers(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed("/api/create")
    await stage.send("/api/create", model="made")
    feed = await feeds.get()
    deleting = asyncio.create_task(stage.delete(MODEL))
    await waiting(stage, 1)
    copying = asyncio.create_task(stage.ask("/api/copy", source="x", destination="y"))
    await waiting(stage, 2)  # in order of arrival
    await feed.end(SUCCESS)
    assert await deleting == (200, None)
    assert await copying == (200, None)
    acts = [call.path for call in stage[0].calls if call.path in ("/api/delete", "/api/copy", "/api/create")]
    assert acts == ["/api/create", "/api/delete", "/api/copy"]


async def test_a_pull_that_had_a_removal_beside_it_is_repeated_before_it_is_told_done(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    asked = await stage.pull()
    feed = await feeds.get()
    await feed.say(MANIFEST, layer(100))
    assert await stage.delete(MODEL) == (200, None)
    await feed.end(SUCCESS)
    await (await feeds.get(1)).end(MANIFEST, layer(100), SUCCESS)
    await asked.client.head()
    assert (await asked.lines()).count(SUCCESS) == 1
    assert len(feeds.all) == 2
    await stage.at_rest()


async def test_the_repetition_waits_until_the_removal_is_over(opened: Open) -> None:
    stage = await opened("s")
    feeds, deletions = stage[0].feed(), stage[0].feed("/api/delete")
    await stage.pull()
    deleting = asyncio.create_task(stage.delete(MODEL))
    deletion = await deletions.get()
    await (await feeds.get()).end(SUCCESS)
    await stage.ask("/api/push", model="x")  # so long nothing more is asked
    assert len(feeds.all) == 1
    await deletion.answer()
    await (await feeds.get(1)).end(SUCCESS)
    assert await deleting == (200, None)


async def test_requests_for_a_model_that_is_being_removed_wait_and_those_for_others_do_not(opened: Open) -> None:
    stage = await opened("s")
    stage[0].list(entry("going:latest", "a"), entry("staying:latest", "b"))
    await stage.running.app.poller.refresh(tags=True, ps=True, deadline_s=5)
    deletions = stage[0].feed("/api/delete")
    deleting = asyncio.create_task(stage.delete("going"))
    deletion = await deletions.get()
    waits = [await stage.send(path, model="going") for path in ("/api/chat", "/api/show")]
    await until(lambda: stage.running.scheduler.queued == 2)
    for path in ("/api/chat", "/api/show"):
        assert (await stage.ask(path, model="staying"))[0] == 200
        assert {"model": "going"} not in stage[0].asked(path)
    stage[0].list(entry("staying:latest", "b"))
    await deletion.answer()
    assert await deleting == (200, None)
    for asked in waits:
        await asked.client.answer()
    await stage.at_rest()


async def test_what_ollama_refuses_anyway_waits_for_nobody(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    await stage.pull()
    await feeds.get()
    asked = await stage.send("/api/pull", model=7)
    await (await feeds.get(1)).answer("400 Bad Request", {"error": "json: cannot unmarshal number"})
    status, _, body = await asked.client.answer()
    assert (status, json.loads(body)) == (400, {"error": "json: cannot unmarshal number"})


async def test_a_quiet_store_is_changed_by_nobody_else(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    first = await stage.pull(stream=False)
    feed = await feeds.get()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def be_quiet() -> None:
        async with stage.stores.quiet("s"):
            entered.set()
            await leave.wait()

    quiet = asyncio.create_task(be_quiet())
    await waiting(stage, 1)
    behind = asyncio.create_task(stage.ask("/api/copy", source="a", destination="b"))
    await waiting(stage, 2)
    await feed.end(SUCCESS)
    assert (await first.client.answer())[0] == 200
    await entered.wait()
    assert stage[0].asked("/api/copy") == []
    leave.set()
    await quiet
    assert (await behind)[0] == 200


@pytest.mark.parametrize("path", ["/api/create", "/api/push"])
async def test_a_client_that_leaves_ends_what_only_it_wanted(opened: Open, path: str) -> None:
    stage = await opened("s")
    feeds = stage[0].feed(path)
    asked = await stage.send(path, model="m")
    feed = await feeds.get()
    await feed.say(MANIFEST)
    await asked.client.head()
    asked.leave()
    await asyncio.wait_for(feed.left.wait(), 5)
    await stage.at_rest()


@pytest.mark.parametrize("path", ["/api/copy", "/api/delete"])
async def test_what_is_done_in_a_moment_is_done_to_its_end(opened: Open, path: str) -> None:
    stage = await opened("s", "s")
    feeds = stage[0].feed(path)
    method = "DELETE" if path == "/api/delete" else "POST"
    asked = await stage.send(path, method=method, model=MODEL, source=MODEL, destination="copy")
    feed = await feeds.get()
    asked.leave()
    await until(lambda: not stage.running.gateway.busy)
    stage[0].list(entry("left:latest", "c"))
    await feed.answer()
    await until(lambda: stage.running.states[1].installed == ("left:latest",))
    assert not feed.left.is_set()
    await stage.at_rest()


async def test_a_client_that_leaves_while_it_waits_is_out_of_the_way(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed("/api/create")
    await stage.send("/api/create", model="a")
    await feeds.get()
    second = await stage.send("/api/create", model="a")
    await waiting(stage, 1)
    second.leave()
    await waiting(stage, 0)
    assert len(feeds.all) == 1


@pytest.mark.parametrize("path", ["/api/copy", "/api/delete"])
async def test_what_a_client_left_before_its_turn_came_is_not_begun(opened: Open, path: str) -> None:
    stage = await opened("s")
    feeds = stage[0].feed()
    pulling = asyncio.create_task(stage.ask("/api/pull", model="m"))
    feed = await feeds.get()
    method = "DELETE" if path == "/api/delete" else "POST"
    asked = await stage.send(path, method=method, model="m", source="m", destination="copy")
    await waiting(stage, 1)
    asked.leave()
    await waiting(stage, 0)
    await feed.end(SUCCESS)
    assert (await pulling)[0] == 200
    await stage.at_rest()
    assert stage[0].asked(path) == []


async def test_an_answer_without_lines_stays_as_it_is(opened: Open) -> None:
    stage = await opened("s")
    feeds = stage[0].feed("/api/delete")
    deleting = asyncio.create_task(stage.delete("m"))
    await (await feeds.get()).answer("404 Not Found", {"error": "model 'm' not found"})
    assert await deleting == (404, {"error": "model 'm' not found"})
    own = asyncio.create_task(stage.stores.delete("n"))
    await (await feeds.get(1)).answer("404 Not Found", {"error": "model 'n' not found"})
    with pytest.raises(StoreError, match="model 'n' not found") as raised:
        await own
    assert raised.value.status == 404


async def test_too_many_that_wait_are_refused(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.gateway.store.gate.MOST_WAITING", 2)
    stage = await opened("s")
    feeds = stage[0].feed("/api/create")
    for _ in range(3):
        await stage.send("/api/create", model="a")
    await feeds.get()
    await waiting(stage, 2)
    status, answer = await stage.ask("/api/create", model="a")
    assert status == 503
    assert answer["error"].startswith("server busy")
    assert (await stage.ask("/api/pull", model="b"))[0] == 200  # it need not wait


async def test_too_many_that_are_under_way_are_refused(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.gateway.store.operations.MOST_UNDER_WAY", 2)
    stage = await opened("s")
    feeds = stage[0].feed("/api/delete")
    for number in range(2):
        asked = await stage.send("/api/delete", method="DELETE", model=f"m{number}")
        await feeds.get(number)
        asked.leave()
    status, answer = await stage.delete("m2")
    assert status == 503
    assert answer["error"].startswith("server busy")
    for feed in feeds.all:
        await feed.answer()
    await stage.at_rest()
    del stage[0].scripts["/api/delete"]
    assert (await stage.delete("m2"))[0] == 200


async def test_names_of_the_gateways_own_are_never_shown_and_what_is_left_of_them_is_removed(opened: Open) -> None:
    stage = await opened("s")
    left = "corral-previous/00000000000000aa:latest"
    stage[0].list(entry(NEW, "a"), entry(left, "b"))
    await stage.running.app.poller.refresh(tags=True, ps=False, deadline_s=5)
    assert await stage.tags() == {NEW: "a"}
    assert stage.running.states[0].installed == (NEW,)
    await until(lambda: any(call.line.startswith("DELETE") for call in stage[0].calls))
    (deletion,) = [call for call in stage[0].calls if call.line.startswith("DELETE")]
    assert json.loads(deletion.body) == {"model": left}
    await stage.at_rest()


async def test_what_could_not_be_removed_is_tried_again_with_the_next_operation(opened: Open) -> None:
    stage = await opened("s")
    left = "corral-previous/00000000000000aa:latest"
    refused = asyncio.Event()

    async def refuse(call: object) -> None:
        refused.set()
        await call.json({"error": "disk on fire"}, "500 Internal Server Error")  # type: ignore[attr-defined]

    stage[0].answer = refuse
    stage[0].list(entry(NEW, "a"), entry(left, "b"))
    poller = stage.running.app.poller
    await poller.refresh(tags=True, ps=False, deadline_s=5)
    await refused.wait()
    await stage.at_rest()
    await until(lambda: bool(stage.stores._previous._staying))
    stage[0].answer = stage[0]._answer
    count = len(stage[0].calls)
    await poller.refresh(tags=True, ps=False, deadline_s=5)
    assert len(stage[0].calls) == count
    _, lines = await stage.ask("/api/pull", model="x")
    assert lines[-1] == SUCCESS
    await until(lambda: any(call.line.startswith("DELETE") for call in stage[0].calls[count:]))
    await stage.at_rest()
