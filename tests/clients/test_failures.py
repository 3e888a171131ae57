"""Where a replica fails, every client library raises: no broken answer looks like a whole one."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest
from anthropic.types import MessageParam
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.conftest import CHAT, SPEED
from tests.clients.processes import Stack, stack, until

BUSY = "server busy, please try again.  maximum pending requests exceeded"
RAISED = (ollama.ResponseError, openai.OpenAIError, anthropic.AnthropicError, httpx.HTTPError, httpx2.HTTPError)
"""What these libraries raise: their own errors, and those of the HTTP library below where the answer was cut."""

HI = [{"role": "user", "content": "Why is the sky blue?"}]
OPENAI_HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why is the sky blue?"}]
ANTHROPIC_HI: list[MessageParam] = [{"role": "user", "content": "Why is the sky blue?"}]
TOKENS = 40


@dataclass(frozen=True, slots=True)
class Libraries:
    """The three libraries pointed at one gateway; they try once."""

    url: str
    ollama_client: ollama.Client
    openai_client: openai.OpenAI
    anthropic_client: anthropic.Anthropic


@contextmanager
def libraries(url: str) -> Iterator[Libraries]:
    with (
        ollama.Client(url) as one,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as two,
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as three,
    ):
        yield Libraries(url, one, two, three)


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("failing"), ("--model", CHAT, *SPEED)) as started:
        yield started


@pytest.fixture(scope="module")
def clients(failing: Stack) -> Iterator[Libraries]:
    with libraries(failing.url) as made:
        yield made


@pytest.fixture(autouse=True)
def faultless(failing: Stack) -> Iterator[None]:
    """Faults are of one test only, and none leaves anything in flight."""
    yield
    failing.clear_faults()
    until(failing.at_rest, within_s=2.0)


# -- streams: each says its texts into the list, so that the test knows what came before the error

Say = Callable[[str | None], None]


def ollama_chat(clients: Libraries, say: Say) -> None:
    for piece in clients.ollama_client.chat(CHAT, HI, options={"num_predict": TOKENS}, stream=True):
        say(piece.message.content)


def ollama_generate(clients: Libraries, say: Say) -> None:
    for piece in clients.ollama_client.generate(CHAT, "hi", options={"num_predict": TOKENS}, stream=True):
        say(piece.response)


def openai_chat(clients: Libraries, say: Say) -> None:
    for piece in clients.openai_client.chat.completions.create(
        model=CHAT, messages=OPENAI_HI, max_tokens=TOKENS, stream=True
    ):
        say(piece.choices[0].delta.content)


def openai_completions(clients: Libraries, say: Say) -> None:
    for piece in clients.openai_client.completions.create(model=CHAT, prompt="hi", max_tokens=TOKENS, stream=True):
        say(piece.choices[0].text)


def openai_responses(clients: Libraries, say: Say) -> None:
    for event in clients.openai_client.responses.create(model=CHAT, input="hi", max_output_tokens=TOKENS, stream=True):
        if event.type == "response.output_text.delta":
            say(event.delta)


def anthropic_events(clients: Libraries, say: Say) -> None:
    for event in clients.anthropic_client.messages.create(
        model=CHAT, messages=ANTHROPIC_HI, max_tokens=TOKENS, stream=True
    ):
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            say(event.delta.text)


def anthropic_text(clients: Libraries, say: Say) -> None:
    with clients.anthropic_client.messages.stream(model=CHAT, messages=ANTHROPIC_HI, max_tokens=TOKENS) as stream:
        for text in stream.text_stream:
            say(text)
        stream.get_final_message()


def ollama_async(clients: Libraries, say: Say) -> None:
    async def talk() -> None:
        async with ollama.AsyncClient(clients.url) as client:
            async for piece in await client.chat(CHAT, HI, options={"num_predict": TOKENS}, stream=True):
                say(piece.message.content)

    asyncio.run(talk())


def openai_async(clients: Libraries, say: Say) -> None:
    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=f"{clients.url}/v1", api_key="none", max_retries=0) as client:
            async for piece in await client.chat.completions.create(
                model=CHAT, messages=OPENAI_HI, max_tokens=TOKENS, stream=True
            ):
                say(piece.choices[0].delta.content)

    asyncio.run(talk())


def anthropic_async(clients: Libraries, say: Say) -> None:
    async def talk() -> None:
        client = anthropic.AsyncAnthropic(base_url=clients.url, api_key="none", max_retries=0)
        asked = client.messages.stream(model=CHAT, messages=ANTHROPIC_HI, max_tokens=TOKENS)
        async with client, asked as stream:
            async for text in stream.text_stream:
                say(text)
            await stream.get_final_message()

    asyncio.run(talk())


STREAMS = {
    talk.__name__: talk
    for talk in (
        *(ollama_chat, ollama_generate, ollama_async, openai_chat, openai_completions, openai_responses),
        *(openai_async, anthropic_events, anthropic_text, anthropic_async),
    )
}
BREAKS = ("error-mid-stream", "end-without-done", "reset-mid-stream", "truncate", "bad-chunk", "crash-runner", "oom")


@pytest.mark.parametrize("talk", STREAMS)
def test_a_whole_stream_raises_nothing(clients: Libraries, talk: str) -> None:
    heard: list[str] = []
    STREAMS[talk](clients, lambda text: heard.append(text or ""))
    assert len([text for text in heard if text]) == TOKENS


@pytest.mark.parametrize("kind", BREAKS)
@pytest.mark.parametrize("talk", STREAMS)
def test_a_stream_that_breaks_raises_after_what_was_said(
    failing: Stack, clients: Libraries, talk: str, kind: str
) -> None:
    failing.fault(kind, after=3)
    heard: list[str] = []
    with pytest.raises(RAISED):
        STREAMS[talk](clients, lambda text: heard.append(text or ""))
    assert 1 <= len([text for text in heard if text]) <= 4


# -- whole answers

WHOLE: dict[str, Callable[[Libraries], object]] = {
    "ollama chat": lambda clients: clients.ollama_client.chat(CHAT, HI, options={"num_predict": TOKENS}),
    "ollama generate": lambda clients: clients.ollama_client.generate(CHAT, "hi", options={"num_predict": TOKENS}),
    "openai chat": lambda clients: clients.openai_client.chat.completions.create(
        model=CHAT, messages=OPENAI_HI, max_tokens=TOKENS
    ),
    "openai responses": lambda clients: clients.openai_client.responses.create(
        model=CHAT, input="hi", max_output_tokens=TOKENS
    ),
    "anthropic": lambda clients: clients.anthropic_client.messages.create(
        model=CHAT, messages=ANTHROPIC_HI, max_tokens=TOKENS
    ),
}


@pytest.mark.parametrize(
    "kind", ["crash-runner", "reset-mid-stream", "truncate", "bad-chunk", "reset", "nonsense-head"]
)
@pytest.mark.parametrize("what", WHOLE)
def test_an_answer_that_breaks_on_every_replica_raises(
    failing: Stack, clients: Libraries, what: str, kind: str
) -> None:
    failing.fault(kind, count=None, after=3)
    with pytest.raises(RAISED):
        WHOLE[what](clients)
    assert failing.total("faults_hit") == len(failing.replicas)


@pytest.fixture(scope="module")
def rotating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Replicas that get requests in turn, so that a broken one is met for sure."""
    policy = "policy: {name: round-robin}\n"
    with stack(tmp_path_factory.mktemp("rotating"), ("--model", CHAT, *SPEED), more=policy) as started:
        yield started
        assert all(replica["health"] == "up" for replica in started.snapshot()["replicas"])


