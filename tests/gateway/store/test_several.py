"""Several stores: what is asked of one Ollama is done in each, and what failed in part is told by name."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest

from corral.model import Hold
from tests.gateway.store.conftest import Open
from tests.gateway.store.stage import MANIFEST, NEW, SUCCESS, Stage, entry, layer
from tests.gateway.wire.harness import post, until
from tests.gateway.wire.replica import Call

QUICK = "probes: {ollama_interval_s: 0.1}\n"
VERIFY = {"status": "verifying sha256 digest"}
CONTENT = b"x" * 200_000
BLOB = "/api/blobs/sha256:" + hashlib.sha256(CONTENT).hexdigest()


async def test_a_pull_is_carried_out_in_each_and_told_as_one(opened: Open) -> None:
    stage = await opened("s", "s", "t")
    feeds = [replica.feed() for replica in stage.replicas]
    asked = await stage.pull()
    first, second = await feeds[0].get(), await feeds[2].get()
    await first.say(MANIFEST, layer(30), layer(100), VERIFY)
    await second.say(MANIFEST, layer(10))
    await asked.client.head()
    await asked.hears(layer(10))
    assert [(view.store, view.completed_bytes, view.waiting) for view in stage.stores.pulls()] == [
        ("s", 100, 1),
        ("t", 10, 1),
    ]
    await first.end(SUCCESS)
    await second.end(layer(100), VERIFY, SUCCESS)
    assert await asked.lines() == [layer(100), VERIFY, SUCCESS]
    assert feeds[1].all == []
    await stage.at_rest()


async def test_a_failure_in_part_is_told_by_name(opened: Open) -> None:
    stage = await opened("s", "t", "u")
    feeds = [replica.feed() for replica in stage.replicas]
    asked, whole = await stage.pull(), await stage.pull(stream=False)
    await (await feeds[0].get()).end(MANIFEST, SUCCESS)
    await (await feeds[1].get()).end(MANIFEST, {"error": "write: no space left on device"})
    await (await feeds[2].get()).end(MANIFEST, SUCCESS)
    await asked.client.head()
    error = {"error": "it failed at r1: write: no space left on device; it succeeded at r0 and r2"}
    assert (await asked.lines())[-1] == error
    status, _, body = await whole.client.answer()
    assert (status, json.loads(body)) == (500, error)


async def test_where_all_fail_alike_it_is_told_as_by_one(opened: Open) -> None:
    stage = await opened("s", "t")
    feeds = [replica.feed() for replica in stage.replicas]
    asked = await stage.pull()
    error = {"error": "pull model manifest: file does not exist"}
    for each in feeds:
        await (await each.get()).end(MANIFEST, error)
    await asked.client.head()
    assert await asked.lines() == [MANIFEST, error]


async def test_a_store_that_is_lost_is_named_and_the_others_go_on(opened: Open) -> None:
    stage = await opened("s", "t")
    feeds = [replica.feed() for replica in stage.replicas]
    asked = await stage.pull()
    lost = await feeds[1].get()
    await lost.say(MANIFEST)
    await stage[1].stop()
    await (await feeds[0].get()).end(MANIFEST, layer(100), SUCCESS)
    await asked.client.head()
    assert (await asked.lines())[-1] == {
        "error": "it failed at r1: replica r1 was lost in the middle of the pull, and no other one of its store can "
        "go on; it succeeded at r0"
    }
    await stage.at_rest()


async def test_a_store_without_a_replica_that_answers_is_named_and_a_drained_one_left_out(opened: Open) -> None:
    stage = await opened("s", "t", "u", "v", extra=QUICK)
    await stage[1].stop()
    await until(lambda: stage.running.states[1].health.value == "down")
    stage.running.gateway.set_enabled("r2", False)
    stage.running.gateway.set_hold("r3", Hold("starting", coming=True))
    assert stage.stores.names() == ("s", "t", "u", "v")
    _, lines = await stage.ask("/api/pull", model=NEW)
    assert lines[-1] == {"error": "it failed at r1: no answer; it succeeded at r0"}
    assert stage[2].calls == stage[3].calls == []
    stage.running.gateway.set_enabled("r1", False)
    assert (await stage.ask("/api/pull", model=NEW))[1][-1] == SUCCESS


async def test_a_deletion_is_carried_out_where_the_model_is(opened: Open) -> None:
    stage = await opened("s", "t", "u")
    stage[0].list(entry("m:latest", "a"))
    stage[1].list(entry("other:latest", "b"))
    stage[2].list(entry("M:latest", "a"))
    assert await stage.delete("m") == (200, None)
    assert [replica.asked("/api/delete") for replica in stage.replicas] == [[{"model": "m"}], [], [{"model": "m"}]]


async def test_what_no_store_has_is_told_in_ollamas_words(opened: Open) -> None:
    stage = await opened("s", "t")
    for path in ("/api/delete", "/api/copy", "/api/push"):

        async def missing(call: Call) -> None:
            await call.json({"error": "model 'm' not found"}, "404 Not Found")

        for replica in stage.replicas:
            replica.scripts[path] = missing
        method = "DELETE" if path == "/api/delete" else "POST"
        answer = await stage.ask(path, method=method, model="m", source="m", destination="n")
        assert answer == (404, {"error": "model 'm' not found"})
        assert [len(replica.asked(path)) for replica in stage.replicas] == [1, 0]


async def test_a_copy_is_made_where_its_source_is(opened: Open) -> None:
    stage = await opened("s", "t")
    stage[1].list(entry("m:latest", "a"))
    assert await stage.ask("/api/copy", source="m", destination="n") == (200, None)
    assert [len(replica.asked("/api/copy")) for replica in stage.replicas] == [0, 1]


async def test_a_model_is_made_in_each_and_pushed_from_one(opened: Open) -> None:
    stage = await opened("s", "t", "u")
    for number in (1, 2):
        stage[number].list(entry("m:latest", "a"))
    assert (await stage.ask("/api/create", model="made"))[1][-1] == SUCCESS
    assert [len(replica.asked("/api/create")) for replica in stage.replicas] == [1, 1, 1]
    assert (await stage.ask("/api/push", model="m"))[1][-1] == SUCCESS
    assert [len(replica.asked("/api/push")) for replica in stage.replicas] == [0, 1, 0]
    await stage.at_rest()


async def test_a_client_that_leaves_ends_it_in_each(opened: Open) -> None:
    stage = await opened("s", "t")
    feeds = [replica.feed("/api/create") for replica in stage.replicas]
    asked = await stage.send("/api/create", model="a")
    begun = [await each.get() for each in feeds]
    asked.leave()
    for feed in begun:
        await asyncio.wait_for(feed.left.wait(), 5)
    await stage.at_rest()


# -- blobs


def keeps(stage: Stage) -> list[bytes]:
    """Every replica takes blobs as Ollama does; what each got."""
    got = [b"" for _ in stage.replicas]

    def taking(number: int) -> Any:
        async def take(call: Call) -> None:
            if call.line.startswith("HEAD"):
                await call.write(b"HTTP/1.1 %b\r\n\r\n" % (b"200 OK" if got[number] else b"404 Not Found"))
                return
            got[number] = await call.reader.readexactly(int(call.header("content-length") or 0))
            await call.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

        return take

    for number, replica in enumerate(stage.replicas):
        replica.scripts[BLOB] = taking(number)
    return got


async def blob(stage: Stage, method: str = "POST", content: bytes = CONTENT) -> tuple[int, bytes]:
    client = await stage.running.connect()
    if method == "HEAD":
        await client.send(f"HEAD {BLOB} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return (await client.head())[0], b""
    await client.send(post(BLOB, content))
    status, _, body = await client.answer()
    return status, body


async def test_a_blob_is_there_when_every_store_has_it(opened: Open) -> None:
    stage = await opened("s", "t")
    got = keeps(stage)
    assert (await blob(stage, "HEAD"))[0] == 404
    got[0] = CONTENT
    assert (await blob(stage, "HEAD"))[0] == 404
    got[1] = CONTENT
    assert (await blob(stage, "HEAD"))[0] == 200
    await stage.at_rest()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_blob_goes_to_all_at_once(opened: Open, chunked: bool) -> None:
    stage = await opened("s", "t", "t")
    got = keeps(stage)
    if chunked:
        payload: dict[str, bytes] = {}

        async def take(call: Call) -> None:
            body = b""
            while size := int((await call.reader.readuntil(b"\r\n")).strip(), 16):
                body += await call.reader.readexactly(size)
                await call.reader.readexactly(2)
            await call.reader.readexactly(2)
            payload[call.header("host") or ""] = body
            await call.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

        for replica in stage.replicas:
            replica.scripts[BLOB] = take
        client = await stage.running.connect()
        head = f"POST {BLOB} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        await client.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT))
        assert (await client.answer())[0] == 201
        assert list(payload.values()) == [CONTENT] * 2
    else:
        assert await blob(stage) == (201, b"")
        assert got == [CONTENT, CONTENT, b""]
    await stage.at_rest()


async def there_already(call: Call) -> None:
    """Without reading it, as Ollama does."""
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def test_a_store_that_has_it_already_reads_nothing_and_the_other_gets_it(opened: Open) -> None:
    stage = await opened("s", "t")
    got = keeps(stage)
    stage[0].scripts[BLOB] = there_already
    content = b"x" * 5_000_000  # more than is on its way at once
    assert await blob(stage, content=content) == (201, b"")
    assert got[1] == content
    stage[1].scripts[BLOB] = there_already
    assert await blob(stage, content=b"y" * 20_000_000) == (200, b"")
    await stage.at_rest()


async def test_the_whole_blob_goes_to_the_next_where_the_first_cannot_be_reached(opened: Open) -> None:
    stage = await opened("s", "s", "t")
    got = keeps(stage)
    await stage[0].stop()
    assert await blob(stage) == (201, b"")
    assert got == [b"", CONTENT, CONTENT]
    await stage.at_rest()


async def test_an_error_is_told_at_once(opened: Open) -> None:
    stage = await opened("s", "t")
    keeps(stage)

    async def refuse(call: Call) -> None:
        await call.json({"error": "invalid digest format"}, "400 Bad Request")

    stage[1].scripts[BLOB] = refuse
    client = await stage.running.connect()
    await client.send(f"POST {BLOB} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\nx".encode())
    status, headers, body = await client.answer()
    assert (status, headers["connection"]) == (400, "close")
    assert json.loads(body) == {"error": "invalid digest format"}
    await stage.at_rest()


async def test_a_blob_comes_no_faster_than_the_slowest_takes_it(opened: Open) -> None:
    stage = await opened("s", "t")
    got, go_on = keeps(stage), asyncio.Event()
    taking = stage[1].scripts[BLOB]

    async def slow(call: Call) -> None:
        await go_on.wait()
        await taking(call)

    stage[1].scripts[BLOB] = slow
    client, content = await stage.running.connect(), b"z" * 50_000_000
    client.writer.write(post(BLOB, content))
    before = -1
    while before != (left := client.writer.transport.get_write_buffer_size()):
        before = left
        await asyncio.sleep(0.1)
    assert left > 20_000_000
    go_on.set()
    assert (await client.answer())[0] == 201
    assert got == [content, content]


async def test_a_store_that_is_lost_in_the_middle_of_an_upload_is_an_error(opened: Open) -> None:
    stage = await opened("s", "t")
    keeps(stage)

    async def lose(call: Call) -> None:
        await call.reader.readexactly(1000)
        call.reset()
        raise ConnectionResetError

    stage[1].scripts[BLOB] = lose
    status, body = await blob(stage)
    assert status in (500, 502)  # as the other one was done by then or not
    assert b"the connection to replica r1 was lost" in body
    await stage.at_rest()


async def test_a_client_that_leaves_in_the_middle_of_an_upload_ends_it_everywhere(opened: Open) -> None:
    stage = await opened("s", "t")
    gone = [asyncio.Event(), asyncio.Event()]

    def waiting(number: int) -> Any:
        async def wait(call: Call) -> None:
            await call.gone()
            gone[number].set()
            raise ConnectionResetError

        return wait

    for number, replica in enumerate(stage.replicas):
        replica.scripts[BLOB] = waiting(number)
    client = await stage.running.connect()
    await client.send(f"POST {BLOB} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\nx".encode())
    await until(lambda: all(len(replica.calls) == 1 for replica in stage.replicas))
    client.reset()
    for each in gone:
        await asyncio.wait_for(each.wait(), 5)
    await stage.at_rest()


async def test_with_one_store_blobs_take_the_data_path(opened: Open) -> None:
    stage = await opened("s", "s")
    got = keeps(stage)
    assert await blob(stage) == (201, b"")
    assert got == [CONTENT, b""]
    assert (await blob(stage, "HEAD"))[0] == 200
