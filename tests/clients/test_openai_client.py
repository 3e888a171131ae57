"""OpenAI's Python client works through the gateway as it does with one Ollama."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import FunctionToolParam

from tests.clients.compare import Pair, drained, failure, plain
from tests.clients.conftest import CHAT, EMBEDDING, THINKING
from tests.clients.processes import Stack, until

Call = Callable[[openai.OpenAI], object]

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why is the sky blue?"}]
PARAMETERS: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: ChatCompletionToolParam = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
FORECAST: FunctionToolParam = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}
LONG = 100_000


class City(pydantic.BaseModel):
    """What a structured answer must look like."""

    name: str
    people: int


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def pair(running: Stack) -> Iterator[Pair[openai.OpenAI]]:
    with client_of(running.url) as through, client_of(running.replicas[0].url) as direct:
        yield Pair(through, direct)


# -- chat


def test_chat(pair: Pair[openai.OpenAI]) -> None:
    answer = pair.same(lambda client: client.chat.completions.create(model=CHAT, messages=HI, max_tokens=12))
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_a_streamed_chat_comes_in_the_same_pieces(pair: Pair[openai.OpenAI]) -> None:
    def streamed(client: openai.OpenAI) -> list[openai.types.chat.ChatCompletionChunk]:
        usage: openai.types.chat.ChatCompletionStreamOptionsParam = {"include_usage": True}
        stream = client.chat.completions.create(
            model=CHAT, messages=HI, max_tokens=12, stream=True, stream_options=usage
        )
        return drained(iter(stream))

    pieces = pair.same(streamed)
    whole = pair.through.chat.completions.create(model=CHAT, messages=HI, max_tokens=12)
    said = "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices)
    assert said == whole.choices[0].message.content
    assert pieces[-1].usage == whole.usage


def test_a_chat_with_a_tool_and_its_result(pair: Pair[openai.OpenAI]) -> None:
    asked = pair.same(lambda client: client.chat.completions.create(model=CHAT, messages=HI, tools=[WEATHER]))
    assert asked.choices[0].finish_reason == "tool_calls"
    call = (asked.choices[0].message.tool_calls or [])[0]
    assert call.type == "function"
    assert list(json.loads(call.function.arguments)) == ["city"]
    said = cast("ChatCompletionMessageParam", asked.choices[0].message.model_dump(exclude_none=True))
    history: list[ChatCompletionMessageParam] = [
        *HI,
        said,
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    told = pair.same(
        lambda client: client.chat.completions.create(model=CHAT, messages=history, tools=[WEATHER], max_tokens=12)
    )
    assert told.choices[0].message.content


def test_a_streamed_tool_call(pair: Pair[openai.OpenAI]) -> None:
    pieces = pair.same(
        lambda client: drained(
            iter(client.chat.completions.create(model=CHAT, messages=HI, tools=[WEATHER], stream=True))
        )
    )
    calls = [call for piece in pieces for choice in piece.choices for call in choice.delta.tool_calls or ()]
    assert [call.function.name for call in calls if call.function is not None] == ["weather"]
    assert pieces[-1].choices[0].finish_reason == "tool_calls"


def test_thinking(pair: Pair[openai.OpenAI]) -> None:
    answer = pair.same(
        lambda client: client.chat.completions.create(
            model=THINKING, messages=HI, reasoning_effort="high", max_tokens=12
        )
    )
    message = answer.choices[0].message.model_dump()
    assert message["reasoning"]
    assert message["content"]


def test_an_answer_in_a_given_shape(pair: Pair[openai.OpenAI]) -> None:
    answer = pair.same(
        lambda client: client.chat.completions.parse(model=CHAT, messages=HI, response_format=City).choices[0].message
    )
    assert isinstance(answer.parsed, City)
    free = pair.same(
        lambda client: client.chat.completions.create(model=CHAT, messages=HI, response_format={"type": "json_object"})
    )
    assert isinstance(json.loads(free.choices[0].message.content or ""), dict)


# -- completions and responses


def test_completions(pair: Pair[openai.OpenAI]) -> None:
    whole = pair.same(lambda client: client.completions.create(model=CHAT, prompt="Once upon", max_tokens=12))
    pieces = pair.same(
        lambda client: drained(
            iter(client.completions.create(model=CHAT, prompt="Once upon", max_tokens=12, stream=True))
        )
    )
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == whole.choices[0].text != ""


def test_responses(pair: Pair[openai.OpenAI]) -> None:
    whole = pair.same(lambda client: client.responses.create(model=CHAT, input="hi", max_output_tokens=12))
    assert whole.output_text

    def streamed(client: openai.OpenAI) -> list[object]:
        with client.responses.stream(model=CHAT, input="hi", max_output_tokens=12) as events:
            kinds: list[object] = [event.type for event in events]
            return [*kinds, events.get_final_response().output_text]

    events = pair.same(streamed)
    assert events[0] == "response.created"
    assert events[-1] == whole.output_text
    tool = pair.same(lambda client: client.responses.create(model=CHAT, input="hi", tools=[FORECAST]))
    assert [item.name for item in tool.output if item.type == "function_call"] == ["weather"]


# -- embeddings


def test_embeddings_as_numbers_and_packed(pair: Pair[openai.OpenAI]) -> None:
    def embedded(client: openai.OpenAI) -> openai.types.CreateEmbeddingResponse:
        return client.embeddings.create(model=EMBEDDING, input=["a cow", "a horse"])

    def as_numbers(client: openai.OpenAI) -> openai.types.CreateEmbeddingResponse:
        return client.embeddings.create(model=EMBEDDING, input="a cow", encoding_format="float")

    def packed(client: openai.OpenAI) -> openai.types.CreateEmbeddingResponse:
        return client.embeddings.create(model=EMBEDDING, input="a cow", encoding_format="base64", dimensions=64)

    usual, numbers, text = pair.same(embedded), pair.same(as_numbers), pair.same(packed)
    assert usual.data[0].embedding == pytest.approx(numbers.data[0].embedding, abs=1e-6)
    assert usual.data[0].embedding != usual.data[1].embedding
    assert len(usual.data[0].embedding) == 768
    raw = base64.b64decode(cast("str", text.data[0].embedding))
    assert len(struct.unpack("<64f", raw)) == 64


# -- models


def test_models(pair: Pair[openai.OpenAI]) -> None:
    listed = pair.same(lambda client: client.models.list().data)
    one = pair.same(lambda client: client.models.retrieve(CHAT))
    assert {CHAT, THINKING} <= {model.id for model in pair.through.models.list()}
    assert len(listed) >= 3
    assert one.owned_by == "library"


# -- errors

UNKNOWN: dict[str, Call] = {
    "chat": lambda client: client.chat.completions.create(model="cow", messages=HI),
    "streamed chat": lambda client: client.chat.completions.create(model="cow", messages=HI, stream=True),
    "completions": lambda client: client.completions.create(model="cow", prompt="hi"),
    "responses": lambda client: client.responses.create(model="cow", input="hi"),
    "embeddings": lambda client: client.embeddings.create(model="cow", input="hi"),
    "models": lambda client: client.models.retrieve("cow"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_unknown_model_is_404_in_ollamas_words(pair: Pair[openai.OpenAI], what: str) -> None:
    errors = [failure(UNKNOWN[what], openai.NotFoundError)(client) for client in (pair.through, pair.direct)]
    assert isinstance(errors[0], openai.NotFoundError)
    assert isinstance(errors[1], openai.NotFoundError)
    assert errors[0].body == errors[1].body
    assert errors[0].type == "not_found_error"
    assert "not found" in errors[0].message


REFUSED: dict[str, Call] = {
    "no messages": lambda client: client.chat.completions.create(model=CHAT, messages=[]),
    "an embedding model that should chat": lambda client: client.chat.completions.create(model=EMBEDDING, messages=HI),
    "nothing to embed": lambda client: client.embeddings.create(model=EMBEDDING, input=[]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_ollamas_own(pair: Pair[openai.OpenAI], what: str) -> None:
    errors = [failure(REFUSED[what], openai.BadRequestError)(client) for client in (pair.through, pair.direct)]
    assert isinstance(errors[0], openai.BadRequestError)
    assert isinstance(errors[1], openai.BadRequestError)
    assert errors[0].body == errors[1].body


# -- leaving


def test_a_stream_that_is_left_stops_the_replica(running: Stack, pair: Pair[openai.OpenAI]) -> None:
    with running.one_stream_is_aborted():
        stream = pair.through.chat.completions.create(model=CHAT, messages=HI, max_tokens=LONG, stream=True)
        assert next(iter(stream)).choices[0].delta.content
        stream.close()


def test_a_response_that_is_left_stops_the_replica(running: Stack, pair: Pair[openai.OpenAI]) -> None:
    talk = pair.through.responses.stream(model=CHAT, input="hi", max_output_tokens=LONG)
    with running.one_stream_is_aborted(), talk as events:
        assert any(event.type == "response.output_text.delta" for event in events)


async def test_an_asynchronous_stream_that_is_left_stops_the_replica(running: Stack) -> None:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        with running.one_stream_is_aborted():
            stream = await client.chat.completions.create(model=CHAT, messages=HI, max_tokens=LONG, stream=True)
            assert (await anext(aiter(stream))).choices[0].delta.content
            await stream.close()


async def test_a_cancelled_call_stops_the_replica(running: Stack) -> None:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        with running.one_stream_is_aborted():
            call = asyncio.ensure_future(client.chat.completions.create(model=CHAT, messages=HI, max_tokens=LONG))
            await asyncio.to_thread(until, lambda: running.total("active_streams") == 1, 5.0)
            call.cancel()
            await asyncio.wait([call])
    assert call.cancelled()


# -- asynchronous


async def test_the_asynchronous_client(running: Stack, pair: Pair[openai.OpenAI]) -> None:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        chat = await client.chat.completions.create(model=CHAT, messages=HI, max_tokens=12)
        assert plain(chat) == plain(pair.direct.chat.completions.create(model=CHAT, messages=HI, max_tokens=12))
        stream = await client.chat.completions.create(model=CHAT, messages=HI, max_tokens=12, stream=True)
        said = [choice.delta.content or "" async for piece in stream for choice in piece.choices]
        assert "".join(said) == chat.choices[0].message.content
        called = await client.chat.completions.create(model=CHAT, messages=HI, tools=[WEATHER])
        assert called.choices[0].finish_reason == "tool_calls"
        assert (await client.completions.create(model=CHAT, prompt="hi", max_tokens=12)).choices[0].text
        assert (await client.responses.create(model=CHAT, input="hi", max_output_tokens=12)).output_text
        assert len((await client.embeddings.create(model=EMBEDDING, input=["a", "b"])).data) == 2
        assert CHAT in [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(CHAT)).id == CHAT
        with pytest.raises(openai.NotFoundError, match="model 'cow' not found"):
            await client.chat.completions.create(model="cow", messages=HI)


async def test_concurrent_chats_are_spread_over_all_replicas(running: Stack) -> None:
    running.load_everywhere(CHAT)
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response
        answers = await asyncio.gather(*(raw.create(model=CHAT, messages=HI, max_tokens=600) for _ in range(6)))
    served: Iterable[str] = (answer.headers["x-corral-replica"] for answer in answers)
    assert sorted(served) == ["a", "a", "b", "b", "c", "c"]
    assert len({answer.parse().choices[0].message.content for answer in answers}) == 1
