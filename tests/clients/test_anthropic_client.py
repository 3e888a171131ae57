"""Anthropic's Python client works through the gateway as it does with one Ollama."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import anthropic
import pytest
from anthropic.types import MessageParam, RawMessageStreamEvent, ToolParam

from tests.clients.compare import Pair, drained, failure, plain
from tests.clients.conftest import CHAT, EMBEDDING, THINKING
from tests.clients.processes import Stack, until

Call = Callable[[anthropic.Anthropic], object]

HI: list[MessageParam] = [{"role": "user", "content": "Why is the sky blue?"}]
WEATHER: ToolParam = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
LONG = 20_000


@pytest.fixture(scope="module")
def pair(running: Stack) -> Iterator[Pair[anthropic.Anthropic]]:
    # timeout: without one the client refuses long answers that are not streamed
    with (
        anthropic.Anthropic(base_url=running.url, api_key="none", max_retries=0, timeout=60) as through,
        anthropic.Anthropic(base_url=running.replicas[0].url, api_key="none", max_retries=0, timeout=60) as direct,
    ):
        yield Pair(through, direct)


def async_client(running: Stack) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=running.url, api_key="none", max_retries=0, timeout=60)


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# -- messages


def test_a_message(pair: Pair[anthropic.Anthropic]) -> None:
    answer = pair.same(
        lambda client: client.messages.create(model=CHAT, max_tokens=12, messages=HI, system="Be brief.")
    )
    assert text_of(answer)
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 12


def test_a_streamed_message_comes_in_the_same_events(pair: Pair[anthropic.Anthropic]) -> None:
    def streamed(client: anthropic.Anthropic) -> list[RawMessageStreamEvent]:
        return drained(iter(client.messages.create(model=CHAT, max_tokens=12, messages=HI, stream=True)))

    events = pair.same(streamed)
    assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
    whole = pair.through.messages.create(model=CHAT, max_tokens=12, messages=HI)
    with pair.through.messages.stream(model=CHAT, max_tokens=12, messages=HI) as stream:
        assert "".join(stream.text_stream) == text_of(whole)
        assert plain(stream.get_final_message().content) == plain(whole.content)


def test_a_message_with_a_tool_and_its_result(pair: Pair[anthropic.Anthropic]) -> None:
    asked = pair.same(lambda client: client.messages.create(model=CHAT, max_tokens=50, messages=HI, tools=[WEATHER]))
    assert asked.stop_reason == "tool_use"
    use = next(block for block in asked.content if block.type == "tool_use")
    assert (use.name, list(use.input)) == ("weather", ["city"])
    history: list[MessageParam] = [
        *HI,
        {"role": "assistant", "content": asked.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}]},
    ]
    told = pair.same(
        lambda client: client.messages.create(model=CHAT, max_tokens=12, messages=history, tools=[WEATHER])
    )
    assert text_of(told)


def test_a_streamed_tool_use(pair: Pair[anthropic.Anthropic]) -> None:
    def streamed(client: anthropic.Anthropic) -> anthropic.types.Message:
        with client.messages.stream(model=CHAT, max_tokens=50, messages=HI, tools=[WEATHER]) as stream:
            return stream.get_final_message()

    message = pair.same(streamed)
    assert message.stop_reason == "tool_use"
    assert [block.name for block in message.content if block.type == "tool_use"] == ["weather"]


def test_thinking(pair: Pair[anthropic.Anthropic]) -> None:
    answer = pair.same(
        lambda client: client.messages.create(
            model=THINKING, max_tokens=1100, messages=HI, thinking={"type": "enabled", "budget_tokens": 1024}
        )
    )
    assert [block.type for block in answer.content] == ["thinking", "text"]

    def streamed(client: anthropic.Anthropic) -> anthropic.types.Message:
        with client.messages.stream(
            model=THINKING, max_tokens=1100, messages=HI, thinking={"type": "enabled", "budget_tokens": 1024}
        ) as stream:
            return stream.get_final_message()

    assert [block.type for block in pair.same(streamed).content] == ["thinking", "text"]


# -- errors

UNKNOWN: dict[str, Call] = {
    "a message": lambda client: client.messages.create(model="cow", max_tokens=12, messages=HI),
    "a streamed message": lambda client: client.messages.create(model="cow", max_tokens=12, messages=HI, stream=True),
    "a route that Ollama has not": lambda client: client.messages.count_tokens(model=CHAT, messages=HI),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_unknown_model_or_route_is_404_in_ollamas_words(pair: Pair[anthropic.Anthropic], what: str) -> None:
    errors = [failure(UNKNOWN[what], anthropic.NotFoundError)(client) for client in (pair.through, pair.direct)]
    assert isinstance(errors[0], anthropic.NotFoundError)
    assert isinstance(errors[1], anthropic.NotFoundError)
    assert plain(errors[0].body) == plain(errors[1].body)
    assert "not found" in str(errors[0].body)


REFUSED: dict[str, Call] = {
    "no messages": lambda client: client.messages.create(model=CHAT, max_tokens=12, messages=[]),
    "an embedding model": lambda client: client.messages.create(model=EMBEDDING, max_tokens=12, messages=HI),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_ollamas_own(pair: Pair[anthropic.Anthropic], what: str) -> None:
    errors = [failure(REFUSED[what], anthropic.BadRequestError)(client) for client in (pair.through, pair.direct)]
    assert isinstance(errors[0], anthropic.BadRequestError)
    assert isinstance(errors[1], anthropic.BadRequestError)
    assert plain(errors[0].body) == plain(errors[1].body)


# -- leaving


def test_a_stream_that_is_left_stops_the_replica(running: Stack, pair: Pair[anthropic.Anthropic]) -> None:
    talk = pair.through.messages.stream(model=CHAT, max_tokens=LONG, messages=HI)
    with running.one_stream_is_aborted(), talk as stream:
        assert next(iter(stream.text_stream))


async def test_an_asynchronous_stream_that_is_left_stops_the_replica(running: Stack) -> None:
    async with async_client(running) as client:
        with running.one_stream_is_aborted():
            async with client.messages.stream(model=CHAT, max_tokens=LONG, messages=HI) as stream:
                assert await anext(aiter(stream.text_stream))


async def test_a_cancelled_call_stops_the_replica(running: Stack) -> None:
    async with async_client(running) as client:
        with running.one_stream_is_aborted():
            call = asyncio.ensure_future(client.messages.create(model=CHAT, max_tokens=LONG, messages=HI))
            await asyncio.to_thread(until, lambda: running.total("active_streams") == 1, 5.0)
            call.cancel()
            await asyncio.wait([call])
    assert call.cancelled()


# -- asynchronous


async def test_the_asynchronous_client(running: Stack, pair: Pair[anthropic.Anthropic]) -> None:
    async with async_client(running) as client:
        message = await client.messages.create(model=CHAT, max_tokens=12, messages=HI)
        assert plain(message) == plain(pair.direct.messages.create(model=CHAT, max_tokens=12, messages=HI))
        async with client.messages.stream(model=CHAT, max_tokens=12, messages=HI) as stream:
            assert "".join([text async for text in stream.text_stream]) == text_of(message)
        called = await client.messages.create(model=CHAT, max_tokens=50, messages=HI, tools=[WEATHER])
        assert called.stop_reason == "tool_use"
        with pytest.raises(anthropic.NotFoundError, match="model 'cow' not found"):
            await client.messages.create(model="cow", max_tokens=12, messages=HI)


async def test_concurrent_messages_are_spread_over_all_replicas(running: Stack) -> None:
    running.load_everywhere(CHAT)
    async with async_client(running) as client:
        raw = client.messages.with_raw_response
        answers = await asyncio.gather(*(raw.create(model=CHAT, max_tokens=600, messages=HI) for _ in range(6)))
    assert sorted(answer.headers["x-corral-replica"] for answer in answers) == ["a", "a", "b", "b", "c", "c"]
