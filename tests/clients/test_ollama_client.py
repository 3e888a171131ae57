"""Ollama's own Python client works through the gateway as it does with one Ollama."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import cast

import httpx
import ollama
import pytest

from tests.clients.compare import Pair, drained, failure, plain
from tests.clients.conftest import CHAT, EMBEDDING, THINKING
from tests.clients.processes import Stack, until

Call = Callable[[ollama.Client], object]

HI = [{"role": "user", "content": "Why is the sky blue?"}]
SHORT = {"num_predict": 12}
LONG = {"num_predict": 100_000}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
}


def weather(city: str) -> str:
    """The weather of a city.

    Args:
      city: Its name.
    """
    return f"rain in {city}"


@pytest.fixture(scope="module")
def pair(running: Stack) -> Iterator[Pair[ollama.Client]]:
    with ollama.Client(running.url) as through, ollama.Client(running.replicas[0].url) as direct:
        yield Pair(through, direct)


# -- chat and generate


def test_chat(pair: Pair[ollama.Client]) -> None:
    answer = pair.same(lambda client: client.chat(CHAT, HI, options=SHORT))
    assert answer.message.content
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "length", 12)


def test_a_streamed_chat_comes_in_the_same_pieces(pair: Pair[ollama.Client]) -> None:
    pieces = pair.same(lambda client: drained(client.chat(CHAT, HI, options=SHORT, stream=True)))
    whole = pair.through.chat(CHAT, HI, options=SHORT)
    assert len(pieces) == 13
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].done


def test_a_chat_with_a_tool_and_its_result(pair: Pair[ollama.Client]) -> None:
    asked = pair.same(lambda client: client.chat(CHAT, HI, tools=[weather]))
    assert asked.message.tool_calls is not None
    call = asked.message.tool_calls[0].function
    result = {"role": "tool", "tool_name": call.name, "content": weather(**call.arguments)}
    told = pair.same(lambda client: client.chat(CHAT, [*HI, asked.message, result], tools=[weather], options=SHORT))
    assert told.message.content
    assert not told.message.tool_calls


def test_a_streamed_tool_call(pair: Pair[ollama.Client]) -> None:
    pieces = pair.same(lambda client: drained(client.chat(CHAT, HI, tools=[weather], stream=True)))
    calls = [call.function for piece in pieces for call in piece.message.tool_calls or ()]
    assert [call.name for call in calls] == ["weather"]
    assert list(calls[0].arguments) == ["city"]


def test_thinking(pair: Pair[ollama.Client]) -> None:
    whole = pair.same(lambda client: client.chat(THINKING, HI, think=True, options=SHORT))
    pieces = pair.same(lambda client: drained(client.chat(THINKING, HI, think=True, options=SHORT, stream=True)))
    assert whole.message.thinking
    assert whole.message.content
    assert "".join(piece.message.thinking or "" for piece in pieces) == whole.message.thinking
    unthinking = pair.same(lambda client: client.chat(THINKING, HI, think=False, options=SHORT))
    assert not unthinking.message.thinking


def test_an_answer_in_a_given_shape(pair: Pair[ollama.Client]) -> None:
    answer = pair.same(lambda client: client.chat(CHAT, HI, format=SCHEMA))
    assert set(json.loads(answer.message.content or "")) == {"city", "people"}
    free = pair.same(lambda client: client.generate(CHAT, "hi", format="json"))
    assert isinstance(json.loads(free.response or ""), dict)


def test_generate(pair: Pair[ollama.Client]) -> None:
    whole = pair.same(lambda client: client.generate(CHAT, "Once upon a time", system="Be brief.", options=SHORT))
    pieces = pair.same(lambda client: drained(client.generate(CHAT, "Once upon a time", options=SHORT, stream=True)))
    raw = pair.same(lambda client: client.generate(CHAT, "Once upon", raw=True, options=SHORT))
    assert whole.response
    assert whole.context
    assert len(pieces) == 13
    assert raw.response


def test_generating_nothing_loads_and_unloads(pair: Pair[ollama.Client], running: Stack) -> None:
    assert pair.same(lambda client: client.generate(THINKING)).done_reason == "load"
    assert THINKING in [model.model for model in pair.through.ps().models]
    assert pair.through.generate(THINKING, keep_alive=0).done_reason == "unload"


# -- embeddings


def test_embeddings(pair: Pair[ollama.Client]) -> None:
    one = pair.same(lambda client: client.embed(EMBEDDING, "a cow"))
    several = pair.same(lambda client: client.embed(EMBEDDING, ["a cow", "a horse"]))
    short = pair.same(lambda client: client.embed(EMBEDDING, ["a cow"], dimensions=64))
    older = pair.same(lambda client: client.embeddings(EMBEDDING, "a cow"))
    assert len(one.embeddings[0]) == len(older.embedding) == 768
    assert several.embeddings[0] == one.embeddings[0] != several.embeddings[1]
    assert len(short.embeddings[0]) == 64
    assert pair.same(lambda client: client.embed(EMBEDDING, [])).embeddings == []


# -- models


def test_list_and_show(pair: Pair[ollama.Client]) -> None:
    listed = pair.same(lambda client: client.list())
    assert {model.model for model in listed.models} >= {CHAT, THINKING, f"{EMBEDDING}:latest"}
    shown = pair.same(lambda client: client.show(CHAT))
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo


def test_ps_shows_what_every_replica_has_in_memory(pair: Pair[ollama.Client], running: Stack) -> None:
    for replica in running.replicas:
        with ollama.Client(replica.url) as client:
            client.chat(CHAT, HI, options={"num_predict": 1})

    def loaded() -> list[int]:
        return [model.size or 0 for model in pair.through.ps().models if model.model == CHAT]

    until(lambda: len(loaded()) == len(running.replicas), 10)  # what happens behind the gateway's back its probes see
    assert all(loaded())


def test_a_pulled_model_is_listed_and_chats_at_once(pair: Pair[ollama.Client]) -> None:
    client = pair.through
    steps = drained(client.pull("llama3.2:1b", stream=True))
    assert [steps[0].status, steps[-1].status] == ["pulling manifest", "success"]
    layer = [step for step in steps if step.total and step.total > 1_000_000]
    assert [step.completed or 0 for step in layer] == sorted(step.completed or 0 for step in layer)
    assert layer[-1].completed == layer[-1].total
    assert "llama3.2:1b" in [model.model for model in client.list().models]
    assert client.chat("llama3.2:1b", HI, options=SHORT).message.content
    assert client.pull("llama3.2:1b").status == "success"
    client.delete("llama3.2:1b")


def test_copy_create_push_and_delete(pair: Pair[ollama.Client], tmp_path: Path) -> None:
    client = pair.through
    assert client.copy(CHAT, "mine").status == "success"
    steps = drained(client.create("yours", from_="mine", system="You are a pirate.", stream=True))
    assert steps[-1].status == "success"
    assert client.show("yours").modelfile != client.show("mine").modelfile
    weights = tmp_path / "weights.gguf"
    weights.write_bytes(b"GGUF" + bytes(200_000))
    digest = client.create_blob(weights)
    assert client.create("ours", files={"weights.gguf": digest}).status == "success"
    assert [step.status for step in drained(client.push("mine", stream=True))][-1] == "success"
    assert {"mine:latest", "yours:latest", "ours:latest"} <= {model.model for model in client.list().models}
    for name in ("mine", "yours", "ours"):
        assert client.chat(name, HI, options=SHORT).message.content
        assert client.delete(name).status == "success"
        assert f"{name}:latest" not in [model.model for model in client.list().models]
        with pytest.raises(ollama.ResponseError, match="not found"):
            client.chat(name, HI)


# -- errors

UNKNOWN: dict[str, tuple[Call, str]] = {
    "chat": (lambda client: client.chat("cow", HI), "model 'cow' not found"),
    "streamed chat": (lambda client: drained(client.chat("cow", HI, stream=True)), "model 'cow' not found"),
    "generate": (lambda client: client.generate("cow", "hi"), "model 'cow' not found"),
    "embed": (lambda client: client.embed("cow", "hi"), 'model "cow" not found, try pulling it first'),
    "show": (lambda client: client.show("cow"), "model 'cow' not found"),
    "copy": (lambda client: client.copy("cow", "calf"), 'model "cow" not found'),
    "delete": (lambda client: client.delete("cow"), "model 'cow' not found"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_unknown_model_is_404_in_ollamas_words(pair: Pair[ollama.Client], what: str) -> None:
    call, said = UNKNOWN[what]
    error = failure(call, ollama.ResponseError)(pair.through)
    expected = failure(call, ollama.ResponseError)(pair.direct)
    assert isinstance(error, ollama.ResponseError)
    assert isinstance(expected, ollama.ResponseError)
    assert (error.status_code, error.error) == (expected.status_code, expected.error) == (404, said)


REFUSED: dict[str, Call] = {
    "an embedding model that should chat": lambda client: client.chat(EMBEDDING, HI),
    "thinking that it cannot": lambda client: client.chat(CHAT, HI, think=True),
    "a pull of what nobody has": lambda client: drained(client.pull("cow", stream=True)),
    "a model made of what nobody has": lambda client: client.create("calf", from_="cow"),
    "a push of what is not there": lambda client: client.push("cow"),
    "a route that Ollama has not": lambda client: client.systemone(CHAT, "state", {}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_ollamas_own(pair: Pair[ollama.Client], what: str) -> None:
    errors = [failure(REFUSED[what], ollama.ResponseError)(client) for client in (pair.through, pair.direct)]
    assert isinstance(errors[0], ollama.ResponseError)
    assert isinstance(errors[1], ollama.ResponseError)
    assert (errors[0].status_code, errors[0].error) == (errors[1].status_code, errors[1].error)


# -- leaving


def test_a_stream_that_is_left_stops_the_replica(running: Stack, pair: Pair[ollama.Client]) -> None:
    with running.one_stream_is_aborted():
        stream = cast(
            "Generator[ollama.ChatResponse, None, None]", pair.through.chat(CHAT, HI, options=LONG, stream=True)
        )
        assert next(stream).message.content
        stream.close()


async def test_an_asynchronous_stream_that_is_left_stops_the_replica(running: Stack) -> None:
    async with ollama.AsyncClient(running.url) as client:
        with running.one_stream_is_aborted():
            stream = await client.generate(CHAT, "hi", options=LONG, stream=True)
            assert (await anext(stream)).response
            await stream.aclose()


async def test_a_cancelled_call_stops_the_replica(running: Stack) -> None:
    async with ollama.AsyncClient(running.url) as client:
        with running.one_stream_is_aborted():
            call = asyncio.create_task(client.chat(CHAT, HI, options=LONG))
            await asyncio.to_thread(until, lambda: running.total("active_streams") == 1, 5.0)
            call.cancel()
            await asyncio.wait([call])
    assert call.cancelled()


# -- asynchronous


async def test_the_asynchronous_client(running: Stack, pair: Pair[ollama.Client]) -> None:
    async with ollama.AsyncClient(running.url) as client:
        chat = await client.chat(CHAT, HI, options=SHORT)
        assert plain(chat) == plain(pair.direct.chat(CHAT, HI, options=SHORT))
        pieces = [piece async for piece in await client.chat(CHAT, HI, options=SHORT, stream=True)]
        assert "".join(piece.message.content or "" for piece in pieces) == chat.message.content
        assert (await client.generate(CHAT, "hi", options=SHORT)).response
        assert (await client.chat(CHAT, HI, tools=[weather])).message.tool_calls
        assert (await client.chat(THINKING, HI, think=True, options=SHORT)).message.thinking
        assert len((await client.embed(EMBEDDING, ["a", "b"])).embeddings) == 2
        assert plain(await client.list()) == plain(pair.direct.list())
        assert plain(await client.show(CHAT)) == plain(pair.direct.show(CHAT))
        assert (await client.ps()).models
        steps = [step async for step in await client.pull("smollm2:135m", stream=True)]
        assert steps[-1].status == "success"
        assert (await client.copy("smollm2:135m", "small")).status == "success"
        assert (await client.chat("small", HI, options=SHORT)).message.content
        for name in ("small", "smollm2:135m"):
            await client.delete(name)
        with pytest.raises(ollama.ResponseError, match="model 'small' not found"):
            await client.chat("small", HI)


def test_a_model_that_is_stopped_leaves_everywhere_and_is_loaded_by_nobody(running: Stack) -> None:
    """As ``ollama stop`` does it."""
    running.load_everywhere(CHAT)
    loads = running.total("loads")
    with ollama.Client(running.url) as client:
        assert client.generate(CHAT, keep_alive=0).done_reason == "unload"
        until(lambda: CHAT not in [model.model for model in client.ps().models], within_s=5)
        assert client.generate(CHAT, keep_alive=0).done_reason == "unload"
        assert client.chat(CHAT, [], keep_alive=0).done_reason == "unload"
        assert running.total("loads") == loads
        assert client.generate(CHAT).done_reason == "load"
    assert running.total("loads") == loads + 1


async def test_concurrent_chats_are_spread_over_all_replicas(running: Stack) -> None:
    running.load_everywhere(CHAT)
    served: list[str] = []

    async def note(response: httpx.Response) -> None:
        served.append(response.headers["x-corral-replica"])

    async with ollama.AsyncClient(running.url, event_hooks={"response": [note]}) as client:
        options = {"num_predict": 600}
        answers = await asyncio.gather(*(client.chat(CHAT, HI, options=options) for _ in range(6)))
    assert sorted(served) == ["a", "a", "b", "b", "c", "c"]
    assert len({answer.message.content for answer in answers}) == 1
