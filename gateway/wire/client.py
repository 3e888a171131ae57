"""One client connection: reads requests strictly, one at a time, and watches whether the client is still there.

States: HEAD (waiting for or reading a head) → BODY (reading a body that is buffered) → BUSY (an exchange, or a page
the gateway makes itself, is under way) → HEAD again. STREAM is BUSY with a request body that passes through; LINGER
reads and drops what a refused client still sends, so that the refusal is not lost to a reset; CLOSED is the end.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

from corral.errors import ClientError
from corral.gateway.wire.admission import answered_by_rules, cors_headers, refuse_loops
from corral.gateway.wire.answering import Answering
from corral.gateway.wire.dialect import error_body
from corral.gateway.wire.exchange import Exchange
from corral.gateway.wire.grammar import BARE_LF, HEAD_END
from corral.gateway.wire.incoming import IncomingBody
from corral.gateway.wire.outcome import of_bad_request, outcome_of
from corral.gateway.wire.reply import reply
from corral.gateway.wire.request_head import RequestHead, parse_request_head
from corral.gateway.wire.routes import Route, dialect_of, find_route
from corral.gateway.wire.upload import Upload

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

_PIPELINE_BYTES: Final = 64 * 1024
"""What a client may send ahead while its request is answered; reading on is how its leaving is seen."""
_WRITE_BUFFER_BYTES: Final = 256 * 1024
_LINGER_S: Final = 5.0
_UNREAD_S: Final = 60.0
"""A client must read something of a finished answer within this time."""
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
        "_head",
        "_route",
        "_task",
        "_unsent",
        "_upload",
        "address",
        "answering",
        "deadline_s",
        "exchange",
        "gateway",
        "idle_since_s",
        "state",
        "transport",
        "write_paused",
    )

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.transport: asyncio.Transport | None = None
        self.address = ""
        self.state = State.HEAD
        self.exchange: Exchange | None = None
        self.answering: Answering | None = None
        """Instead of an exchange: the answer that a task of the gateway makes."""
        self.deadline_s = 0.0
        """When a half-sent head or body, or an answer nobody reads, is over (only while in ``gateway.slow``)."""
        self.idle_since_s = 0.0
        self.write_paused = False
        """More than _WRITE_BUFFER_BYTES wait for the client to read: nothing new is begun meanwhile."""
        self._ahead: bytes | bytearray = b""
        """Bytes read but not yet used: a partial head, or a pipelined request."""
        self._head: RequestHead | None = None
        self._route: Route | None = None
        self._body: IncomingBody | None = None
        self._task: asyncio.Task[None] | None = None
        """Makes the answer of :attr:`answering`."""
        self._upload: Upload | None = None
        """Takes the body that the task reads while it comes in."""
        self._unsent = 0
        """What the client had not read of its answer when it was last looked at."""

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
        except Exception as error:  # the boundary of this connection: whatever it is, nobody waits for ever
            self.gateway.report_bug("client", error)
            self._refuse(ClientError(500, "internal error of the gateway"))

    def eof_received(self) -> bool:
        return False  # half-closed counts as gone: nobody can tell it from a client that left

    def connection_lost(self, exc: Exception | None) -> None:
        was_sending, self.state = self.state is State.BODY, State.CLOSED
        self.transport = None
        self.gateway.connections.discard(self)
        self.gateway.slow.discard(self)
        self.gateway.watch.discard(self)
        self._end_task()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
        elif was_sending:
            id = self._id_of(self._head)
            self.gateway.over(of_bad_request(self.gateway, id, self._head, None, tenant=self.address))

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None:
            if self.exchange.upstream is not None:
                self.exchange.upstream.pause()
        elif self.answering is not None:
            self.answering.pause()
        elif self.state is State.HEAD:
            self._wait_for_reader()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            if self.exchange.upstream is not None:
                self.exchange.upstream.resume()
        elif self.answering is not None:
            self.answering.resume()
        elif self.state is State.BUSY:
            self.gateway.slow.discard(self)
            self._next()

    def _wait_for_reader(self) -> None:
        """The last answer is not read yet: the next request waits, as long as the client reads at all."""
        self.state = State.BUSY
        self._expect_more(_UNREAD_S)

    # -- heads

    def _take_head(self, data: bytes | bytearray) -> None:
        searched = 0
        if self._ahead:
            searched = max(0, len(self._ahead) - 3)
            self._ahead += data
            data = self._ahead
        elif data[:2] == b"\r\n":  # an empty line before a request is to be ignored (RFC 9112 §2.2)
            data = data[2:]
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
        if gateway.tracer is not None:
            gateway.tracer.begin(head)
        length = head.content_length or 0
        if head.via:
            refuse_loops(head.via, gateway.run_id)
        ruled = answered_by_rules(gateway.rules, head)
        if ruled is not None:
            self._answer_only(head, rest, *ruled)
            return
        route = self._route = find_route(head.method, head.path)
        if not route.streams_body and length > gateway.limits.max_body_bytes:
            raise ClientError(413, f"request body larger than {gateway.limits.max_body_bytes} bytes")
        if not length and not head.chunked:
            self._ahead = rest
            self._start(b"")
        elif route.streams_body:
            self._start_streaming(head, rest)
        elif length and len(rest) >= length:
            self._ahead = rest[length:]
            self._start(rest[:length] if len(rest) > length else rest)
        else:
            self._start_body(head, rest)

    def _answer_only(self, head: RequestHead, rest: bytes, status: int, headers: bytes) -> None:
        self.state = State.BUSY
        keep = head.keep_alive and not head.chunked and not head.content_length
        self._ahead = rest
        id = self._id_of(head)
        self.gateway.over(of_bad_request(self.gateway, id, head, status, tenant=self.address))
        headers += b"x-request-id: %b\r\n" % id
        self.finish_with(reply(status, headers=headers, close=not keep), keep_alive=keep)

    # -- bodies

    def _start_body(self, head: RequestHead, rest: bytes) -> None:
        self.state = State.BODY
        self._body = IncomingBody(head)
        self._expect_more(self.gateway.timeouts.head_s)
        if head.expects_continue and self.transport is not None and not rest:
            self.gateway.outbox.put(self.transport, _CONTINUE)
        if rest:
            self._take_body(rest)

    def _start_streaming(self, head: RequestHead, rest: bytes) -> None:
        self.state = State.STREAM
        self._body = IncomingBody(head)
        self._body.kept += rest
        self.pause_body()
        route = self._route
        assert route is not None
        answering = Answering(self, head, route, b"")
        upload = Upload(self)
        if self._answer_by_task(answering, upload):
            self._upload = upload
        else:
            self._submit(b"")

    def pause_body(self) -> None:
        """The replica (or the connection to it) is not ready for more of a streamed body."""
        if self.state is State.STREAM and self.transport is not None:
            self.transport.pause_reading()
            self.gateway.slow.discard(self)  # it is not the client that is slow
            self.gateway.watch.add(self)

    def resume_body(self) -> None:
        """The replica takes more of a streamed body."""
        if self.state is not State.STREAM or self.transport is None or self._body is None:
            return
        head = self._head
        if head is not None and head.expects_continue:
            head.expects_continue = False
            self.gateway.outbox.put(self.transport, _CONTINUE)
        self._read_on()
        self._expect_more(self.gateway.timeouts.head_s)
        if self._body.kept:
            rest, self._body.kept = bytes(self._body.kept), bytearray()
            self.data_received(rest)

    def _read_on(self) -> None:
        self.gateway.watch.discard(self)
        if self.transport is not None:
            self.transport.resume_reading()

    def body_unfinished(self) -> bool:
        """Whether the client is still sending the body of the request under way."""
        return self.state is State.STREAM

    def _take_body(self, data: bytes) -> None:
        body = self._body
        assert body is not None
        payload, surplus, ended = body.take(data)
        # Each byte buys a little time, and none buys more than a new head_s: neither a dribble nor a silence lasts.
        latest_s = self.gateway.clock() + self.gateway.timeouts.head_s
        self.deadline_s = min(self.deadline_s + len(data) / _MIN_BODY_RATE, latest_s)
        if self._upload is not None:
            self._upload.feed(payload, ended=ended)
            if self._upload.is_full and not ended:
                self.pause_body()
        elif self.state is State.STREAM:
            self._pass_on(body.framed(payload, ended=ended))
        else:
            body.kept += payload
            if len(body.kept) > self.gateway.limits.max_body_bytes:
                raise ClientError(413, f"request body larger than {self.gateway.limits.max_body_bytes} bytes")
        if not ended:
            return
        self.gateway.slow.discard(self)
        self._body = None
        self._ahead = surplus
        if self.state is State.STREAM:
            self.state = State.BUSY
            self._read_on()  # the last piece may have paused it; from here on reading is how its leaving is seen
        else:
            self._start(body.kept)

    def _pass_on(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.upstream is not None and data:
            exchange.replayable = False  # these bytes are not kept
            exchange.upstream.write(data)

    def _take_ahead(self, data: bytes) -> None:
        if len(self._ahead) + len(data) > _PIPELINE_BYTES:
            self.reset()
        elif self._ahead:
            self._ahead = bytes(self._ahead) + data
        else:
            self._ahead = data

    def has_left(self) -> bool:
        """Whether the peer has closed, asked of the system: while it is not read from, nothing tells."""
        connection = self.transport.get_extra_info("socket") if self.transport is not None else None
        if connection is None or connection.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLRDHUP)  # resets and errors are always reported
        return bool(poll.poll(0))

    def abort(self) -> None:
        """End the connection, and with it the exchange."""
        if self.transport is not None:
            self.transport.abort()

    # -- requests

    def _start(self, body: bytes | bytearray) -> None:
        """The request is complete."""
        self.state = State.BUSY
        assert self._head is not None
        assert self._route is not None
        may_answer = self._route.duty is not None
        if not may_answer or not self._answer_by_task(Answering(self, self._head, self._route, body), None):
            self._submit(body)

    def _answer_by_task(self, answering: Answering, upload: Upload | None) -> bool:
        """Have a task of the gateway's make the answer, if it is one that a task makes."""
        task = self.gateway.start_answer(answering, upload)
        if task is None:
            return False
        self.answering, self._task = answering, task
        if self.write_paused:  # it did not read its last answer yet: nobody will say so again
            answering.pause()
        return True

    def _end_task(self, outcome: str = "client_gone", status: int | None = None) -> None:
        """Nobody waits for the task's answer any more."""
        answering, self.answering = self.answering, None
        task, self._task, self._upload = self._task, None, None
        if answering is not None:
            answering.client_gone(outcome, status)
        if task is not None:
            task.cancel()

    def _submit(self, body: bytes | bytearray) -> None:
        assert self._head is not None
        assert self._route is not None
        self.exchange = Exchange(self, self._head, self._route, body, self.gateway.clock())
        self.gateway.carrier.submit(self.exchange)

    # -- responses

    def finish_with(self, answer: bytes, *, keep_alive: bool) -> None:
        """Write one whole response and be ready for the next request."""
        if self.transport is not None:
            self.gateway.outbox.put(self.transport, answer)
        self.response_done(keep_alive=keep_alive)

    def response_done(self, *, keep_alive: bool) -> None:
        """The response is complete."""
        self.exchange = self.answering = self._task = self._upload = None
        self._head = None
        self._route = None
        if self.transport is None:
            return
        if not keep_alive or self.state is State.STREAM:
            self.close_after_response()
            return
        if self.write_paused:
            self._wait_for_reader()
        elif self._ahead:
            # Still BUSY until then: bytes that arrive meanwhile belong behind these.
            self.gateway.loop.call_soon(self._next)
        else:
            self.state = State.HEAD
            self.idle_since_s = self.gateway.clock()

    def _next(self) -> None:
        if self.state is not State.BUSY or self.exchange is not None or self.answering is not None:
            return
        if self.write_paused:
            self._wait_for_reader()
            return
        self.state = State.HEAD
        self.idle_since_s = self.gateway.clock()
        if self._ahead:
            ahead, self._ahead = bytes(self._ahead), b""
            self.data_received(ahead)

    def close_after_response(self) -> None:
        """Close when everything written has left, reading on for a moment (see LINGER)."""
        self.exchange = None
        self._end_task()
        transport = self.transport
        if transport is None:
            return
        if self.state is State.STREAM:
            self._read_on()
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
        begun = exchange is not None and exchange.is_committed
        begun = begun or (self.answering is not None and self.answering.is_begun)
        outcome, status = ("client_gone", None) if begun else (outcome_of(error.status), error.status)
        head, self._head = self._head, None
        self._body = None
        id = self._id_of(head)
        if exchange is not None:
            exchange.client_gone(outcome, status)
        elif self.answering is not None:
            self._end_task(outcome, status)
        else:
            self.gateway.over(of_bad_request(self.gateway, id, head, error.status, tenant=self.address))
        if begun:  # an early answer to an upload: no second head may stand in its middle
            self.reset()
            return
        if self.transport is not None:
            body = error_body(dialect_of(head.path if head is not None else ""), error.status, error.message)
            headers = b"x-request-id: %b\r\n" % id
            headers += cors_headers(self.gateway.rules, head) if head is not None else b""
            self.gateway.outbox.put(self.transport, reply(error.status, body, headers=headers, close=True))
        self.close_after_response()

    def _id_of(self, head: RequestHead | None) -> bytes:
        return (head.request_id if head is not None else None) or self.gateway.new_request_id()

    # -- time

    def _expect_more(self, within_s: float) -> None:
        self.deadline_s = self.gateway.clock() + within_s
        self.gateway.slow.add(self)

    def too_slow(self) -> None:
        """The deadline has passed: a head or body that dribbles in, or a lingering close."""
        self.gateway.slow.discard(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:  # an upload that dribbles
            exchange.client_gone()
            self.reset()
        elif self.transport is None:
            return
        elif self.state in (State.HEAD, State.BODY):
            id = self._id_of(self._head)
            self.gateway.over(of_bad_request(self.gateway, id, self._head, 408, tenant=self.address))
            body = error_body(dialect_of(""), 408, "the request came in too slowly")
            answer = reply(408, body, headers=b"x-request-id: %b\r\n" % id, close=True)
            self.gateway.outbox.put(self.transport, answer)
            self.close_after_response()
        elif 0 < (unsent := self.transport.get_write_buffer_size()) != self._unsent:
            # A slow reader still takes its answer: go on as long as it does.
            self._unsent = unsent
            self._expect_more(_UNREAD_S)
        else:
            self.transport.abort()
