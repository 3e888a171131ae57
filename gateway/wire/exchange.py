"""One request from its complete head to the end of its response: the life that docs/design.md tells step by step.

States: QUEUED → SENT → COMMITTED → DONE, and back from SENT to QUEUED when an attempt failed before its first byte.
Everything here runs in loop callbacks, never in a task: an open stream costs a few small objects and no coroutine.

Rules of this file. Nothing is retried once COMMITTED. A lease is given back by exactly one of the carrier's
``finished``, ``spared`` and ``failed``. After DONE no callback may touch the client.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import structs

from corral.errors import Fault, Refusal
from corral.gateway.carried import Carried
from corral.gateway.ended import Attempt
from corral.gateway.schedule.effects import Refuse
from corral.gateway.schedule.ticket import Lease
from corral.gateway.wire.admission import cors_headers
from corral.gateway.wire.bodies import (
    HOLD_BYTES,
    LAST_CHUNK,
    Body,
    ChunkedBody,
    CountedBody,
    UntilCloseBody,
    chunk,
)
from corral.gateway.wire.canonical import with_num_ctx
from corral.gateway.wire.dialect import Ending, error_body, read_ending, refusal_answer, stream_error
from corral.gateway.wire.fields import route_request
from corral.gateway.wire.heads import framing_of, framing_of_held, is_chunked, is_delimited, request_head, response_head
from corral.gateway.wire.outcome import of_exchange, outcome_of
from corral.gateway.wire.reply import reply
from corral.gateway.wire.request_head import RequestHead
from corral.gateway.wire.response_head import ResponseHead
from corral.gateway.wire.routes import Route
from corral.gateway.wire.tenant import tenant_of
from corral.gateway.wire.why import why
from corral.model import Figures, RequestKind

if TYPE_CHECKING:
    from corral.gateway.wire.client import ClientConnection
    from corral.gateway.wire.upstream import UpstreamConnection

CRASH_TEXTS: Final = (
    b"model runner has unexpectedly stopped",
    b"llama-server process has terminated",
    b"an error was encountered while running the model",
    b"error loading llama server",
)
_STREAM_TYPES: Final = (b"application/x-ndjson", b"text/event-stream")
_BROKEN: Final = "the replica stopped in the middle of this answer"
_NOT_REPEATABLE: Final = frozenset({RequestKind.STORE, RequestKind.BLOB})


def _discard(data: bytes) -> None:
    """Where response bytes go while there is no answer to put them in."""


class State(Enum):
    """Where an exchange is in its life."""

    QUEUED = "queued"
    SENT = "sent"
    COMMITTED = "committed"
    DONE = "done"


class Exchange(Carried):
    """A request, its lease while it has one, and the response on its way to the client."""

    __slots__ = (
        "_body",
        "_held",
        "_last_answer",
        "_last_status",
        "_response",
        "_room",
        "attempts",
        "client",
        "failed",
        "first_byte_at_s",
        "forward",
        "head",
        "reader",
        "route",
        "sent_at_s",
        "state",
        "upstream",
    )

    def __init__(
        self, client: ClientConnection, head: RequestHead, route: Route, body: bytes | bytearray, now_s: float
    ) -> None:
        gateway = client.gateway
        body = with_num_ctx(route, body, gateway.num_ctx)
        tenant = tenant_of(head.api_key, client.address, gateway.secret)
        encoding, target = head.content_encoding, head.target
        request = route_request(route, body, head.content_type, tenant, head.rank, encoding=encoding, target=target)
        if head.via:
            via, prefer = head.via.rpartition(b",")[2].decode(), head.prefer.decode()
            request = structs.replace(request, via=via, prefer=prefer)
        super().__init__(request, now_s)
        self.id = (head.request_id or b"").decode()
        self.replayable = not route.once
        self.client = client
        self.head = head
        self.route = route
        self.state = State.QUEUED
        self.upstream: UpstreamConnection | None = None
        self.reader: Body | None = None
        """What follows the response's body, from its head on."""
        self.forward: Callable[[bytes], None] = _discard
        """Takes body bytes from the replica: held until the commit, then written to the client directly."""
        self.sent_at_s: float | None = None
        self.first_byte_at_s: float | None = None
        self._body: bytes | bytearray = body
        self._response: ResponseHead | None = None
        self._held: list[bytes] = []
        self._room = 0
        """How many more bytes of the answer are held back before it is committed."""
        self.attempts = 0
        """How often it was sent to a replica."""
        self.failed: list[Attempt] = []
        self._last_status: int | None = None
        self._last_answer: tuple[bytes, bool] | None = None
        """What the last replica said that could not do better, and whether the client's connection outlives it."""

    def __repr__(self) -> str:
        return f"<Exchange {self.route.label} {self.request.asked} {self.state.value}>"

    @property
    def is_committed(self) -> bool:
        return self.state is State.COMMITTED

    # -- what the carrier asks of it

    def send(self, lease: Lease) -> None:
        """Send the request to the lease's replica, over an idle connection if there is one."""
        gateway = self.client.gateway
        self.state = State.SENT
        self.sent_at_s = gateway.clock()
        self.attempts += 1
        if self.head.trace is not None:
            self.head.forward = self.head.trace.forward_attempt()
        # A request that changes the store, or an account, is sent once at most: a reused connection could leave open
        # whether it was. Nor is one taken where the last one turned out to be closed: its neighbours probably are too.
        fresh = self.stale or self.route.once or self.request.kind in _NOT_REPEATABLE
        connection = None if fresh else gateway.pool.take(lease.replica)
        if connection is not None:
            self._begin(lease, connection)
        else:
            gateway.pool.connect(lease.replica, lambda made: self._connected(lease, made))

    def refuse(self, refusal: Refusal, retry_after_s: int | None) -> None:
        """Answer without a replica (or with what the last one said)."""
        self.state = State.DONE
        if self._last_answer is not None and refusal in (Refusal.EXHAUSTED, Refusal.NO_REPLICA):
            answer, keep = self._last_answer
            self.client.finish_with(answer, keep_alive=keep)
            self._record("error_5xx", self._last_status)
            return
        status, message = refusal_answer(refusal)
        if refusal is Refusal.EXHAUSTED and self.request.kind in _NOT_REPEATABLE:
            message = "the replica's answer was lost; the request may or may not have been carried out"
        headers = self._own_headers()
        if retry_after_s is not None:
            headers += b"Retry-After: %d\r\n" % retry_after_s
        self._answer(status, error_body(self.route.dialect, status, message), headers)
        self.decision = None  # whom it was sent to before did not answer it
        self._record(f"refused_{refusal.name.lower()}", status)

    def interrupt(self, fault: Fault) -> None:
        """The replica went down while this waited for its first byte."""
        if self.state is State.SENT:
            self._drop_upstream()
            self._fail(fault)

    def give_up(self) -> None:
        """The replica hangs: end a stream with its error, send elsewhere what has had no byte."""
        if self.state is State.COMMITTED:
            self.break_off()
        else:
            self.interrupt(Fault.HUNG)

    def break_off(self) -> None:
        """End a committed stream whose replica hangs."""
        if self.state is State.COMMITTED:
            self._drop_upstream()
            self._break()

    def cut_short(self) -> None:
        """The gateway ends now: a stream says so in its dialect, who has had no byte is refused."""
        if self.state is State.SENT:
            carrier = self.client.gateway.carrier
            self._drop_upstream()
            carrier.spared(self)
            carrier.apply([Refuse(self, Refusal.STOPPING, None)])
        else:
            self.break_off()

    def abandon(self) -> None:
        """Something that must not happen did: give the lease back, and let the client see that this is over."""
        unanswered = self.state in (State.QUEUED, State.SENT)
        self.client_gone()
        if unanswered:
            self._answer(500, error_body(self.route.dialect, 500, "internal error of the gateway"), self._own_headers())
        elif self.client.exchange is self:
            self.client.reset()

    def client_gone(self, outcome: str = "client_gone", status: int | None = None) -> None:
        """The client left, or is answered without it with that outcome: stop the replica's work now."""
        carrier = self.client.gateway.carrier
        before, self.state = self.state, State.DONE
        if before is State.DONE:
            return
        if self.lease is not None:
            self._drop_upstream()
            carrier.spared(self)
        else:
            carrier.cancel(self)
        self._record(outcome, self._status if status is None else status)

    # -- the request on its way to the replica

    def _connected(self, lease: Lease, connection: UpstreamConnection | None) -> None:
        if self.lease is not lease or self.state is not State.SENT:  # the client left, or the replica went down
            if connection is not None:
                self.client.gateway.pool.put(connection)
        elif connection is None:
            self._fail(Fault.CONNECT)
        else:
            self._begin(lease, connection)

    def _begin(self, lease: Lease, connection: UpstreamConnection) -> None:
        self.upstream = connection
        self._held = []
        self.forward = self._hold
        streams = self.route.streams_body
        run = self.client.gateway.run_id
        leaf = "" if lease.leaf is None else lease.leaf.load.id
        request = request_head(self.head, lease.replica, None if streams else len(self._body), run, leaf)
        connection.begin(self, request, self._body)
        if self.client.write_paused:  # it did not read its last answer yet: nobody will say so again
            connection.pause()
        if streams:
            self.client.resume_body()

    # -- what the upstream connection reports

    def upstream_answered(self, response: ResponseHead, reader: Body) -> None:
        """A final response head was read."""
        self._response = response
        self.reader = reader
        small = isinstance(reader, CountedBody) and (response.content_length or 0) <= HOLD_BYTES
        # Held back until complete: answers that may mean "try another replica", and those that cost nothing to hold.
        self._room = HOLD_BYTES if small or response.status in (500, 503) else 0

    def upstream_ended(self) -> None:
        """The response is complete as far as HTTP knows."""
        response, reader, upstream = self._response, self.reader, self.upstream
        assert response is not None
        assert reader is not None
        assert upstream is not None
        if self.state is State.SENT:
            fault = self._fault_in_answer(response)
            if fault is not None:
                self._last_answer, self._last_status = self._whole_answer(response), response.status
                self._release_upstream(upstream, response, reader)
                self._fail(fault)
                return
            self._commit()
        ending = read_ending(self.route.end, response.content_type, reader.tail())
        self._release_upstream(upstream, response, reader)
        if ending.complete or response.status != 200:
            self._complete(response, ending)
        else:
            self._break()

    def upstream_failed(self, fault: Fault) -> None:
        """The connection broke, or what came is not HTTP."""
        self._drop_upstream()
        if self.state is State.COMMITTED:
            self._break()
        elif self.state is State.SENT:
            self._fail(fault)

    # -- before the first byte

    def _hold(self, out: bytes) -> None:
        self._held.append(out)
        self._room -= len(out)
        if self._room < 0:
            self._commit()

    def _commit(self) -> None:
        """The first byte goes to the client: from now on nothing can be taken back."""
        gateway = self.client.gateway
        transport = self.client.transport
        assert transport is not None
        assert self._response is not None
        gateway.carrier.first_byte(self, self._leaf())
        self.state = State.COMMITTED
        self.first_byte_at_s = gateway.clock()
        framing = framing_of(self._response, self.head)
        head = response_head(self._response, framing, self._own_headers(), keep=self._may_keep())
        self._held.insert(0, head)
        first = b"".join(self._held)
        if self.reader is not None and self.reader.ended:
            gateway.outbox.put(transport, first)
            self.forward = partial(gateway.outbox.put, transport)
        else:  # a stream: line by line, each at once
            gateway.outbox.flush()
            transport.write(first)
            self.forward = transport.write
        self._held = []
        self._body = b""
        self.head.forward = b""

    def _fail(self, fault: Fault) -> None:
        """One attempt failed before its first byte: the scheduler sends it elsewhere, or refuses it."""
        self._note_failed(fault)
        self.state = State.QUEUED
        self.forward = _discard
        self._response = None
        self.reader = None
        self.client.gateway.carrier.failed(self, fault)

    def _note_failed(self, fault: Fault) -> None:
        if self.lease is not None and self.sent_at_s is not None:
            sent_s, now_s = self.sent_at_s - self.arrived_at_s, self.client.gateway.clock() - self.arrived_at_s
            self.failed.append(Attempt(self.lease.replica.id, fault.name.lower(), sent_s, now_s))

    def _fault_in_answer(self, response: ResponseHead) -> Fault | None:
        if self.lease is not None and self.lease.is_cloud:
            return None  # what is wrong in the cloud is so for every replica, and others may have another account
        if response.status == 503:
            return Fault.BUSY
        if response.status == 500:
            said = b"".join(self._held)
            if any(text in said for text in CRASH_TEXTS):
                return Fault.CRASHED
        return None

    # -- the end

    def _complete(self, response: ResponseHead, ending: Ending) -> None:
        if self._chunked():
            self.forward(LAST_CHUNK)
        keep = self._may_keep()
        outcome = outcome_of(response.status)
        # The replica said itself that it could not go on: broken like a stream that was cut, but the client knows.
        failed = ending.said_error and self.request.kind is RequestKind.INFERENCE
        figures = ending.figures or Figures() if response.status == 200 else None
        self._done("broken" if failed else outcome, ok=not failed, figures=figures)
        self.client.response_done(keep_alive=keep)

    def _break(self) -> None:
        """The stream ended without being complete: say so in its dialect, or leave it visibly cut."""
        response, reader, client = self._response, self.reader, self.client
        assert response is not None
        assert reader is not None
        self._done("broken", ok=False)
        if response.content_type in _STREAM_TYPES and reader.intact and response.content_length is None:
            mid_line = not reader.tail().endswith(b"\n")
            error = stream_error(self.route.dialect, response.content_type, _BROKEN, mid_line=mid_line)
            if self._chunked():
                # Complete as HTTP goes, so the connection serves on: closing it would lose a request on its way here.
                self.forward(chunk(error) + LAST_CHUNK)
                client.response_done(keep_alive=self._may_keep())
            else:
                self.forward(error)
                client.close_after_response()
        elif self._chunked() or response.content_length is not None:
            client.close_after_response()  # without last chunk or with bytes missing: no client takes it for complete
        else:
            client.reset()

    def _done(self, outcome: str, *, ok: bool, figures: Figures | None = None) -> None:
        self.state = State.DONE
        self.client.gateway.carrier.finished(self, ok=ok, figures=figures)
        self._record(outcome, self._status, figures)

    @property
    def _status(self) -> int | None:
        """Of the answer that the client has had at least the beginning of."""
        return None if self.first_byte_at_s is None or self._response is None else self._response.status

    def _record(self, outcome: str, status: int | None, figures: Figures | None = None) -> None:
        self.client.gateway.over(of_exchange(self, outcome, status, figures))

    # -- connections

    def _release_upstream(self, upstream: UpstreamConnection, response: ResponseHead, reader: Body) -> None:
        self.upstream = None
        clean = response.keep_alive and not reader.leftover() and not isinstance(reader, UntilCloseBody)
        upstream.release(reusable=clean and not self.client.body_unfinished())

    def _drop_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
            if self.state is not State.COMMITTED:
                self.forward = _discard

    # -- heads

    def _chunked(self) -> bool:
        return self._response is not None and is_chunked(self._response, self.head)

    def _may_keep(self) -> bool:
        """Whether the client's connection outlives this response."""
        delimited = self._response is None or is_delimited(self._response, self.head)
        unread = self.client.body_unfinished()
        return self.head.keep_alive and delimited and not unread and not self.client.gateway.draining

    def _whole_answer(self, response: ResponseHead) -> tuple[bytes, bool]:
        """``response`` with the body that was held back, to be sent later if no other replica does better."""
        held = b"".join(self._held)
        payload = ChunkedBody(framed=False).feed(held) if response.chunked and not self.head.http10 else held
        keep = self._may_keep()
        framing = framing_of_held(response, len(payload))
        return response_head(response, framing, self._own_headers(), keep=keep) + payload, keep

    def _own_headers(self) -> bytes:
        gateway = self.client.gateway
        lease, decision = self.lease, self.decision
        chosen = b""
        if lease is not None:
            leaf = self._leaf()
            chosen = b"x-corral-replica: %b\r\n" % (f"{lease.replica.id}/{leaf}" if leaf else lease.replica.id).encode()
            if decision is not None:
                chosen += b"x-corral-reason: %b\r\n" % why(decision.reason, lease.predicted)
        until_s = self.sent_at_s if lease is not None and self.sent_at_s is not None else gateway.clock()
        report = gateway.load_report
        return b"%bx-corral-queue-s: %.3f\r\nx-request-id: %b\r\n%b%b" % (
            chosen,
            until_s - self.arrived_at_s,
            self.head.request_id or b"-",
            cors_headers(gateway.rules, self.head),
            b"" if report is None else report.line(self.head.forward),
        )

    def _leaf(self) -> str:
        """Which replica below its own makes the answer, as that says."""
        if self.lease is None or self.lease.replica.admin is None or self._response is None:
            return ""
        return self._response.replica.decode()

    def _answer(self, status: int, body: bytes, headers: bytes) -> None:
        self._response = None
        keep = self._may_keep()
        answer = reply(status, body, headers=headers, close=not keep, head_only=self.head.method == b"HEAD")
        self.client.finish_with(answer, keep_alive=keep)
