"""``/api/show``: what is answered from memory, for how long, and who is asked otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from corral.gateway.serve.show import HEDGE_S, Shelf, Shown, plain_name
from corral.model import InstalledModel, normalise_model
from corral.probes.ollama import TagsEntry
from tests.gateway.wire.conftest import Start, start
from tests.gateway.wire.harness import RunningGateway, post, until
from tests.gateway.wire.replica import MODEL, Call, ScriptedReplica

__all__ = ["start"]

Script = Callable[[Call], Awaitable[None]]
PLAIN = {"model": MODEL}


def says(text: str, status: str = "200 OK") -> Script:
    async def answer(call: Call) -> None:
        await call.json({"said": text}, status)

    return answer


def after(gate: asyncio.Event, then: Script) -> Script:
    async def answer(call: Call) -> None:
        await gate.wait()
        await then(call)

    return answer


async def cut(call: Call) -> None:
    call.reset()


async def started(start: Start, *scripts: Script) -> RunningGateway:
    running = await start(len(scripts), "probes: {ollama_interval_s: 3600}\n")
    for replica, script in zip(running.replicas, scripts, strict=True):
        replica.answer = script
    return running


async def show(running: RunningGateway, body: Any = None, *headers: str) -> tuple[int, dict[str, str], bytes]:
    content = body if isinstance(body, bytes) else json.dumps(PLAIN if body is None else body).encode()
    return await running.ask(post("/api/show", content, *headers))


def calls(running: RunningGateway) -> list[int]:
    return [len(replica.calls) for replica in running.replicas]


def tags(*models: dict[str, Any]) -> dict[str, object]:
    """A list with these changes to the usual model, one after the other."""
    listed: Any = ScriptedReplica().tags["models"]
    return {"models": [listed[0] | model for model in models]}


async def read_again(running: RunningGateway) -> None:
    await running.app.poller.refresh(tags=True, ps=False, deadline_s=5)


# -- from memory


async def test_who_asks_again_is_answered_without_a_replica(start: Start) -> None:
    running = await started(start, says("a"))
    first = await show(running)
    assert first[1]["x-corral-replica"] == "r0"
    for _ in range(5):
        status, headers, body = await show(running)
        assert (status, body) == (200, first[2])
        assert headers["content-type"] == first[1]["content-type"] == "application/json; charset=utf-8"
        assert "x-corral-replica" not in headers
    assert calls(running) == [1]
    running.assert_nothing_held()


async def test_a_request_of_the_command_line_is_the_same_as_a_short_one(start: Start) -> None:
    running = await started(start, says("a"))
    full = {"model": MODEL, "system": "", "template": "", "verbose": False, "options": None, "name": MODEL}
    for body in (full, PLAIN, {"name": MODEL}, {"model": "", "name": MODEL}):
        assert (await show(running, body))[0] == 200
    assert calls(running) == [1]
    assert running.replicas[0].calls[0].body == json.dumps(full).encode(), "passed on as it came"


async def test_each_spelling_of_a_name_has_an_answer_of_its_own(start: Start) -> None:
    running = await started(start, says("a"))
    for _ in range(2):
        for name in (MODEL, MODEL.upper(), f"library/{MODEL}"):
            assert (await show(running, {"model": name}))[0] == 200
    assert calls(running) == [3]


@pytest.mark.parametrize(
    "change",
    [{"digest": "f" * 64}, {"modified_at": "2026-09-01T00:00:00Z"}, {"name": "another:latest"}],
    ids=["another version", "the same one pulled again", "deleted"],
)
async def test_an_answer_is_not_given_any_more_when_the_model_has_changed(start: Start, change: dict[str, Any]) -> None:
    running = await started(start, says("before"))
    await show(running)
    running.replicas[0].answer = says("after")
    running.replicas[0].tags = tags(change)
    await read_again(running)
    assert json.loads((await show(running))[2]) == {"said": "after"}
    assert calls(running) == [2]


async def test_an_answer_from_before_a_change_is_not_kept(start: Start) -> None:
    gate = asyncio.Event()
    running = await started(start, after(gate, says("before")))
    early = asyncio.create_task(show(running))
    await until(lambda: calls(running) == [1])
    running.replicas[0].tags = tags({"digest": "f" * 64})
    await read_again(running)
    running.replicas[0].answer = says("after")
    gate.set()
    assert json.loads((await early)[2]) == {"said": "before"}
    assert json.loads((await show(running))[2]) == {"said": "after"}


@pytest.mark.parametrize("status", ["404 Not Found", "400 Bad Request", "500 Internal Server Error"])
async def test_an_error_is_passed_on_and_not_kept(start: Start, status: str) -> None:
    running = await started(start, says("no", status))
    for _ in range(2):
        found, _, body = await show(running)
        assert (f"{found}", json.loads(body)) == (status[:3], {"said": "no"})
    assert calls(running) == [2]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (PLAIN | {"verbose": True}, ()),
        (PLAIN | {"options": {"num_ctx": 1}}, ()),
        (PLAIN | {"system": "You are."}, ()),
        (PLAIN | {"template": "{{ . }}"}, ()),
        (PLAIN | {"future": 1}, ()),
        ({"Model": MODEL}, ()),
        (PLAIN, ("Content-Encoding: zstd",)),
        ({"model": "m:120b-cloud"}, ()),
        (PLAIN, ("User-Agent: GitHubCopilotChat/0.30",)),
        (PLAIN, ("Accept: */*", "user-agent:githubcopilotchat/1")),
        ({}, ()),
        ({"model": 1}, ()),
        (b"{bad", ()),
        (b"", ()),
    ],
)
async def test_what_is_unusual_is_a_replicas_to_answer(start: Start, body: Any, headers: tuple[str, ...]) -> None:
    running = await started(start, says("a"))
    await show(running)
    for _ in range(2):
        assert (await show(running, body, *headers))[1]["x-corral-replica"] == "r0"
    assert calls(running) == [3]


async def test_a_model_that_nobody_has_gets_a_replicas_own_error(start: Start) -> None:
    async def missing(call: Call) -> None:
        await call.json({"error": "model 'nobody' not found"}, "404 Not Found")

    running = await started(start, missing, missing)
    status, headers, body = await show(running, {"model": "nobody"})
    assert (status, body) == (404, b'{"error": "model \'nobody\' not found"}')
    assert headers["x-corral-replica"] in ("r0", "r1")
    assert sum(calls(running)) == 1
    running.assert_nothing_held()


# -- who is asked


@pytest.mark.parametrize("broken", [says("busy", "503 Service Unavailable"), cut])
async def test_a_replica_that_cannot_answer_is_followed_by_the_next(start: Start, broken: Script) -> None:
    broke: list[str | None] = []

    async def the_first_breaks(call: Call) -> None:
        broke.append(call.header("host"))
        await (broken if broke[0] == broke[-1] else says("b"))(call)

    running = await started(start, the_first_breaks, the_first_breaks)
    status, _, body = await show(running)
    assert (status, json.loads(body)) == (200, {"said": "b"})
    assert min(calls(running)) > 0
    running.assert_nothing_held()


async def test_where_all_are_busy_the_client_hears_it_from_ollama(start: Start) -> None:
    running = await started(start, *[says("busy", "503 Service Unavailable")] * 2)
    status, _, body = await show(running)
    assert (status, json.loads(body)) == (503, {"said": "busy"})
    assert calls(running) == [1, 1]
    running.assert_nothing_held()


async def test_where_nobody_answers_the_gateway_says_so(start: Start) -> None:
    running = await started(start, cut, cut)
    status, _, body = await show(running)
    assert (status, json.loads(body)["error"].split(" ")[0]) == (502, "every")
    running.assert_nothing_held()


async def test_a_late_replica_gets_company_and_the_first_answer_is_taken(start: Start) -> None:
    asked = 0

    async def only_the_second(call: Call) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            await says("quick")(call)

    running = await started(start, only_the_second, only_the_second)
    status, _, body = await show(running)
    assert (status, json.loads(body)) == (200, {"said": "quick"})
    assert calls(running) == [1, 1]
    running.assert_nothing_held()
    assert (await show(running))[2] == body
    assert calls(running) == [1, 1]


async def test_the_first_one_may_still_win(start: Start) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    running = await started(start, after(gates[0], says("a")), after(gates[1], says("b")))
    answer = asyncio.create_task(show(running))
    await until(lambda: sum(calls(running)) == 1)
    first = calls(running).index(1)
    await until(lambda: calls(running) == [1, 1])
    gates[first].set()
    assert (await answer)[1]["x-corral-replica"] == f"r{first}"
    running.assert_nothing_held()


async def test_a_second_one_that_fails_does_not_end_the_wait_for_the_first(start: Start) -> None:
    gate = asyncio.Event()
    running = await started(start, after(gate, says("a")), after(gate, says("a")))
    answer = asyncio.create_task(show(running))
    await until(lambda: sum(calls(running)) == 1)
    second = 1 - calls(running).index(1)
    running.replicas[second].answer = says("busy", "503 Service Unavailable")
    await until(lambda: calls(running) == [1, 1])
    await until(lambda: running.scheduler.inflight == 1)
    gate.set()
    assert (await answer)[0] == 200
    running.assert_nothing_held()


async def test_nobody_else_is_asked_who_has_not_the_model(start: Start) -> None:
    gate = asyncio.Event()
    running = await started(start, after(gate, says("a")), says("b"))
    running.replicas[1].tags = tags({"name": "another:latest"})
    await read_again(running)
    answer = asyncio.create_task(show(running))
    await until(lambda: calls(running) == [1, 0])
    await asyncio.sleep(1.2 * HEDGE_S)  # that nobody is asked can only be seen by waiting
    gate.set()
    assert (await answer)[1]["x-corral-replica"] == "r0"
    assert calls(running) == [1, 0]


async def test_a_stub_is_shown_by_one_replica_alone_however_late(start: Start) -> None:
    gate = asyncio.Event()
    running = await started(start, after(gate, says("a")), says("b"))
    for replica in running.replicas:
        replica.tags = tags({"remote_host": "https://ollama.com:443"})
    await read_again(running)
    answer = asyncio.create_task(show(running))
    await until(lambda: calls(running) == [1, 0])
    await asyncio.sleep(1.2 * HEDGE_S)  # that nobody is asked can only be seen by waiting
    gate.set()
    assert json.loads((await answer)[2]) == {"said": "a"}
    assert calls(running) == [1, 0]


@pytest.mark.parametrize("version", [{"digest": "f" * 64}, {}], ids=["another version", "the same one"])
async def test_of_several_stores_the_one_that_pulled_last_is_shown(start: Start, version: dict[str, Any]) -> None:
    for newer in (0, 1):
        running = await started(start, says("old"), says("old"))
        running.replicas[newer].tags = tags(version | {"modified_at": "2026-09-01T00:00:00Z"})
        running.replicas[newer].answer = says("new")
        await read_again(running)
        for name in (MODEL, MODEL.upper(), f"library/{MODEL}"):
            assert json.loads((await show(running, {"model": name}))[2]) == {"said": "new"}


async def test_a_store_of_the_same_version_helps_out(start: Start) -> None:
    running = await started(start, cut, says("the same"))
    running.replicas[0].tags = tags({"modified_at": "2026-09-01T00:00:00Z"})
    await read_again(running)
    assert json.loads((await show(running))[2]) == {"said": "the same"}
    assert calls(running)[0] > 0


async def test_a_store_of_another_version_does_not(start: Start) -> None:
    running = await started(start, cut, says("another"))
    running.replicas[0].tags = tags({"digest": "f" * 64, "modified_at": "2026-09-01T00:00:00Z"})
    await read_again(running)
    assert (await show(running))[0] == 502
    assert calls(running)[1] == 0


async def test_a_model_that_is_just_being_changed_is_waited_for_by_one_request(start: Start) -> None:
    running = await started(start, says("a"), says("b"))
    gateway, scheduler = running.gateway, running.scheduler
    gateway.carrier.apply(scheduler.freeze(frozenset({normalise_model(MODEL)}), gateway.clock()))
    answer = asyncio.create_task(show(running))
    await until(lambda: scheduler.queued == 1)
    await asyncio.sleep(1.2 * HEDGE_S)  # that no second one comes can only be seen by waiting
    assert scheduler.queued == 1
    gateway.carrier.apply(scheduler.freeze(frozenset(), gateway.clock()))
    assert (await answer)[0] == 200
    assert sum(calls(running)) == 1


async def test_a_client_that_leaves_ends_all_that_was_asked_for_it(start: Start) -> None:
    gate = asyncio.Event()
    running = await started(start, after(gate, says("a")), after(gate, says("b")))
    client = await running.connect()
    await client.send(post("/api/show", json.dumps(PLAIN).encode()))
    await until(lambda: calls(running) == [1, 1])
    client.reset()
    await until(lambda: running.scheduler.inflight == 0)
    running.assert_nothing_held()


# -- parts


def entry(name: str, digest: str = "d", modified_s: float = 1.0) -> TagsEntry:
    return TagsEntry(InstalledModel(normalise_model(name), digest), name, modified_s, b"{}")


def shown(size: int = 10) -> Shown:
    return Shown(200, b"x" * size, b"application/json", "r0")


def test_the_shelf_is_bounded_in_entries_and_what_was_used_longest_ago_goes_first() -> None:
    shelf = Shelf(most_entries=3)
    for name in "abc":
        shelf.put(name, entry(name), shown())
    assert shelf.get("a", entry("a")) is not None
    shelf.put("d", entry("d"), shown())
    assert [name for name in "abcd" if shelf.get(name, entry(name)) is not None] == ["a", "c", "d"]


def test_the_shelf_is_bounded_in_bytes() -> None:
    shelf = Shelf(most_bytes=100)
    for number in range(1000):
        shelf.put(f"m{number}", entry("m"), shown(40))
    assert len(shelf) == 2
    shelf.put("big", entry("big"), shown(101))
    assert len(shelf) == 0
    for _ in range(3):
        shelf.put("m", entry("m"), shown(60))
    assert shelf.get("m", entry("m")) is not None, "what was put in its own place is not counted twice"


def test_what_the_shelf_has_of_another_version_it_forgets() -> None:
    shelf = Shelf()
    shelf.put("m", entry("m", "old"), shown())
    assert shelf.get("m", entry("m", "new")) is None
    assert len(shelf) == 0


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"m"}', "m"),
        (b'{"name":"M:7b","verbose":null}', "M:7b"),
        (b'{"model":"a","model":"b"}', "b"),
        (b'{"model":"","name":"n"}', "n"),
        (b'{"model":"m","options":{}}', "m"),
        (b'{"model":"m"} {"model":"n"}', None),
        (b'{"model":"m","verbose":0}', None),
        (b'{"model":"m","pad":"' + b"x" * 5000 + b'"}', None),
        (b'{"model":"\xff"}', None),
        (b"[" * 4000, None),
        (b"null", None),
    ],
)
def test_a_plain_request_names_a_model_and_nothing_else(body: bytes, name: str | None) -> None:
    assert plain_name(body) == name
