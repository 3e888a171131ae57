"""The gateway's requests that change a store.

Each has a connection of its own: what was sent on an idle one that turns out to be closed might have been carried out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

import aiohttp
from yarl import URL

from corral.errors import Fault
from corral.gateway.errand import Failed
from corral.gateway.store.lines import Line, read_line
from corral.gateway.store.mutation import Mutation
from corral.gateway.store.said import Said
from corral.gateway.wire.answering import JSON, NDJSON
from corral.model import Replica
from corral.probes.ollama import probe_session

_MOST_LINE: Final = 1 << 20
_MOST_ANSWER: Final = 1 << 20
_GOOD: Final = (200, 201)

Body = bytes | AsyncIterator[bytes]


class StoreRequests:
    """The one seam where the client library's exceptions end. Close it."""

    def __init__(self, connect_s: Callable[[], float]) -> None:
        self._connect_s = connect_s
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def change(self, replica: Replica, mutation: Mutation, hear: Callable[[Line], None]) -> Said:
        """Have the replica do it; ``hear`` gets all lines but the last. Raises :class:`Failed`.

        No limit on time: a pull takes hours, and whoever hangs is found by its probes.
        """
        act = mutation.act
        headers = {"Content-Type": mutation.content_type.decode("latin-1")}
        async with _Seam(), self._ask(replica, act.method, act.path, headers, mutation.body) as response:
            content_type = _content_type(response)
            if response.status == 200 and content_type.startswith(NDJSON):
                return await _stream(response, hear)
            return _whole(response, content_type, await _bounded(response.content))

    async def blob(self, replica: Replica, method: str, path: str, headers: dict[str, str], body: Body) -> Said:
        """Look for a blob, or send one. Raises :class:`Failed`."""
        async with _Seam(), self._ask(replica, method, path, headers, body) as response:
            return _whole(response, _content_type(response), await _bounded(response.content))

    def _ask(
        self, replica: Replica, method: str, path: str, headers: dict[str, str], body: Body
    ) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            self._session = probe_session(force_close=True)
        return self._session.request(
            method,
            URL.build(scheme="http", host=replica.host, port=replica.port, path=path),
            data=body or None,
            headers=headers,
            skip_auto_headers=("Content-Type",),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s()),
            middlewares=(_once,),
        )


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """The library itself would send a DELETE again, whatever became of the first."""
    try:
        return await send(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientPayloadError("the connection was lost") from error


class _Seam:
    """What the client library raises as what the scheduler knows."""

    async def __aenter__(self) -> None:
        return

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | UnicodeError):
            raise Failed(Fault.CONNECT) from error  # UnicodeError: not a host name
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | OSError):
            raise Failed(Fault.RESET) from error
        if isinstance(error, aiohttp.ClientError | ValueError):
            raise Failed(Fault.MALFORMED) from error


async def _stream(response: aiohttp.ClientResponse, hear: Callable[[Line], None]) -> Said:
    last: Line | None = None
    try:
        async for raw in _lines(response.content):
            if last is not None:
                hear(last)
            line = read_line(raw)
            last = line if line.is_last else None
            if last is None:
                hear(line)
    except (aiohttp.ClientError, OSError):
        if last is None:
            raise
    if last is None:
        raise aiohttp.ServerDisconnectedError("the lines ended without a last one")
    ok = last.error is None
    return Said(200 if ok else 500, last.raw, NDJSON, ok=ok, is_line=True)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line + b"\n"
        if len(rest) > _MOST_LINE:
            raise ValueError("a line without an end")
    if rest.strip():
        yield rest + b"\n"


def _whole(response: aiohttp.ClientResponse, content_type: bytes, body: bytes) -> Said:
    return Said(response.status, body, content_type, ok=response.status in _GOOD)


def _content_type(response: aiohttp.ClientResponse) -> bytes:
    return response.headers.get("Content-Type", "").encode("latin-1", "replace") or JSON


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for piece in content.iter_any():
        body += piece
        if len(body) > _MOST_ANSWER:
            raise ValueError("too long")
    return bytes(body)
