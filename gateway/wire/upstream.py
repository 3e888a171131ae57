"""One connection to a replica: writes one request, reads one response, then serves again or ends."""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Final, cast

from corral.errors import Fault, ReplicaError
from corral.gateway.wire.bodies import Body, ChunkedBody, CountedBody, UntilCloseBody
from corral.gateway.wire.grammar import HEAD_END
from corral.gateway.wire.response_head import ResponseHead, parse_response_head

if TYPE_CHECKING:
    from corral.gateway.wire.exchange import Exchange
    from corral.gateway.wire.pool import Pool

_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_INTERIM: Final = 8
"""More 1xx responses than this are an attack, not a hint."""

_STALE_S: Final = 1.0
"""A reused connection that ends without a byte this soon was closed before; later, the request itself did it."""
_SMALL_BODY_BYTES: Final = 16 * 1024
"""Up to this size a body is worth copying behind its head."""

Address = tuple[str, int]

_waiting: Final = select.poll()
"""Holds one descriptor at a time: one for all connections, since each would cost half a KiB."""


class UpstreamConnection(asyncio.Protocol):
    """Carries one exchange at a time to one replica."""

    __slots__ = (
        "_buffer",
        "_fd",
        "_interim",
        "address",
        "begun_at_s",
        "body",
        "exchange",
        "idle_since_s",
        "paused",
        "pool",
        "reads",
        "response",
        "reused",
        "transport",
    )

    def __init__(self, pool: Pool, address: Address) -> None:
        self.pool = pool
        self.address = address
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.response: ResponseHead | None = None
        self.body: Body | None = None
        self.reused = False
        self.paused = False
        self.reads = 0
        """Reads since the exchange began; a stalled stream is one whose count stands still."""
        self.idle_since_s = 0.0
        self.begun_at_s = 0.0
        self._buffer = b""
        self._interim = 0
        self._fd = -1

    def is_quiet(self) -> bool:
        """Whether it is open and nothing, an end included, waits to be read: what comes next is an answer."""
        if self.transport is None or self.transport.is_closing():
            return False
        _waiting.register(self._fd, select.POLLIN)
        try:
            return not _waiting.poll(0)
        finally:
            _waiting.unregister(self._fd)

    # -- the exchange's side

    def begin(self, exchange: Exchange, request: bytes | bytearray, body: bytes | bytearray) -> None:
        """Send a request; from now on what is read belongs to ``exchange``."""
        assert self.transport is not None
        self.exchange = exchange
        self.begun_at_s = self.pool.now()
        self.response = None
        self.body = None
        self.reads = 0
        self._interim = 0
        self.pool.active.add(self)
        if len(body) <= _SMALL_BODY_BYTES and not exchange.route.streams_body:
            self.pool.outbox.put(self.transport, request + body)
        else:
            self.transport.writelines([request, body])

    def write(self, data: bytes) -> None:
        """Pass on a piece of a streamed request body."""
        if self.transport is not None:
            self.transport.write(data)

    def pause(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.paused and self.transport is not None and not self.transport.is_closing():
            self.paused = False
            self.transport.resume_reading()

    def release(self, *, reusable: bool) -> None:
        """The exchange is over: keep the connection, or end it."""
        self.exchange = None
        self.body = None
        self.response = None
        self.pool.active.discard(self)
        if reusable:
            self.resume()
            self.pool.put(self)
        else:
            self.abort()

    def abort(self) -> None:
        """End the connection at once: the replica stops working for it."""
        self.exchange = None
        self.pool.active.discard(self)
        if self.transport is not None:
            self.transport.abort()

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._fd = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        exchange = self.exchange
        if exchange is None:  # bytes nobody asked for: this connection cannot be trusted
            self.pool.forget(self)
            self.abort()
            return
        try:
            body = self.body
            if body is None:
                self._read_head(data)
                return
            out = body.feed(data)
            if out:
                exchange.forward(out)
            if body.ended and self.exchange is exchange:
                if body.broken is not None:
                    exchange.upstream_failed(Fault.MALFORMED)
                else:
                    exchange.upstream_ended()
        except Exception as error:  # the boundary of this connection: whatever it is, nobody waits for ever
            exchange.client.gateway.report_bug("upstream", error)
            self.abort()
            exchange.abandon()

    def _read_head(self, data: bytes) -> None:
        exchange = self.exchange
        assert exchange is not None
        data = self._buffer + data if self._buffer else data
        end = data.find(HEAD_END)
        if end < 0:
            self._buffer = data
            if len(data) > _MAX_HEAD_BYTES or not b"HTTP/1.".startswith(data[:7]):
                exchange.upstream_failed(Fault.MALFORMED)
            return
        self._buffer = b""
        try:
            if end > _MAX_HEAD_BYTES:
                raise ReplicaError("response head too large")
            response = parse_response_head(data[: end + 4])
            if response.status < 200:
                self._skip_interim(response, data[end + 4 :])
                return
        except ReplicaError:
            exchange.upstream_failed(Fault.MALFORMED)
            return
        self.response = response
        self.body = _body_of(response, exchange.head.method, framed=not exchange.head.http10)
        exchange.upstream_answered(response, self.body)
        rest = data[end + 4 :]
        if self.exchange is exchange and (rest or self.body.ended):
            self._read_rest(exchange, rest)

    def _read_rest(self, exchange: Exchange, rest: bytes) -> None:
        if rest:
            self.reads -= 1
            self.data_received(rest)
        else:
            exchange.upstream_ended()

    def _skip_interim(self, response: ResponseHead, rest: bytes) -> None:
        self._interim += 1
        if response.status == 101 or self._interim > _MAX_INTERIM:
            raise ReplicaError("unexpected interim response")
        if rest:
            self._read_head(rest)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.pool.forget(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        self.pool.active.discard(self)
        try:
            if self.body is not None and exc is None and self.body.eof():
                exchange.upstream_ended()
            else:
                exchange.upstream_failed(self._fault_of_end())
        except Exception as error:  # as above
            exchange.client.gateway.report_bug("upstream", error)
            exchange.abandon()

    def _fault_of_end(self) -> Fault:
        soon = self.pool.now() - self.begun_at_s < _STALE_S
        return Fault.STALE if self.reads == 0 and self.reused and soon else Fault.RESET

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client.pause_body()

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client.resume_body()


def _body_of(response: ResponseHead, method: bytes, *, framed: bool) -> Body:
    if response.has_no_body(method):
        return CountedBody(0)
    if response.chunked:
        return ChunkedBody(framed=framed)
    if response.content_length is not None:
        return CountedBody(response.content_length)
    return UntilCloseBody()
