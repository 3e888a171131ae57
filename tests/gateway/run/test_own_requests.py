"""The gateway's own requests, answered in ways that the emulator never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from corral.gateway.run.own_requests import OwnRequests, Trouble
from corral.probes.ollama import probe_session

EMBEDS_ONLY = b'{"error":"\\"m\\" does not support generate"}'


def head(status: bytes, length: int) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, length)


@asynccontextmanager
async def answering(*answers: Sequence[bytes]) -> AsyncIterator[OwnRequests]:
    """One answer for each request, each in pieces that do not come at once."""
    left = list(answers)
    ended = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # whoever asked may have heard enough
            await answer(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        ended.release()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in asked.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        for piece in left.pop(0):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, probe_session() as session:
        yield OwnRequests(session, "127.0.0.1", server.sockets[0].getsockname()[1])
        for _ in answers:
            await ended.acquire()


async def test_an_error_that_comes_in_pieces_is_understood() -> None:
    refused = (head(b"400 Bad Request", len(EMBEDS_ONLY)) + EMBEDS_ONLY[:12], EMBEDS_ONLY[12:])
    async with answering(refused, (head(b"200 OK", 2), b"{}")) as requests:
        assert await requests.load("m") is False


async def test_an_answer_that_breaks_off_is_no_load() -> None:
    async with answering((head(b"200 OK", 100), b"{")) as requests:
        with pytest.raises(Trouble):
            await requests.load("m")


async def test_an_answer_without_an_end_is_not_read_to_it() -> None:
    piece = b"x" * (1 << 20)
    async with answering((head(b"500 Oops", 1 << 40), piece, piece)) as requests:
        with pytest.raises(Trouble, match="nonsense answer"):
            await requests.load("m")


async def test_another_address_is_not_followed() -> None:
    moved = b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with answering((moved,)) as requests:
        with pytest.raises(Trouble, match="nonsense answer"):
            await requests.load("m")
