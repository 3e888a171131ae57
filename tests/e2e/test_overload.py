"""More requests than slots and queue: refused at once and in words that clients know, while goodput keeps going."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleets import Fleet, fleet
from tests.e2e.processes import ask
from tests.e2e.shapes import ANTHROPIC, CHAT, GENERATE, OPENAI, STREAMS, WHOLE, Shape, Verdict
from tests.e2e.streaming import MODEL, SLOW, load_everywhere
from tests.e2e.traffic import Answer, Client, once

BUSY = "server busy, please try again.  maximum pending requests exceeded"
OTHER = "llama3.2:3b"


def assert_refused_as_busy(answer: Answer, shape: Shape) -> None:
    assert answer.status == 503
    assert int(answer.header("retry-after")) >= 1
    said: dict[str, Any] = json.loads(answer.body)
    if shape is OPENAI:
        assert said["error"]["message"] == BUSY
    elif shape is ANTHROPIC:
        assert (said["type"], said["error"]) == ("error", {"type": "overloaded_error", "message": BUSY})
    else:
        assert said == {"error": BUSY}


async def capacity_of(ports: Sequence[int], clients: int, tokens: int, seconds: float) -> int:
    """Answers in that time when as many clients as there are slots keep the replicas busy, without a gateway.

    One request alone says less: in a batch that runs, a new one begins with the next step.
    """
    until_s = time.monotonic() + seconds

    async def keep_busy(port: int) -> int:
        client, answered = Client(port), 0
        while time.monotonic() < until_s:
            answer = await client.ask(CHAT, MODEL, tokens=tokens)
            assert answer.verdict is Verdict.COMPLETE
            answered += time.monotonic() <= until_s
        client.close()
        return answered

    return sum(await asyncio.gather(*(keep_busy(port) for port in ports for _ in range(clients))))


@pytest.mark.alone
async def test_what_is_too_much_is_refused_fast_and_goodput_keeps_going(tmp_path: Path) -> None:
    """Eight slots, a queue of eight, and a hundred and sixty clients that come back again and again."""
    tokens, seconds = 10, 5.0
    refused_s: list[float] = []
    done: list[float] = []
    async with fleet(tmp_path, 2, *SLOW, slots=4, more="queue: {max_requests: 8}\n") as running:
        port = running.gateway.port
        await load_everywhere(running)
        capacity = await capacity_of(running.ports, 4, tokens, seconds)
        until_s = time.monotonic() + seconds

        async def insist(shape: Shape) -> None:
            client = Client(port)
            while time.monotonic() < until_s:
                answer = await client.ask(shape, MODEL, tokens=tokens)
                if answer.status == 200:
                    assert answer.verdict is Verdict.COMPLETE
                    done.append(time.monotonic())
                else:
                    assert_refused_as_busy(answer, shape)
                    refused_s.append(answer.first_byte_s)
                    await asyncio.sleep(0.5)  # a client that comes back much sooner than it was told to
            client.close()

        await asyncio.gather(*(insist((*STREAMS, WHOLE)[number % 5]) for number in range(160)))
        await running.gateway.until_idle()
        assert "Traceback" not in running.gateway.said()
    refused_s.sort()
    done = [instant_s for instant_s in done if instant_s <= until_s]
    median_s, slowest_s = refused_s[len(refused_s) // 2], refused_s[-1]
    print(  # noqa: T201
        f"\n{len(done)} answered, {len(done) / capacity:.0%} of capacity; {len(refused_s)} refused, "
        f"median {median_s * 1e3:.1f} ms, slowest {slowest_s * 1e3:.0f} ms"
    )
    assert len(done) >= 0.9 * capacity
    assert len(refused_s) > 3 * len(done)
    assert median_s < 0.05
    assert slowest_s < 1.0


@asynccontextmanager
async def one_slot_taken(folder: Path, more: str) -> AsyncIterator[Fleet]:
    """One replica with one slot a model; MODEL's is taken."""
    async with fleet(folder, 1, *SLOW, "--model", OTHER, slots=1, more=more) as running:
        client = Client(running.gateway.port)
        await client.send(CHAT.path, CHAT.body(MODEL, "hi", 10_000))
        await client.head()
        try:
            yield running
        finally:
            client.close()


async def test_who_waits_too_long_is_told_that_the_server_is_busy(tmp_path: Path) -> None:
    async with one_slot_taken(tmp_path, "queue: {max_wait_s: 0.5}\n") as running:
        asked = await asyncio.gather(*(once(running.gateway.port, shape, MODEL) for shape in STREAMS))
        for answer, shape in zip(asked, STREAMS, strict=True):
            assert_refused_as_busy(answer, shape)
            assert 0.5 <= answer.first_byte_s < 2


async def test_a_model_with_full_slots_and_a_full_queue_blocks_no_other(tmp_path: Path) -> None:
    async with one_slot_taken(tmp_path, "queue: {max_requests: 3}\n") as running:
        port = running.gateway.port
        waiting = [Client(port) for _ in range(3)]
        for client in waiting:
            await client.send(CHAT.path, CHAT.body(MODEL, "hi", 1))
        await running.gateway.until(lambda page: page["requests"]["queued"] == 3, 5, "a full queue")
        assert_refused_as_busy(await once(port, GENERATE, MODEL), GENERATE)
        other = await once(port, CHAT, OTHER, tokens=2)
        assert other.verdict is Verdict.COMPLETE
        assert other.seconds < 2
        assert await running.gateway.requests() == (1, 3)
        for client in waiting:
            client.close()


async def test_an_unknown_model_is_not_found_in_ollamas_own_words(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, *SLOW) as running:
        for shape in (*STREAMS, WHOLE):
            body = shape.body("nobody-has-this", "hi", 1)
            own = await ask(running.emulators[0].port, "POST", shape.path, body)
            through = await ask(running.gateway.port, "POST", shape.path, body)
            assert through[0] == own[0] == 404
            assert _without_id(through[1]) == _without_id(own[1])


def _without_id(page: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in page.items() if key != "request_id"}
