"""One client connection: reads requests strictly, one at a time, and watches whether the client is still there.

States: HEAD (waiting for or reading a head) → BODY (reading a body that is buffered) → BUSY (an exchange, or a page
the gateway makes itself, is under way) → HEAD again. STREAM is BUSY with a request body that passes through; LINGER
reads and drops what a refused client still sends, so that the refusal is not lost to a reset; CLOSED is the end.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

from corral.errors import ClientError
from corral.gateway.wire.bodies import ChunkedBody, chunk
from corral.gateway.wire.dialect import error_body
from corral.gateway.wire.exchange import Exchange
from corral.gateway.wire.grammar import BARE_LF, HEAD_END
from corral.gateway.wire.reply import reply
from corral.gateway.wire.request_head import RequestHead, parse_request_head
from corral.gateway.wire.routes import Route, dialect_of, find_route

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

_PIPELINE_BYTES: Final = 64 * 1024
"""What a client may send ahead while its request is answered; reading on is how its leaving is seen."""
_WRITE_BUFFER_BYTES: Final = 256 * 1024
_LINGER_S: Final = 5.0
_LINGER_READ_S: Final = 60.0
_MIN_BODY_RATE: Final = 16 * 1024
"""Bytes per second that extend a body's deadline: a slow uplink may upload an image, a dribble may not."""
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class State(Enum):
    """What the next bytes of the client are."""

    HEAD = "head"
    BODY = "body"
    STREAM = "stream"
    BUSY = "busy"
    LINGER = "linger"
    CLOSED = "closed"