@pytest.mark.parametrize("kind", ["crash-runner", "truncate", "reset", "busy", "nonsense-head"])
def test_no_client_notices_two_broken_replicas_while_a_third_answers(rotating: Stack, kind: str) -> None:
    broken = rotating.replicas[:2]
    for replica in broken:
        replica.clear_faults()
        replica.fault(kind, after=3)
    with libraries(rotating.url) as clients:
        for what in (*WHOLE, "ollama chat"):
            WHOLE[what](clients)
    assert [replica.stats()["faults_hit"] for replica in broken] == [1, 1]


# -- busy


def test_a_replicas_own_busy_reaches_the_client_when_all_are(failing: Stack, clients: Libraries) -> None:
    failing.fault("busy", count=None)
    with pytest.raises(ollama.ResponseError) as native:
        WHOLE["ollama chat"](clients)
    assert (native.value.status_code, native.value.error) == (503, BUSY)
    with pytest.raises(openai.InternalServerError, match="server busy") as other:
        WHOLE["openai chat"](clients)
    assert other.value.status_code == 503
    with pytest.raises(anthropic.APIStatusError, match="server busy") as third:
        WHOLE["anthropic"](clients)
    assert third.value.status_code == 503


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One slot that is taken, and a queue of one that is full."""
    folder = tmp_path_factory.mktemp("crowded")
    queue = "queue: {max_requests: 1}\ntimeouts: {drain_s: 0}\n"
    options = ("--model", CHAT, "--context-length", "4096", "--load-seconds", "0.1", "--rate", "20")
    with stack(folder, options, gpus=("RTX 4090 24GB",), slots=1, more=queue) as started, _asked(started) as first:
        first.getresponse()
        with _asked(started):
            until(lambda: started.snapshot()["requests"]["queued"] == 1, within_s=5.0)
            yield started


@contextmanager
def _asked(target: Stack) -> Iterator[http.client.HTTPConnection]:
    """A connection that has asked for a long answer."""
    connection = http.client.HTTPConnection(urlsplit(target.url).netloc, timeout=30)
    body = {"model": CHAT, "messages": HI, "options": {"num_predict": 2_000}}
    connection.request("POST", "/api/chat", json.dumps(body))
    try:
        yield connection
    finally:
        connection.close()


def test_a_full_queue_is_503_with_retry_after_for_each_client(crowded: Stack) -> None:
    waits: list[str] = []

    def note(response: httpx.Response) -> None:
        waits.append(response.headers["retry-after"])

    with ollama.Client(crowded.url, event_hooks={"response": [note]}) as client:
        with pytest.raises(ollama.ResponseError) as native:
            client.chat(CHAT, HI)
        assert (native.value.status_code, native.value.error) == (503, BUSY)
    with libraries(crowded.url) as clients:
        with pytest.raises(openai.InternalServerError, match="server busy") as other:
            WHOLE["openai chat"](clients)
        with pytest.raises(anthropic.APIStatusError, match="server busy") as third:
            WHOLE["anthropic"](clients)
    assert other.value.status_code == third.value.status_code == 503
    assert other.value.type == "api_error"
    assert "overloaded_error" in str(third.value.body)
    waits += [error.value.response.headers["retry-after"] for error in (other, third)]
    assert all(int(wait) >= 1 for wait in waits)
    assert len(waits) == 3
