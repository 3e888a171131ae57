"""Three replicas that run a real small model answer through the gateway: real text, spread over all three."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import anthropic
import httpx
import ollama
import openai
import pytest

from tests.clients.processes import Stack, stack
from tests.emulator.gguf import needs_engine, smollm2

MODEL = "smollm2:135m"
FRANCE, MOON = "Complete the sentence: The capital of France is", "Tell me about the moon."
QUESTIONS = (
    *(FRANCE, MOON, "What is water made of?"),
    *("Write one sentence about the sea.", "How do plants grow?", "What is a dog?"),
)
TOKENS = 24
GREEDY = {"num_predict": TOKENS, "temperature": 0.0}
SEEDED = {"num_predict": TOKENS, "temperature": 0.8, "seed": 7}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One slot and one thread a replica: what a question is answered with depends on no other question."""
    needs_engine()
    engine = ("--engine", "llamacpp", "--gguf", str(smollm2()), "--threads", "1")
    options = (*engine, "--model", MODEL, "--context-length", "1024", "--speed", "50")
    with stack(tmp_path_factory.mktemp("real"), options, slots=1) as started:
        yield started
        assert started.at_rest()


async def asked(
    client: ollama.AsyncClient, questions: tuple[str, ...], options: dict[str, float], *, stream: bool
) -> list[str]:
    """All questions at once."""

    async def one(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        if not stream:
            return (await client.chat(MODEL, messages, options=options)).message.content or ""
        pieces = await client.chat(MODEL, messages, options=options, stream=True)
        return "".join([piece.message.content or "" async for piece in pieces])

    return await asyncio.gather(*(one(question) for question in questions))


@pytest.fixture(scope="module")
def own_answers(real: Stack) -> dict[str, str]:
    """What one replica itself answers."""
    with ollama.Client(real.replicas[0].url) as client:
        return {
            question: client.chat(MODEL, [{"role": "user", "content": question}], options=GREEDY).message.content or ""
            for question in QUESTIONS
        }


def is_plausible(text: str) -> bool:
    """English as far as a rule can tell: ASCII words, some of them among the commonest."""
    words = re.findall(r"[a-z']+", text.lower())
    return text.isascii() and len(words) >= 4 and bool({"the", "a", "is", "of", "and", "to", "in"} & set(words))


@pytest.mark.parametrize("stream", [False, True])
async def test_concurrent_chats_are_spread_over_all_replicas_and_say_what_one_says(
    real: Stack, own_answers: dict[str, str], stream: bool
) -> None:
    served: list[str] = []

    async def note(response: httpx.Response) -> None:
        served.append(response.headers["x-corral-replica"])

    before = [replica.stats()["tokens"] for replica in real.replicas]
    async with ollama.AsyncClient(real.url, event_hooks={"response": [note]}) as client:
        answers = await asked(client, QUESTIONS, GREEDY, stream=stream)
    assert set(served) == {"a", "b", "c"}
    made = [replica.stats()["tokens"] - tokens for replica, tokens in zip(real.replicas, before, strict=True)]
    assert all(tokens > 0 for tokens in made)
    assert dict(zip(QUESTIONS, answers, strict=True)) == own_answers
    assert all(map(is_plausible, answers)), answers
    assert "Paris" in answers[QUESTIONS.index(FRANCE)]


async def test_a_seed_gives_one_answer_on_every_replica(real: Stack) -> None:
    async with ollama.AsyncClient(real.url) as client:
        answers = await asked(client, (MOON,) * 6, SEEDED, stream=False)
    assert len(set(answers)) == 1
    assert is_plausible(answers[0]), answers[0]


def test_each_library_streams_the_same_words(real: Stack, own_answers: dict[str, str]) -> None:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0) as client:
        chunks = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": FRANCE}],
            temperature=0,
            max_tokens=TOKENS,
            stream=True,
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == own_answers[FRANCE]
    with anthropic.Anthropic(base_url=real.url, api_key="none", max_retries=0) as other:
        asked_for = other.messages.stream(
            model=MODEL,
            messages=[{"role": "user", "content": FRANCE}],
            extra_body={"temperature": 0},
            max_tokens=TOKENS,
        )
        with asked_for as stream:
            assert "".join(stream.text_stream) == own_answers[FRANCE]