class ClientConnection(asyncio.Protocol):
    """One accepted connection."""

    __slots__ = (
        "_ahead",
        "_body",
        "_decoder",
        "_head",
        "_rest",
        "_route",
        "_task",
        "address",
        "deadline_s",
        "exchange",
        "gateway",
        "idle_since_s",
        "state",
        "transport",
    )

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.transport: asyncio.Transport | None = None
        self.address = ""
        self.state = State.HEAD
        self.exchange: Exchange | None = None
        self.deadline_s = 0.0
        """When a half-sent head or body, or a lingering close, is over (only while in ``gateway.slow``)."""
        self.idle_since_s = 0.0
        self._ahead: bytes | bytearray = b""
        """Bytes read but not yet used: a partial head, or a pipelined request."""
        self._head: RequestHead | None = None
        self._route: Route | None = None
        self._body: bytes | bytearray = b""
        self._rest = 0
        """Body bytes still to come of a body with Content-Length."""
        self._decoder: ChunkedBody | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def head(self) -> RequestHead | None:
        """The head of the request under way."""
        return self._head

    @property
    def is_idle(self) -> bool:
        """Whether it waits between two requests, with nothing of the next one read."""
        return self.state is State.HEAD and not self._ahead

    @property
    def has_unsent(self) -> bool:
        """Whether a part of its last answer waits for the client to read."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else "local"
        self.idle_since_s = self.gateway.clock()
        self.gateway.connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            if self.state is State.HEAD:
                self._take_head(data)
            elif self.state in (State.BODY, State.STREAM):
                self._take_body(data)
            elif self.state is State.BUSY:
                self._take_ahead(data)
        except ClientError as error:
            self._refuse(error)

    def eof_received(self) -> bool:
        return False  # half-closed counts as gone: nobody can tell it from a client that left

    def connection_lost(self, exc: Exception | None) -> None:
        self.state = State.CLOSED
        self.transport = None
        self.gateway.connections.discard(self)
        self.gateway.slow.discard(self)
        if self._task is not None:
            self._task.cancel()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.upstream.pause()

    def resume_writing(self) -> None:
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.upstream.resume()

    # -- heads

    def _take_head(self, data: bytes | bytearray) -> None:
        searched = 0
        if self._ahead:
            searched = max(0, len(self._ahead) - 3)
            self._ahead += data
            data = self._ahead
        elif data[:2] == b"\r\n":
            data = data.lstrip(b"\r\n")
            if not data:
                return
        end = data.find(HEAD_END, searched)
        limit = self.gateway.limits.max_head_bytes
        if end < 0:
            if len(data) > limit:
                raise ClientError(431, f"request head larger than {limit} bytes")
            if BARE_LF.search(data, searched) is not None or data.find(b"\0", searched) >= 0:
                raise ClientError(400, "bare LF or NUL in the request head")
            if not searched:
                self._ahead = bytearray(data)
                self._expect_more(self.gateway.timeouts.head_s)
            return
        if end + 4 > limit:
            raise ClientError(431, f"request head larger than {limit} bytes")
        self.gateway.slow.discard(self)
        self._ahead = b""
        head = parse_request_head(bytes(data[: end + 4]))
        self._head = head
        self._begin(head, bytes(data[end + 4 :]))

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        """A head is complete: is the client allowed in, where does it want to go, and does a body follow?"""
        gateway = self.gateway
        if head.request_id is None:
            head.request_id = gateway.new_request_id()
        if self._answered_by_rules(head):
            return
        route = self._route = find_route(head.method, head.path)
        length = head.content_length or 0
        if not route.streams_body and length > gateway.limits.max_body_bytes:
            raise ClientError(413, f"request body larger than {gateway.limits.max_body_bytes} bytes")
        if not length and not head.chunked:
            self._ahead = rest
            self._start(b"")
        elif route.streams_body and head.method == b"POST":
            self._start_streaming(head, rest)
        elif length and len(rest) >= length:
            self._ahead = rest[length:]
            self._start(rest[:length] if len(rest) > length else rest)
        else:
            self._start_body(head, rest)

    def _answered_by_rules(self, head: RequestHead) -> bool:
        """Ollama's own protection against web pages: bad Host or Origin 403, preflight 204, both without a body."""
        rules = self.gateway.rules
        host = head.host or b""
        if head.origin is not None and not rules.same_origin(head.origin, host):
            if not rules.origin_allowed(head.origin, host):
                self._answer_only(head, 403)
                return True
            if head.method == b"OPTIONS":
                self._answer_only(head, 204, rules.preflight_headers(head.origin))
                return True
        if not rules.host_allowed(host):
            self._answer_only(head, 403)
            return True
        return False

    def _answer_only(self, head: RequestHead, status: int, headers: bytes = b"") -> None:
        self.state = State.BUSY
        keep = head.keep_alive and not head.chunked and not head.content_length
        self.finish_with(reply(status, headers=headers, close=not keep), keep_alive=keep)

    def cors_headers(self, head: RequestHead) -> bytes:
        """Header lines a page of another origin needs to read the response."""
        if head.origin is None or self.gateway.rules.same_origin(head.origin, head.host or b""):
            return b""
        return self.gateway.rules.response_headers(head.origin)

    # -- bodies

    def _start_body(self, head: RequestHead, rest: bytes) -> None:
        self.state = State.BODY
        self._body = bytearray()
        self._rest = head.content_length or 0
        self._decoder = ChunkedBody(framed=False) if head.chunked else None
        self._expect_more(self.gateway.timeouts.head_s)
        if head.expects_continue and self.transport is not None and not rest:
            self.gateway.outbox.put(self.transport, _CONTINUE)
        if rest:
            self._take_body(rest)

    def _start_streaming(self, head: RequestHead, rest: bytes) -> None:
        self.state = State.STREAM
        self._rest = head.content_length or 0
        self._decoder = ChunkedBody(framed=False) if head.chunked else None
        self._body = rest  # kept until the upstream connection is there
        self._expect_more(self.gateway.timeouts.head_s)
        self.pause_body()
        self._submit(b"")

    def pause_body(self) -> None:
        """The replica (or the connection to it) is not ready for more of a streamed body."""
        if self.state is State.STREAM and self.transport is not None:
            self.transport.pause_reading()
            self.gateway.slow.discard(self)  # it is not the client that is slow

    def resume_body(self) -> None:
        if self.state is not State.STREAM or self.transport is None:
            return
        head = self._head
        if head is not None and head.expects_continue:
            head.expects_continue = False
            self.gateway.outbox.put(self.transport, _CONTINUE)
        self.transport.resume_reading()
        self._expect_more(self.gateway.timeouts.head_s)
        if self._body:
            rest, self._body = bytes(self._body), b""
            try:
                self._take_body(rest)
            except ClientError as error:
                self._refuse(error)

    @property
    def body_started(self) -> bool:
        """Whether bytes of a streamed body have left: it cannot be sent twice."""
        return self._route is not None and self._route.streams_body and not self._body

    def body_unfinished(self) -> bool:
        """Whether the client is still sending the body of the request under way."""
        return self.state is State.STREAM

    def _take_body(self, data: bytes) -> None:
        payload, surplus, ended = self._decode(data)
        self.deadline_s += len(data) / _MIN_BODY_RATE
        if self.state is State.STREAM:
            self._pass_on(payload, ended)
        else:
            self._body += payload
            if len(self._body) > self.gateway.limits.max_body_bytes:
                raise ClientError(413, f"request body larger than {self.gateway.limits.max_body_bytes} bytes")
        if not ended:
            return
        self.gateway.slow.discard(self)
        self._decoder = None
        self._ahead = surplus
        if self.state is State.STREAM:
            self.state = State.BUSY
        else:
            body, self._body = self._body, b""
            self._start(body)

    def _decode(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Payload, bytes behind the body, and whether the body is complete."""
        if self._decoder is None:
            payload, surplus = data[: self._rest], data[self._rest :]
            self._rest -= len(payload)
            return payload, surplus, self._rest == 0
        payload = self._decoder.feed(data)
        if self._decoder.broken is not None:
            raise ClientError(400, f"malformed chunked body: {self._decoder.broken}")
        return payload, self._decoder.leftover(), self._decoder.ended

    def _pass_on(self, payload: bytes, ended: bool) -> None:
        upstream = self.exchange.upstream if self.exchange is not None else None
        if upstream is None or self._head is None:
            return
        if not self._head.chunked:
            upstream.write(payload)
        else:
            upstream.write((chunk(payload) if payload else b"") + (b"0\r\n\r\n" if ended else b""))

    def _take_ahead(self, data: bytes) -> None:
        if len(self._ahead) + len(data) > _PIPELINE_BYTES:
            self.reset()
        elif self._ahead:
            self._ahead = bytes(self._ahead) + data
        else:
            self._ahead = data

    # -- requests

    def _start(self, body: bytes | bytearray) -> None:
        """The request is complete."""
        self.state = State.BUSY
        route = self._route
        assert route is not None
        if route.view is not None:
            self._task = self.gateway.start_view(self, route)
        else:
            self._submit(body)

    def _submit(self, body: bytes | bytearray) -> None:
        assert self._head is not None
        assert self._route is not None
        self.exchange = Exchange(self, self._head, self._route, body, self.gateway.clock())
        self.gateway.carrier.submit(self.exchange)

    def view_ready(self, head: RequestHead, status: int, body: bytes, content_type: bytes) -> None:
        """A page the gateway makes itself is ready."""
        self._task = None
        if self.transport is None:
            return
        keep = head.keep_alive and not self.gateway.draining
        headers = b"x-request-id: %b\r\n%b" % (head.request_id or b"-", self.cors_headers(head))
        head_only = head.method == b"HEAD"
        answer = reply(status, body, content_type=content_type, headers=headers, close=not keep, head_only=head_only)
        self.finish_with(answer, keep_alive=keep)

    # -- responses

    def finish_with(self, answer: bytes, *, keep_alive: bool) -> None:
        """Write one whole response and be ready for the next request."""
        if self.transport is not None:
            self.gateway.outbox.put(self.transport, answer)
        self.response_done(keep_alive=keep_alive)

    def response_done(self, *, keep_alive: bool) -> None:
        """The response is complete."""
        self.exchange = None
        self._head = None
        self._route = None
        if self.transport is None:
            return
        if not keep_alive or self.state is State.STREAM:
            self.close_after_response()
            return
        if self._ahead:
            # Still BUSY until then: bytes that arrive meanwhile belong behind these.
            self.gateway.loop.call_soon(self._next)
        else:
            self.state = State.HEAD
            self.idle_since_s = self.gateway.clock()

    def _next(self) -> None:
        if self.state is State.BUSY:
            self.state = State.HEAD
            ahead, self._ahead = bytes(self._ahead), b""
            self.data_received(ahead)

    def close_after_response(self) -> None:
        """Close when everything written has left, reading on for a moment (see LINGER)."""
        self.exchange = None
        transport = self.transport
        if transport is None:
            return
        if self.state is State.STREAM:
            transport.resume_reading()
        self.state = State.LINGER
        self._ahead = b""
        self.gateway.outbox.flush()
        if transport.can_write_eof():
            transport.write_eof()
        self._expect_more(_LINGER_S)

    def reset(self) -> None:
        """Cut the connection so that the client sees an error, not an end."""
        transport = self.transport
        if transport is None:
            return
        self.gateway.outbox.flush()
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def _refuse(self, error: ClientError) -> None:
        """The client's request is wrong: say so and close."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
        head, self._head = self._head, None
        dialect = dialect_of(head.path if head is not None else "")
        cors = self.cors_headers(head) if head is not None else b""
        self._body = b""
        self.gateway.metrics_for_bad_request(error.status)
        if self.transport is not None:
            body = error_body(dialect, error.status, error.message)
            self.gateway.outbox.put(self.transport, reply(error.status, body, headers=cors, close=True))
        self.close_after_response()

    # -- time

    def _expect_more(self, within_s: float) -> None:
        self.deadline_s = self.gateway.clock() + within_s
        self.gateway.slow.add(self)

    def too_slow(self) -> None:
        """The deadline has passed: a head or body that dribbles in, or a lingering close."""
        self.gateway.slow.discard(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
        if self.transport is None:
            return
        if self.state in (State.HEAD, State.BODY):
            self.transport.write(
                reply(408, error_body(dialect_of(""), 408, "the request came in too slowly"), close=True)
            )
            self.transport.close()
        elif self.state is State.LINGER and 0 < (unsent := self.transport.get_write_buffer_size()) != self._rest:
            # A slow reader still takes its answer: go on as long as it does.
            self._rest = unsent
            self._expect_more(_LINGER_READ_S)
        else:
            self.transport.abort()
