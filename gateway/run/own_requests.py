"""The gateway's own requests to a replica: load a model, let go of one, a short prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import isinf
from typing import Any, Final

import aiohttp
import msgspec
from yarl import URL

LOAD_S: Final = 900.0
"""A model may take this long to be loaded; a large one from a slow disk needs minutes."""
UNLOAD_S: Final = 10.0
"""An Ollama agrees to let go of a model at once, unless that model is just being loaded."""
_PROMPT: Final = "Say hello."
_TOKENS: Final = 8
_MAX_ANSWER: Final = 1 << 20
_EMBEDS_ONLY: Final = "does not support generate"


class Trouble(Exception):
    """The replica did not do what was asked, and why."""


class OwnRequests:
    """What the gateway itself asks of one replica.

    A model stays as long as the replica's own ``OLLAMA_KEEP_ALIVE`` says, but where a client wants it otherwise.
    """

    def __init__(
        self, session: aiohttp.ClientSession, host: str, port: int, headers: Mapping[str, str] | None = None
    ) -> None:
        self._session = session
        self._headers = headers
        self._base = URL.build(scheme="http", host=host, port=port)

    async def load(self, model: str, signature: str = "", keep_alive_s: float | None = None) -> bool:
        """Wait until the model is in memory, with the options of ``signature``; returns whether it can be prompted.

        ``keep_alive_s``: how long it is to stay without requests, infinity for ever. Raises :class:`Trouble`.
        """
        fields = load_fields(signature)
        if keep_alive_s is not None:
            fields["keep_alive"] = -1 if isinf(keep_alive_s) else keep_alive_s
        try:
            status, error = await self._post("/api/generate", {"model": model, "stream": False, **fields}, LOAD_S)
            talks = _EMBEDS_ONLY not in error
            if not talks:
                fields.pop("shift", None)
                status, error = await self._post("/api/embed", {"model": model, "input": "", **fields}, LOAD_S)
        except TimeoutError as late:
            raise Trouble(f"not loaded within {LOAD_S:g} s") from late
        if status != 200:
            raise Trouble(error or f"status {status}")
        return talks

    async def unload(self, model: str) -> None:
        """Have the model leave as soon as no request uses it, which may be later. Raises :class:`Trouble`."""
        try:
            body = {"model": model, "keep_alive": 0, "stream": False}
            status, error = await self._post("/api/generate", body, UNLOAD_S)
        except TimeoutError as late:
            raise Trouble(f"no answer within {UNLOAD_S:g} s") from late
        if status != 200:
            raise Trouble(error or f"status {status}")

    async def prompt(self, model: str, limit_s: float) -> None:
        """Raises :class:`Trouble`, and TimeoutError at the limit: the end of the warm-up rather than a fault."""
        body = {"model": model, "prompt": _PROMPT, "stream": False, "options": {"num_predict": _TOKENS}}
        status, error = await self._post("/api/generate", body, limit_s)
        if status != 200:
            raise Trouble(error or f"status {status}")

    async def _post(self, path: str, body: dict[str, Any], limit_s: float) -> tuple[int, str]:
        """Status and error text (empty: none). The one seam where the client library's exceptions end."""
        try:
            async with (
                asyncio.timeout(limit_s),
                self._session.post(
                    self._base.with_path(path), json=body, headers=self._headers, allow_redirects=False
                ) as response,
            ):
                answer = await _bounded(response.content)
                return response.status, "" if response.status == 200 else _error(answer)
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError, UnicodeError) as error:  # UnicodeError: not a host name
            raise Trouble(in_one_line(str(error)) or type(error).__name__) from error


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    """All of it, which may come in pieces, or as much as no answer of an Ollama has."""
    answer = bytearray()
    async for piece in content.iter_any():
        answer += piece
        if len(answer) > _MAX_ANSWER:
            break
    return bytes(answer)


def load_fields(signature: str) -> dict[str, Any]:
    """The fields of a body that load a model as :attr:`corral.model.RouteRequest.signature` says.

    >>> load_fields("num_ctx=4096,use_mmap=1,shift=0")
    {'options': {'num_ctx': 4096, 'use_mmap': True}, 'shift': False}
    """
    fields: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for each in filter(None, signature.split(",")):
        name, _, text = each.partition("=")
        if name == "shift":
            fields["shift"] = text == "1"
        else:
            options[name] = text == "1" if name == "use_mmap" else _number(text)
    return {"options": options, **fields} if options else fields


def _number(text: str) -> float:
    return int(text) if text.removeprefix("-").isdecimal() else float(text)


class _Refusal(msgspec.Struct):
    error: str = ""


def _error(body: bytes) -> str:
    try:
        return in_one_line(msgspec.json.decode(body, type=_Refusal).error)
    except (ValueError, RecursionError):
        return "nonsense answer"


def in_one_line(text: str) -> str:
    """As it may stand between quotes in one line of the log."""
    line = " ".join(text.split())[:200].replace('"', "'")
    return "".join(letter if letter.isprintable() else "?" for letter in line)
