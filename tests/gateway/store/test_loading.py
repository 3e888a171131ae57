"""A model that leaves a store while it is on its way into somebody's memory."""

from __future__ import annotations

import asyncio
import json

from tests.gateway.store.conftest import Open
from tests.gateway.wire.harness import CHAT, post, until
from tests.gateway.wire.replica import MODEL

DONE = {"message": {"role": "assistant", "content": "x"}, "done": True, "done_reason": "stop"}


async def test_what_a_request_may_be_loading_is_let_go_of_once_it_is_in_memory(opened: Open) -> None:
    stage = await opened("s")
    chats = stage[0].feed("/api/chat")
    client = await stage.running.connect()
    await client.send(post("/api/chat", CHAT))
    chat = await chats.get()
    deleting = asyncio.create_task(stage.delete(MODEL))
    scheduler = stage.running.scheduler
    await until(lambda: scheduler._roster.frozen)
    for _ in range(5):  # more than once round what it waits with
        await asyncio.sleep(0.02)
    assert stage[0].asked("/api/generate") == []
    assert stage[0].asked("/api/delete") == []
    await chat.say({**DONE, "done": False})
    assert await deleting == (200, None)
    assert [body["keep_alive"] for body in stage[0].asked("/api/generate")] == [0]
    await chat.end(DONE)
    status, _, body = await client.answer()
    assert (status, json.loads(body.splitlines()[-1])["done"]) == (200, True)
    await stage.at_rest()


async def test_what_a_request_that_has_ended_may_have_loaded_is_let_go_of(opened: Open) -> None:
    stage = await opened("s")
    chats = stage[0].feed("/api/chat")
    client = await stage.running.connect()
    await client.send(post("/api/chat", CHAT))
    chat = await chats.get()
    # an older version of that name has just left the memory: of the one that is loaded now nobody has told yet
    stage.running.scheduler.left_memory("r0", MODEL, 0.0)
    await chat.end({**DONE, "done": False}, DONE)
    assert (await client.answer())[0] == 200
    assert await stage.delete(MODEL) == (200, None)
    assert [body["keep_alive"] for body in stage[0].asked("/api/generate")] == [0]
