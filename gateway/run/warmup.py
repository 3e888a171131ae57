"""Loads models and runs short prompts on a replica before it takes requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp
import msgspec
from yarl import URL

log = logging.getLogger(__name__)

LOAD_S: Final = 900.0
"""A model may take this long to be loaded; a large one from a slow disk needs minutes."""
PROMPT_S: Final = 60.0
"""A short prompt that takes longer does not warm anything."""
_PROMPT: Final = "Say hello."
_TOKENS: Final = 8
_MAX_ANSWER: Final = 1 << 20
_EMBEDS_ONLY: Final = "does not support generate"


class _Trouble(Exception):
    """The replica did not do what was asked, and why."""


async def warm_up(
    session: aiohttp.ClientSession,
    replica_id: str,
    port: int,
    models: Sequence[str],
    seconds: float,
    clock: Callable[[], float],
) -> None:
    """Returns when the replica is warm, or as warm as it gets: a model that cannot be loaded is logged and left out.

    Each model stays loaded as long as the replica's own ``OLLAMA_KEEP_ALIVE`` says, since the requests name no other.
    """
    replica = _Replica(session, port)
    talkers = []
    for model in models:
        began_s = clock()
        try:
            talks = await replica.load(model)
        except _Trouble as trouble:
            log.warning('warmup_failed replica=%s model=%s error="%s"', replica_id, model, trouble)
            continue
        log.info("warmup_loaded replica=%s model=%s seconds=%.1f", replica_id, model, clock() - began_s)
        if talks:
            talkers.append(model)
    await _talk(replica, replica_id, talkers, clock, clock() + seconds)


async def _talk(
    replica: _Replica, replica_id: str, models: Sequence[str], clock: Callable[[], float], until_s: float
) -> None:
    """Short prompts to the models in turn, one after the other."""
    while models and clock() < until_s:
        for model in models:
            left_s = until_s - clock()
            if left_s <= 0:
                return
            try:
                await replica.prompt(model, min(left_s, PROMPT_S))
            except TimeoutError:
                continue
            except _Trouble as trouble:
                log.warning('warmup_failed replica=%s model=%s error="%s"', replica_id, model, trouble)
                return


class _Replica:
    """The two requests that warm a replica up."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self._base = URL.build(scheme="http", host="127.0.0.1", port=port)

    async def load(self, model: str) -> bool:
        """Wait until the model is in memory; returns whether it can be prompted."""
        try:
            status, error = await self._post("/api/generate", {"model": model, "stream": False}, LOAD_S)
            talks = _EMBEDS_ONLY not in error
            if not talks:
                status, error = await self._post("/api/embed", {"model": model, "input": ""}, LOAD_S)
        except TimeoutError as late:
            raise _Trouble(f"not loaded within {LOAD_S:g} s") from late
        if status != 200:
            raise _Trouble(error or f"status {status}")
        return talks

    async def prompt(self, model: str, limit_s: float) -> None:
        """Raises TimeoutError at the limit: the end of the warm-up rather than a fault."""
        body = {"model": model, "prompt": _PROMPT, "stream": False, "options": {"num_predict": _TOKENS}}
        status, error = await self._post("/api/generate", body, limit_s)
        if status != 200:
            raise _Trouble(error or f"status {status}")

    async def _post(self, path: str, body: dict[str, Any], limit_s: float) -> tuple[int, str]:
        """Status and error text (empty: none). The one seam where the client library's exceptions end."""
        try:
            async with (
                asyncio.timeout(limit_s),
                self._session.post(self._base.with_path(path), json=body, allow_redirects=False) as response,
            ):
                answer = await response.content.read(_MAX_ANSWER)
                return response.status, "" if response.status == 200 else _error(answer)
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise _Trouble(str(error) or type(error).__name__) from error


class _Refusal(msgspec.Struct):
    error: str = ""


def _error(body: bytes) -> str:
    try:
        text = msgspec.json.decode(body, type=_Refusal).error
    except (ValueError, RecursionError):
        return "nonsense answer"
    return " ".join(text.split())[:200].replace('"', "'")
