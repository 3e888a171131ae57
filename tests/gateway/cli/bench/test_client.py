"""Requests to servers that answer as no Ollama does: each is counted for what it is, and none is believed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

import aiohttp
import pytest

from corral.errors import OperatorError
from corral.gateway.cli.bench.client import Question, Target
from corral.gateway.cli.bench.machine import a_model, about
from corral.gateway.cli.bench.record import Ending

QUESTION = Question("m:1", 20, 8)
LINES = b'{"response":"a"}\n{"response":"","done":true,"prompt_eval_count":20,"eval_count":2}\n'


def answer(status: str, body: bytes, *heads: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *heads, "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def target(said: bytes, *, sock_read_s: float = 5.0) -> AsyncIterator[tuple[Target, list[bytes]]]:
    """A server that says this to whatever it is asked, and closes; and the heads that it was sent."""
    asked: list[bytes] = []

    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        with suppress(ConnectionError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(said)
            if not said:
                await reader.read()
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    timeout = aiohttp.ClientTimeout(sock_read=sock_read_s)
    async with server:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            port = server.sockets[0].getsockname()[1]
            yield Target(f"http://127.0.0.1:{port}", session, time.perf_counter), asked
        await asyncio.gather(*served)


async def test_a_whole_answer_is_one_with_who_gave_it() -> None:
    async with target(answer("200 OK", LINES, "x-corral-replica: gpu1")) as (asked, heads):
        record = await asked.ask(QUESTION, Random(1), "somebody")
    assert (record.ending, record.output_tokens, record.replica) == (Ending.OK, 2, "gpu1")
    assert record.first_s is not None
    assert record.sent_s <= record.first_s <= record.end_s
    assert b"Authorization: Bearer somebody\r\n" in heads[0]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer("302 Found", b"", "Location: http://192.0.2.1/"), "status 302"),
        (answer("404 Not Found", b'{"error":"model not found"}'), "status 404"),
        (answer("200 OK", LINES[:20]), "not Ollama's format"),
        (answer("200 OK", LINES, length=999), "not completed"),
        (answer("200 OK", b"<html>welcome</html>\n"), "not Ollama's format"),
        (answer("200 OK", b"x" * (3 << 20)), "line too long"),
        (answer("200 OK", LINES, "x: " + "y" * 100_000), ""),
        (b"220 mail.example ESMTP\r\n", ""),
    ],
)
async def test_all_else_is_an_error_told_by_what_it_was(said: bytes, why: str) -> None:
    async with target(said) as (asked, heads):
        record = await asked.ask(QUESTION, Random(1))
    assert record.ending is Ending.ERROR
    assert why in record.why
    assert record.why
    assert len(heads) == 1  # nothing is followed, nothing asked twice


async def test_one_that_says_nothing_is_given_up() -> None:
    async with target(b"", sock_read_s=0.1) as (asked, _):
        record = await asked.ask(QUESTION, Random(1))
    assert (record.ending, record.why) == (Ending.ERROR, "nothing came in time")


async def test_a_refusal_tells_how_long_to_wait() -> None:
    async with target(answer("503 Service Unavailable", b'{"error":"busy"}', "Retry-After: 7")) as (asked, _):
        record = await asked.ask(QUESTION, Random(1))
    assert (record.ending, record.retry_after_s) == (Ending.REFUSED, 7.0)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"[" * 100_000, b"\xff"])
async def test_a_page_that_is_none_is_told(body: bytes) -> None:
    async with target(answer("200 OK", body)) as (asked, _):
        with pytest.raises(OperatorError, match="is it a Corral, or an Ollama"):
            await about(asked)


async def test_names_of_models_that_are_none_are_passed_over() -> None:
    models = [{"name": 7}, "x", {"name": "nomic-embed-text:latest"}, {"name": "m:1"}]
    async with target(answer("200 OK", json.dumps({"models": models}).encode())) as (asked, _):
        assert await a_model([asked]) == "m:1"
    async with target(answer("200 OK", b'{"models": 7}')) as (asked, _):
        with pytest.raises(OperatorError, match="no model to ask is installed"):
            await a_model([asked])


async def test_a_load_that_is_refused_is_told_in_the_servers_words() -> None:
    async with target(answer("500 Internal Server Error", b'{"error":"out of memory"}')) as (asked, _):
        with pytest.raises(OperatorError, match="would not load m:1: out of memory"):
            await asked.load("m:1")
