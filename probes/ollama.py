"""The only code that polls an Ollama: its version, its store and its memory, each read strictly or not at all."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, TypeVar

import aiohttp
import msgspec
from yarl import URL

from corral.model import InstalledModel, LoadedModel, ProbeResult, Replica, normalise_model

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""A store of ten thousand models fits; what is longer is not an Ollama's answer."""

_WATCH = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds of silence before the first question, seconds between two, and how many may go unanswered."""

_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "corral"}

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]
_Version = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,64}\Z")]


class Miss(Enum):
    """Why a page could not be read. None of them is an empty page."""

    ABSENT = "it has no such page"
    """404 or 405: this Ollama is too old, or something else answers there."""
    REFUSED = "connection refused"
    TIMED_OUT = "no answer in time"
    NONSENSE = "nonsense answer"


@dataclass(frozen=True, slots=True)
class TagsEntry:
    """One model of ``/api/tags``."""

    model: InstalledModel
    spelled: str
    """Its name as Ollama wrote it."""
    modified_s: float
    """Unix time."""
    raw: bytes
    """The entry as it came: valid JSON, unknown fields and all."""


@dataclass(frozen=True, slots=True)
class PsEntry:
    """One model of ``/api/ps``."""

    model: LoadedModel
    expires_s: float
    """Unix time; far in the future when the model is pinned, in the past while a late request still runs."""
    raw: bytes
    """The entry as it came: valid JSON, unknown fields and all."""


class _VersionAnswer(msgspec.Struct):
    version: _Version


class _TagsModel(msgspec.Struct):
    name: _Name
    digest: str
    size: _Size
    modified_at: _Time
    remote_host: str | None = None


class _TagsAnswer(msgspec.Struct):
    models: list[_TagsModel]


class _PsModel(msgspec.Struct):
    name: _Name
    digest: str
    size: _Size
    size_vram: _Size
    expires_at: _Time
    context_length: _Size | None = None


class _PsAnswer(msgspec.Struct):
    models: list[_PsModel]


class _RawAnswer(msgspec.Struct):
    models: list[msgspec.Raw]


_T = TypeVar("_T")


def probe_session(*, force_close: bool = False) -> aiohttp.ClientSession:
    """The session all probes share: no proxy, no cookies, no decompression, keep-alive (not with ``force_close``: then
    every request has a connection of its own).

    It has no connection limit because a limit is a queue, in which a stalled replica would delay the others;
    a poller keeps at most three requests per replica in flight.

    A load may be silent for minutes: whether its machine is still there the kernels find out within a minute.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, ttl_dns_cache=10, force_close=force_close, socket_factory=_watched_socket
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        trust_env=False,
        headers=_HEADERS,
        max_line_size=4096,
        max_field_size=4096,
    )


def _watched_socket(address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _WATCH.items():
        if hasattr(socket, name):  # not on every system
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


class OllamaProbe:
    """Reads one replica. Every method answers within its deadline (seconds) and raises nothing but cancellation."""

    def __init__(self, session: aiohttp.ClientSession, replica: Replica) -> None:
        self._session = session
        self._base = URL.build(scheme="http", host=replica.host, port=replica.port)

    async def liveness(self, deadline_s: float) -> tuple[ProbeResult, str | None]:
        """``GET /api/version``, which no work of an Ollama blocks; the version comes with ANSWERED only."""
        answer = await self._read("/api/version", _VersionAnswer, deadline_s)
        if isinstance(answer, Miss):
            return _PROBE_RESULT[answer], None
        return ProbeResult.ANSWERED, answer[0].version

    async def tags(self, deadline_s: float) -> tuple[TagsEntry, ...] | Miss:
        """``GET /api/tags``: the models in the replica's store."""
        answer = await self._read("/api/tags", _TagsAnswer, deadline_s)
        return answer if isinstance(answer, Miss) else tuple(map(_tags_entry, answer[0].models, _raw(answer[1])))

    async def ps(self, deadline_s: float) -> tuple[PsEntry, ...] | Miss:
        """``GET /api/ps``: the models in the replica's memory. May stall for seconds while one loads or unloads."""
        answer = await self._read("/api/ps", _PsAnswer, deadline_s)
        return answer if isinstance(answer, Miss) else tuple(map(_ps_entry, answer[0].models, _raw(answer[1])))

    async def _read(self, path: str, shape: type[_T], deadline_s: float) -> tuple[_T, bytes] | Miss:
        """The answer parsed, and its body."""
        body = await self._get(path, deadline_s)
        if isinstance(body, Miss):
            return body
        answer = _parsed(body, shape)
        return answer if isinstance(answer, Miss) else (answer, body)

    async def _get(self, path: str, deadline_s: float, base: URL | None = None) -> bytes | Miss:
        """The body of a 200 answer. The one seam where the client library's exceptions end."""
        try:
            async with (
                asyncio.timeout(deadline_s),
                self._session.get((base or self._base).join(URL(path)), allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return Miss.ABSENT if response.status in (404, 405) else Miss.NONSENSE
                return await _bounded(response.content)
        except TimeoutError:
            return Miss.TIMED_OUT
        except (aiohttp.ServerDisconnectedError, OSError, UnicodeError):  # UnicodeError: not a host name
            return Miss.REFUSED
        except aiohttp.ClientError:
            return Miss.NONSENSE


_PROBE_RESULT = {
    Miss.ABSENT: ProbeResult.NONSENSE,
    Miss.REFUSED: ProbeResult.REFUSED,
    Miss.TIMED_OUT: ProbeResult.TIMED_OUT,
    Miss.NONSENSE: ProbeResult.NONSENSE,
}


async def _bounded(content: aiohttp.StreamReader) -> bytes | Miss:
    body = bytearray()
    async for piece in content.iter_any():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            return Miss.NONSENSE
    return bytes(body)


def _parsed(body: bytes, shape: type[_T]) -> _T | Miss:
    """The whole body or nothing: half a page would look like models that were deleted or unloaded."""
    try:
        body.decode()  # unknown fields go to clients verbatim, and the decoder does not look for UTF-8 in them
        return msgspec.json.decode(body, type=shape)
    except (ValueError, RecursionError):
        return Miss.NONSENSE


def _raw(body: bytes) -> list[bytes]:
    """The entries of a body that was parsed: a page of a million bad ones ends at the first and costs no memory."""
    return [bytes(entry) for entry in msgspec.json.decode(body, type=_RawAnswer).models]


def _tags_entry(model: _TagsModel, raw: bytes) -> TagsEntry:
    installed = InstalledModel(
        normalise_model(model.name), model.digest, remote=bool(model.remote_host), size_bytes=model.size or None
    )
    return TagsEntry(installed, model.name, model.modified_at.timestamp(), raw)


def _ps_entry(model: _PsModel, raw: bytes) -> PsEntry:
    loaded = LoadedModel(
        name=normalise_model(model.name),
        size_bytes=model.size,
        size_vram_bytes=model.size_vram,
        context_length=model.context_length or None,  # 0 is Go's "not set"
    )
    return PsEntry(loaded, model.expires_at.timestamp(), raw)
