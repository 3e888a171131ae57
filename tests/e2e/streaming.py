"""Streams that a test holds open while something happens to the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.e2e.fleets import Fleet
from tests.e2e.shapes import CHAT, STREAMS, Shape, Verdict
from tests.e2e.traffic import Client, once

MODEL = "llama3.2:1b"
SLOW = ("--model", MODEL, "--rate", "40", "--load-seconds", "0.05", "--parallel", "8", "--context-length", "4096")
"""A stream of 40 tokens lasts a second."""


class Open:
    """A stream that has begun: its head was read."""

    def __init__(self, port: int, shape: Shape, tokens: int) -> None:
        self.client = Client(port)
        self.shape = shape
        self.tokens = tokens
        self.replica = ""
        self._headers: dict[str, str] = {}

    async def begin(self) -> Open:
        await self.client.send(self.shape.path, self.shape.body(MODEL, "hi", self.tokens))
        status, self._headers = await asyncio.wait_for(self.client.head(), 20)
        assert status == 200
        self.replica = self._headers["x-corral-replica"]
        return self

    async def end(self, within_s: float = 30) -> tuple[Verdict, bool]:
        """How it ends, in words and in bytes."""
        body, ended = await asyncio.wait_for(self.client.rest(self._headers), within_s)
        self.client.close()
        return self.shape.read(body)[1], ended


WHOLE_AND_SAID = (Verdict.COMPLETE, True)
BROKEN_AND_SAID = (Verdict.ERROR, True)


async def streams(port: int, tokens: int, shapes: Sequence[Shape] = STREAMS) -> list[Open]:
    """One stream of each dialect, all begun."""
    return list(await asyncio.gather(*(Open(port, shape, tokens).begin() for shape in shapes)))


async def load_everywhere(running: Fleet) -> None:
    """Every replica holds the model in its memory, and the gateway knows."""
    for each in running.emulators:
        await once(each.port, CHAT, MODEL, tokens=1)
    await running.gateway.until(lambda page: all(each["loaded"] for each in page["replicas"]), 5, "loaded models")
