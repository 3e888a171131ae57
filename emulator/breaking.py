"""Answers that break while the model runs: how each ordered fault shows on the wire."""

from __future__ import annotations

import os
import time

from corral.emulator.ask import Ask
from corral.emulator.dialects.base import JSON, PLAIN_JSON, Dialect
from corral.emulator.dialects.native import Native
from corral.emulator.generation import LOST, LOST_LEGACY, Generation
from corral.emulator.rig import Rig
from corral.emulator.runner import Runner
from corral.emulator.text import stamp
from corral.emulator.wire import framed


def show_error(generation: Generation, ask: Ask, dialect: Dialect, message: str) -> None:
    """A failure of the model: with its status before the first byte, in the dialect's way after it."""
    exchange = generation.exchange
    if exchange.started:
        exchange.send(dialect.broken(message) + b"0\r\n\r\n")
        exchange.finish()
        return
    content_type = PLAIN_JSON if ask.stream or not isinstance(dialect, Native) else JSON
    exchange.answer(500, dialect.error(500, message), content_type)


async def strike(generation: Generation, ask: Ask, runner: Runner, dialect: Dialect, rig: Rig) -> None:
    """Carry out the generation's fault; for some kinds this never returns before the client leaves."""
    fault = generation.struck
    assert fault is not None
    exchange, connection = generation.exchange, generation.exchange.connection
    lost = LOST_LEGACY if rig.machine.spec.legacy else LOST
    match fault.kind:
        case "crash-process":
            os._exit(1)
        case "crash-runner":
            rig.crash(runner, lost)
            show_error(generation, ask, dialect, lost)
        case "oom":
            rig.out_of_memory()
            message = "an error was encountered while running the model: CUDA error: out of memory"
            show_error(generation, ask, dialect, message)
        case "error-mid-stream":
            show_error(generation, ask, dialect, lost)
        case "end-without-done" if ask.stream:
            generation.begin()
            exchange.end()
        case "end-without-done":
            _end_whole_undone(generation, dialect)
        case _:
            _break_body(generation, ask, dialect)
            if fault.kind == "reset-mid-stream":
                connection.reset()
            elif fault.kind == "hang-mid-stream":
                await rig.loop.create_future()
            else:
                connection.close()


def _end_whole_undone(generation: Generation, dialect: Dialect) -> None:
    body = dialect.whole(generation.result(), stamp(time.time_ns()))
    undone = body.replace(b'"done":true', b'"done":false', 1)
    generation.exchange.answer(200, undone, JSON if isinstance(dialect, Native) else PLAIN_JSON)


def _break_body(generation: Generation, ask: Ask, dialect: Dialect) -> None:
    """Part of a chunk (or of a sized body), so that the end cannot look clean."""
    exchange = generation.exchange
    fault = generation.struck
    if ask.stream:
        generation.begin()
        next_piece = dialect.text(b"interrupted", stamp(time.time_ns()), None)
        broken = b"zz\r\n" + next_piece if fault is not None and fault.kind == "bad-chunk" else next_piece[:-9]
        exchange.send(broken)
    else:
        body = dialect.whole(generation.result(), stamp(time.time_ns()))
        framing = b"Content-Length: %d" % len(body)
        if fault is not None and fault.kind == "bad-chunk":
            framing, body = b"Transfer-Encoding: chunked", b"zz\r\n" + framed(body)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n" + framing + b"\r\n\r\n"
        exchange.send(head + body[: len(body) // 2])
