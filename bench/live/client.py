"""Sends requests when they are due, whatever became of those before, and notes when tokens come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import cast

import msgspec

from bench.live.replica import TOLD_BYTES
from corral.emulator.prefix import BYTES_PER_TOKEN
from corral.laboratory.types import Arrival, Outcome
from corral.laboratory.workloads import BLOCK_TOKENS

LEAD_S = 0.2
"""Before the first request is due."""
_TIMER_S = 0.001
"""Timers of the loop end up to that much late."""
_TOKEN, _LAST, _END = b'"done":false', b'"done":true', b"\r\n0\r\n\r\n"
_TAIL_BYTES = 2048
"""The final line fits."""


@dataclass(slots=True)
class Load:
    """What became of the requests, in seconds of the emulated machines, and how late they were sent."""

    outcomes: list[Outcome]
    late_s: list[float] = field(default_factory=list)
    """Seconds of the emulated machines."""


class _Answer(asyncio.Protocol):
    """One request and its answer on a connection of its own."""

    def __init__(self, request: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._request = request
        self._loop = loop
        self._seen = b""
        self._transport: asyncio.Transport | None = None
        self.first_s: float | None = None
        self.ended: asyncio.Future[float] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none by inheritance
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._seen = (self._seen + data)[-_TAIL_BYTES:]
        if self.first_s is None and _TOKEN in self._seen:
            self.first_s = self._loop.time()
        if self._seen.endswith(_END) and _LAST in self._seen:
            if not self.ended.done():
                self.ended.set_result(self._loop.time())
            self.hang_up()

    def connection_lost(self, error: Exception | None) -> None:
        """An answer that is none, a refusal for instance, ends when the other side or the patience does."""
        if not self.ended.done():
            self.ended.set_exception(ConnectionError(self._seen[:200].decode("latin-1")))

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def send(arrivals: Sequence[Arrival], port: int, speed: float, patience_s: float) -> Load:
    """Play them all; times begin where the first arrival's does. ``patience_s``: of the emulated machines."""
    loop = asyncio.get_running_loop()
    load = Load([Outcome(arrival) for arrival in arrivals])
    bodies = [request_of(arrival) for arrival in arrivals]
    began_s = loop.time() + LEAD_S - arrivals[0].at_s / speed

    async def one(outcome: Outcome, request: bytes) -> None:
        due_s = began_s + outcome.arrival.at_s / speed
        await asyncio.sleep(max(0.0, due_s - loop.time() - _TIMER_S))
        load.late_s.append((loop.time() - due_s) * speed)
        outcome.sent_s, outcome.attempts = (loop.time() - began_s) * speed, 1
        answer: _Answer | None = None
        try:
            async with asyncio.timeout(patience_s / speed):
                _, answer = await loop.create_connection(lambda: _Answer(request, loop), "127.0.0.1", port)
                outcome.end_s = (await answer.ended - began_s) * speed
                outcome.ok = True
        except OSError:  # a time-out is one, too
            outcome.end_s = (loop.time() - began_s) * speed
        if answer is not None:
            answer.hang_up()
            if answer.first_s is not None:
                outcome.first_token_s = (answer.first_s - began_s) * speed

    async with asyncio.TaskGroup() as group:
        for outcome, request in zip(load.outcomes, bodies, strict=True):
            group.create_task(one(outcome, request))
    return load


# -- requests ---------------------------------------------------------------------------------------------------------


def request_of(arrival: Arrival) -> bytes:
    """Raw, so that the prompt is the text and nothing else, and the final line repeats none of it."""
    body = msgspec.json.encode({"model": arrival.model, "prompt": text_of(arrival), "raw": True})
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def text_of(arrival: Arrival) -> str:
    """As many tokens as it says; two prompts are alike as far as their first blocks are, and hardly a byte further."""
    whole = BLOCK_TOKENS * BYTES_PER_TOKEN
    size = arrival.prompt_tokens * BYTES_PER_TOKEN
    blocks = "".join(_filled(str(block), whole) for block in arrival.blocks)[: size - TOLD_BYTES]
    own = _filled(f"own {arrival.number}", max(0, size - TOLD_BYTES - len(blocks)))
    return blocks + own + str(arrival.output_tokens).rjust(TOLD_BYTES)


def _filled(name: str, size: int) -> str:
    digest = blake2b(name.encode(), digest_size=32).hexdigest()
    return (digest * (size // len(digest) + 1))[:size]
