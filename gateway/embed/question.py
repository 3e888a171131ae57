"""A part's request to a replica, over the session that all requests of the gateway's own share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from corral.errors import Fault
from corral.gateway.errand import Failed
from corral.gateway.wire.answering import JSON
from corral.gateway.wire.request_head import RequestHead
from corral.model import Replica

_STALE_S: Final = 1.0
"""A connection that ends without a byte this soon was probably an idle one that had been closed before."""
_BUFFER_BYTES: Final = 1 << 20
_OURS: Final = frozenset({"accept-encoding"})
_KEPT: Final = ("Content-Encoding", "Retry-After")


class _TooLong(ValueError):
    """Longer than an answer to so many texts can be."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a replica answered."""

    replica_id: str
    status: int
    body: bytes
    content_type: bytes
    headers: bytes
    """Further lines that a client must see, each with its CRLF."""


def headers_of(head: RequestHead) -> CIMultiDict[str] | None:
    """The client's own end-to-end header lines, but for what the gateway must be able to read; None: it is unusual."""
    if not head.forward.isascii():
        return None
    headers: CIMultiDict[str] = CIMultiDict()
    for line in head.forward.decode().split("\r\n"):
        name, colon, value = line.partition(":")
        if name.lower() == "content-encoding":
            return None
        if colon and name.lower() not in _OURS:
            headers.add(name, value.strip(" \t"))
    return headers


@dataclass(frozen=True, slots=True)
class Question:
    """What all parts of one batch ask alike."""

    session: aiohttp.ClientSession
    path: str
    headers: CIMultiDict[str]
    connect_s: float
    clock: Callable[[], float]
    via: str = ""
    """The way that it came, for a replica that is a Corral."""

    async def ask(self, replica: Replica, body: bytes, most_bytes: int) -> Said:
        """The answer, whatever its status. Raises Failed. The one seam where the client library's exceptions end."""
        url = URL.build(scheme="http", host=replica.host, port=replica.port, path=self.path)
        asked_s = self.clock()
        answered = False
        try:
            async with self.session.post(
                url,
                data=body,
                headers=self._headers(replica),
                skip_auto_headers=("Content-Type",),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.connect_s),
                read_bufsize=_BUFFER_BYTES,
            ) as response:
                answered = True
                return _said(replica.id, response, await _bounded(response.content, most_bytes))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, UnicodeError) as error:
            raise Failed(Fault.CONNECT) from error  # UnicodeError: not a host name
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, OSError) as error:
            stale = not answered and self.clock() - asked_s < _STALE_S
            raise Failed(Fault.STALE if stale else Fault.RESET) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise Failed(Fault.MALFORMED) from error

    def _headers(self, replica: Replica) -> CIMultiDict[str]:
        if replica.admin is None or not self.via:
            return self.headers
        headers = CIMultiDict(self.headers)
        headers["x-corral-via"] = self.via
        return headers


def _said(replica_id: str, response: aiohttp.ClientResponse, body: bytes) -> Said:
    content_type = _latin(response.headers.get("Content-Type", "")) or JSON
    kept = ((name, response.headers.get(name)) for name in _KEPT)
    headers = b"".join(b"%b: %b\r\n" % (name.encode(), _latin(value)) for name, value in kept if value is not None)
    if response.status == 503 and b"Retry-After" not in headers:
        headers += b"Retry-After: 1\r\n"  # as for every other answer of this kind
    return Said(replica_id, response.status, body, content_type, headers)


def _latin(value: str) -> bytes:
    return value.encode("latin-1", "replace")


async def _bounded(content: aiohttp.StreamReader, most_bytes: int) -> bytes:
    pieces, size = [], 0
    async for piece in content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > most_bytes:
            raise _TooLong
    return b"".join(pieces)
