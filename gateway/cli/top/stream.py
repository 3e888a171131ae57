"""Follows the admin port's ``/live``, and begins anew when it breaks off."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final, NamedTuple

import aiohttp

from corral.gateway.cli.events import Events

BACKLOG: Final = 200
"""Requests and lines that are shown from before."""
SILENT_S: Final = 5.0
"""A stream that says nothing for so long has broken off: it has a snapshot twice a second."""
CONNECT_S: Final = 5.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 8.0


class Broken(NamedTuple):
    """Why there is no stream now, and when it is tried again."""

    why: str
    again_in_s: float


class Reader:
    """Tells of each event, of each beginning (what comes then repeats what came before), and of each end."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        admin: str,
        *,
        begun: Callable[[], None],
        take: Callable[[str, dict[str, Any]], None],
        broken: Callable[[Broken], None],
        rng: Random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._session = session
        self._url = f"{admin}/live?n={BACKLOG}"
        self._begun = begun
        self._take = take
        self._broken = broken
        self._rng = rng
        self._sleep = sleep
        self._failures = 0

    async def run(self) -> None:
        """For ever."""
        while True:
            why = await self._until_broken()
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**self._failures) * (0.75 + self._rng.random() / 2)
            self._failures = min(self._failures + 1, 10)
            self._broken(Broken(why, pause_s))
            await self._sleep(pause_s)

    async def _until_broken(self) -> str:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
        try:
            async with self._session.get(self._url, timeout=limits) as answer:
                if answer.status != 200 or answer.content_type != "text/event-stream":
                    return f"it answers {answer.status} {answer.reason or ''}".rstrip()
                await self._follow(answer.content)
                return "the gateway ended"
        except TimeoutError:
            return f"silent for {SILENT_S:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _why(error)

    async def _follow(self, content: aiohttp.StreamReader) -> None:
        events = Events()
        self._begun()
        async for piece in content.iter_any():
            for kind, data in events.feed(piece):
                self._failures = 0
                self._take(kind, data)


def _why(error: Exception) -> str:
    inner = getattr(error, "os_error", None) or error
    number = getattr(inner, "errno", None)
    return (os.strerror(number) if number else str(inner) or type(inner).__name__).split("\n")[0].lower()
