"""Answers that are broken from their first byte."""

from __future__ import annotations

import asyncio

from corral.emulator.dialects import anthropic, openai
from corral.emulator.dialects.base import JSON
from corral.emulator.dialects.native import error_body
from corral.emulator.faults import Fault
from corral.emulator.machine import BUSY
from corral.emulator.wire import Exchange

_DRIBBLE_S = 0.1
_FLOOD = 10_000


async def break_answer(exchange: Exchange, fault: Fault) -> None:
    """Answer (or not) as the fault says; returns when there is nothing more to send."""
    connection = exchange.connection
    match fault.kind:
        case "reset":
            connection.reset()
        case "busy":
            exchange.answer(503, _busy_body(exchange.path), JSON)
        case "nonsense-head":
            exchange.send(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\r\n")
            connection.close()
        case "double-content-length":
            exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\n{}{}")
            await _hang()
        case "oversized-head":
            exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Long: " + b"a" * (1 << 20) + b"\r\n\r\n{}")
            exchange.finish()
        case "early-hints-flood":
            exchange.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n" * _FLOOD)
            await _hang()
        case "slow-loris":
            await _dribble(exchange)
        case _:
            await _hang()


async def _dribble(exchange: Exchange) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n":
        exchange.send(bytes([byte]))
        await asyncio.sleep(_DRIBBLE_S)
    while True:
        exchange.send(b"x")
        await asyncio.sleep(_DRIBBLE_S)


async def _hang() -> None:
    """Until the client goes away, which cancels this."""
    await asyncio.get_running_loop().create_future()


def _busy_body(path: str) -> bytes:
    if path == "/v1/messages":
        return anthropic.error_body(503, BUSY, "req_" + "0" * 24)
    return openai.error_body(503, BUSY) if path.startswith("/v1/") else error_body(BUSY)
