"""Made-up clients for the demo, in a process of their own: ``python -m corral.gateway.cli.demo_load URL RATE MODEL…``.

It ends when its standard input closes, so that even a killed demo leaves none behind.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from types import TracebackType
from typing import Any, Final, Self

MODULE: Final = "corral.gateway.cli.demo_load"
MOST: Final = 200
"""Requests at a time; what comes meanwhile is left out."""
TENANTS: Final = ("alice", "bob", "nightly")
WORDS: Final = ("why", "is", "the", "sky", "blue", "and", "water", "wet", "at", "night")
END_S: Final = 2.0
EMBEDS: Final = "minilm"


class DemoLoad:
    """A context: once :meth:`start` was called, the clients ask until it ends."""

    def __init__(self, rate: float, models: Sequence[str]) -> None:
        self._rate = rate
        self._models = models
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, url: str) -> None:
        line = [sys.executable, "-m", MODULE, url, f"{self._rate:g}", *self._models]
        quiet = subprocess.DEVNULL
        self._child = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        child = self._child
        if child is None:
            return
        if child.stdin is not None:
            child.stdin.close()
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def request(models: Sequence[str], rng: Random) -> tuple[str, dict[str, Any], str]:
    """Path, body and tenant of one: mostly short chats, now and then a long one, some embeddings."""
    model = models[min(int(rng.expovariate(1.2)), len(models) - 1)]
    words = " ".join(rng.choices(WORDS, k=min(1 + int(rng.expovariate(1 / 60)), 800)))
    tenant = rng.choice(TENANTS)
    if EMBEDS in model:
        return "/api/embed", {"model": model, "input": [words] * rng.randint(1, 16)}, tenant
    length = min(8 + int(rng.expovariate(1 / 120)), 600)
    asked = [{"role": "user", "content": words}]
    return "/api/chat", {"model": model, "messages": asked, "options": {"num_predict": length}}, tenant


async def ask_on(
    url: str, rate: float, models: Sequence[str], rng: Random, sleep: Callable[[float], Any] = asyncio.sleep
) -> None:
    """Send ``rate`` requests a second, at moments that know nothing of each other, until cancelled."""
    import aiohttp

    limits = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=limits, timeout=aiohttp.ClientTimeout()) as session, _Group() as group:
        while True:
            await sleep(rng.expovariate(rate))
            if len(group) < MOST:
                group.add(_ask(session, url, *request(models, rng)))


class _Group:
    """Tasks that end with it, whatever becomes of each."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(session: Any, url: str, path: str, body: dict[str, Any], tenant: str) -> None:
    """One request, its answer read to the end. What fails is seen at the gateway, not here."""
    import aiohttp

    kind = "batch" if tenant == "nightly" else "interactive"
    headers = {"Authorization": f"Bearer {tenant}", "X-Corral-Class": kind}
    with suppress(aiohttp.ClientError, OSError):
        async with session.post(url + path, json=body, headers=headers) as answer:
            async for _ in answer.content.iter_any():
                pass


async def until_stdin_closes(url: str, rate: float, models: Sequence[str]) -> None:
    asking = asyncio.create_task(ask_on(url, rate, models, Random()))
    closed = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({asking, closed}, return_when=asyncio.FIRST_COMPLETED)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking


if __name__ == "__main__":
    asyncio.run(until_stdin_closes(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
