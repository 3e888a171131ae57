"""HTTP/1.1 as Go's net/http server writes it: heads, the 2 KiB Content-Length rule, chunks, aborts."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import httptools

CRLF = b"\r\n"
LAST_CHUNK = b"0\r\n\r\n"
SIZES = [b"%x\r\n" % size for size in range(8192)]
_PLAIN_LIMIT = 2048
"""Go buffers this much before it decides between Content-Length and chunks."""
_SLOW_READER_BYTES = 65536

Header = tuple[bytes, bytes]


def framed(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    size = len(data)
    return (SIZES[size] if size < 8192 else b"%x\r\n" % size) + data + CRLF


class _Date:
    """The Date header, worked out once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._line = time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now)).encode()
        return self._line


_DATE = _Date()


class Exchange:
    """One request and its answer."""

    __slots__ = ("body", "connection", "extra", "gone", "headers", "keep", "method", "on_gone", "path", "started")

    def __init__(self, connection: Connection, method: str, path: str) -> None:
        self.connection = connection
        self.method = method
        self.path = path
        self.headers: dict[str, str] = {}
        self.body: bytes = b""
        self.keep = True
        self.extra: list[Header] = []
        """Headers every answer to this request carries (CORS)."""
        self.started = False
        self.gone = False
        self.on_gone: Callable[[], None] | None = None

    def answer(self, status: int, body: bytes, content_type: bytes | None, *headers: Header) -> None:
        """A whole answer in one write, as a handler that returns at once gives it."""
        head = self.method == "HEAD"
        bodiless = status in (204, 304)
        given = sorted([*self.extra, *headers] + ([(b"Content-Type", content_type)] if content_type else []))
        if len(body) <= _PLAIN_LIMIT:
            framing = b"" if bodiless else b"Content-Length: %d\r\n" % len(body)
            payload = body
        else:
            framing = b"" if head else b"Transfer-Encoding: chunked\r\n"
            payload = framed(body) + LAST_CHUNK
        self._send_head(status, given, framing, b"" if head or bodiless else payload)
        self.finish()

    def start(self, content_type: bytes, *headers: Header, status: int = 200, first: bytes = b"") -> None:
        """Begin a streamed answer; ``first`` goes out in the same write."""
        given = sorted([*self.extra, *headers, (b"Content-Type", content_type)])
        self._send_head(status, given, b"Transfer-Encoding: chunked\r\n", first)

    def send(self, data: bytes) -> None:
        """Bytes of a started answer, already framed."""
        if not self.gone:
            self.connection.transport.write(data)

    def end(self) -> None:
        """End a streamed answer cleanly."""
        self.send(LAST_CHUNK)
        self.finish()

    def finish(self) -> None:
        self.connection.answered(self)

    def _send_head(self, status: int, headers: list[Header], framing: bytes, payload: bytes) -> None:
        self.started = True
        reason = HTTPStatus(status).phrase if status != 499 else "status code 499"
        lines = b"".join([name + b": " + value + CRLF for name, value in headers])
        close = b"" if self.keep else b"Connection: close\r\n"
        date_and_length, chunked = (framing, b"") if framing.startswith(b"C") else (b"", framing)
        head = b"HTTP/1.1 %d %s\r\n%s%s%s%s%s\r\n" % (
            status, reason.encode(), lines, _DATE.line(), date_and_length, close, chunked,
        )  # fmt: skip
        self.send(head + payload)


Handler = Callable[[Exchange], None]


class Connection(asyncio.Protocol):
    """One client connection: requests strictly one after the other; end of input cancels the running one."""

    transport: asyncio.Transport

    def __init__(self, handler: Handler, connections: set[Connection]) -> None:
        self._handler = handler
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._reading: Exchange | None = None
        self._parts: list[bytes] = []
        self._url = b""
        self._headers: dict[str, str] = {}
        self._malformed = False
        self.paused = False
        self.on_paused: Callable[[bool], None] | None = None

    # -- transport ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not registered as asyncio.Transport, so isinstance cannot narrow this
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_SLOW_READER_BYTES)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._malformed:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return
        except httptools.HttpParserError:
            self._malformed = True
            # Go looks at what follows a request only after it has answered it
            if self._current is None:
                self._refuse()

    def eof_received(self) -> bool:
        """Go cancels the request when its client half-closes."""
        self._abandon()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._abandon()

    def pause_writing(self) -> None:
        self.paused = True
        if self.on_paused is not None:
            self.on_paused(True)

    def resume_writing(self) -> None:
        self.paused = False
        if self.on_paused is not None:
            self.on_paused(False)

    def reset(self) -> None:
        """End the connection with a TCP reset, on our own account."""
        self._disown()
        sock: Any = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
        self._abandon()

    def close(self) -> None:
        """End the connection after what was written (FIN), on our own account."""
        self._disown()
        self.transport.close()
        self._abandon()

    # -- parser ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url, self._headers, self._parts = b"", {}, []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        path = self._url.decode("latin-1").partition("?")[0]
        exchange = Exchange(self, self._parser.get_method().decode(), path)
        exchange.headers = self._headers
        exchange.keep = self._parser.should_keep_alive()
        if self._headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._reading = exchange

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        exchange, self._reading = self._reading, None
        if exchange is None:
            return
        exchange.body = b"".join(self._parts)
        self._parts = []
        if self._current is None:
            self._run(exchange)
        else:
            self._waiting.append(exchange)

    # -- exchanges ------------------------------------------------------------------------------------------------

    def _run(self, exchange: Exchange) -> None:
        self._current = exchange
        if "host" not in exchange.headers and self._parser.get_http_version() == "1.1":
            self._refuse(b": missing required Host header")
        else:
            self._handler(exchange)

    def answered(self, exchange: Exchange) -> None:
        """The current exchange's answer is complete: on to the next."""
        if self._current is not exchange:
            return
        self._current = None
        self.on_paused = None
        if not exchange.keep:
            self.transport.close()
        elif self._waiting:
            self._run(self._waiting.popleft())
        elif self._malformed:
            self._refuse()

    def _abandon(self) -> None:
        current, self._current = self._current, None
        self._waiting.clear()
        if current is not None:
            current.gone = True
            if current.on_gone is not None:
                current.on_gone()

    def _disown(self) -> None:
        """Whoever ends its own exchange is not to be cancelled for it."""
        if self._current is not None:
            self._current.on_gone = None

    def _refuse(self, detail: bytes = b"") -> None:
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
            b"400 Bad Request" + detail
        )
        self.close()
