"""An answer that a task of the gateway makes: whole, or piece by piece as fast as the client reads."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from corral.gateway.ended import PATH_CHARS, Ended
from corral.gateway.wire.admission import cors_headers
from corral.gateway.wire.bodies import LAST_CHUNK, chunk
from corral.gateway.wire.dialect import error_body, refusal_answer, stream_error
from corral.gateway.wire.outcome import outcome_of
from corral.gateway.wire.reply import reply
from corral.gateway.wire.request_head import RequestHead
from corral.gateway.wire.routes import Route
from corral.gateway.wire.tenant import tenant_of
from corral.model import Figures

if TYPE_CHECKING:
    from corral.errors import Refusal
    from corral.gateway.wire.client import ClientConnection

JSON: Final = b"application/json; charset=utf-8"
PLAIN_JSON: Final = b"application/json"
NDJSON: Final = b"application/x-ndjson"


class Answering:
    """The answer to one request of one client, written by a task that ends when the client leaves.

    Either :meth:`whole`, or :meth:`begin`, :meth:`piece` any number of times, and :meth:`end`. After that, and after
    the client left, nothing it is told has any effect.
    """

    __slots__ = (
        "_arrived_at_s",
        "_chunked",
        "_client",
        "_content_type",
        "_first_at_s",
        "_is_over",
        "_may_write",
        "_status",
        "body",
        "head",
        "is_begun",
        "is_page",
        "model",
        "prompt_tokens",
        "queue_s",
        "replica_id",
        "route",
    )

    def __init__(self, client: ClientConnection, head: RequestHead, route: Route, body: bytes | bytearray) -> None:
        self._client = client
        self.head = head
        self.route = route
        self.body = body
        """The request's; empty where it is streamed."""
        self.is_begun = False
        self.is_page = False
        """Made from what the gateway knows: not counted among the requests."""
        self.model: str | None = None
        """For the metrics, as :attr:`replica_id`."""
        self.replica_id: str | None = None
        self.queue_s = 0.0
        self.prompt_tokens: int | None = None
        self._arrived_at_s = client.gateway.clock()
        self._first_at_s: float | None = None
        self._status: int | None = None
        self._content_type = b""
        self._chunked = not head.http10
        self._is_over = False
        self._may_write = asyncio.Event()
        self._may_write.set()

    @property
    def tenant(self) -> str:
        """Who asks."""
        client = self._client
        return tenant_of(self.head.api_key, client.address, client.gateway.secret)

    # -- whole answers

    def whole(self, status: int, body: bytes, content_type: bytes = JSON, headers: bytes = b"") -> None:
        """One answer in one piece, with its length. ``headers``: further lines, each with its CRLF."""
        client, head = self._client, self.head
        if self._is_over or client.transport is None:
            return
        keep = self._may_keep()
        headers += self._own_headers()
        head_only = head.method == b"HEAD"
        answer = reply(status, body, content_type=content_type, headers=headers, close=not keep, head_only=head_only)
        self._first_at_s = client.gateway.clock()
        self._over(outcome_of(status), status)
        client.finish_with(answer, keep_alive=keep)

    def error(self, status: int, message: str, headers: bytes = b"") -> None:
        """An error in the shape of the route's dialect: whole, or, after :meth:`begin`, as the stream's end."""
        if self.is_begun:
            self._end_with_error(message)
        else:
            self.whole(status, error_body(self.route.dialect, status, message), headers=headers)

    def refuse(self, refusal: Refusal, retry_after_s: int | None = None) -> None:
        status, message = refusal_answer(refusal)
        self.error(status, message, b"" if retry_after_s is None else b"Retry-After: %d\r\n" % retry_after_s)

    # -- answers in pieces

    def begin(self, status: int = 200, content_type: bytes = NDJSON, headers: bytes = b"") -> None:
        """The head: from now on only the stream itself can tell that something went wrong. ``headers``: further lines,
        each with its CRLF."""
        client = self._client
        if self._is_over or client.transport is None:
            return
        self.is_begun = True
        self._status = status
        self._content_type = content_type
        self._first_at_s = client.gateway.clock()
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        close = b"" if self._chunked and self._may_keep() else b"Connection: close\r\n"
        client.gateway.outbox.flush()
        client.transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\n%bDate: %b\r\n%b%b\r\n"
            % (
                status,
                HTTPStatus(status).phrase.encode(),
                content_type,
                headers + self._own_headers(),
                formatdate(usegmt=True).encode(),
                framing,
                close,
            )
        )

    async def piece(self, data: bytes) -> None:
        """One piece, which is one chunk. Waits while the client does not read what it was sent."""
        self.put(data)
        await self._may_write.wait()

    def put(self, data: bytes) -> None:
        """One piece without waiting: for few and small ones."""
        transport = self._client.transport
        if data and not self._is_over and transport is not None:
            transport.write(chunk(data) if self._chunked else data)

    def end(self) -> None:
        """The stream is complete."""
        if not self._is_over:
            self._close_stream(b"", "ok")

    def cut_short(self) -> None:
        """The gateway ends now."""
        if self._is_over:
            return
        if self.is_begun:
            self._end_with_error("the gateway is shutting down")
        else:
            self.error(503, "the gateway is shutting down")

    def _end_with_error(self, message: str) -> None:
        """The error in the stream's own shape, and a proper end, as Ollama does."""
        if not self._is_over:
            error = stream_error(self.route.dialect, self._content_type, message, mid_line=False)
            self._close_stream(error, "broken")

    def _close_stream(self, last: bytes, outcome: str) -> None:
        client = self._client
        transport = client.transport
        self._over(outcome)
        if transport is None:
            return
        if self._chunked:
            transport.write((chunk(last) if last else b"") + LAST_CHUNK)
        else:
            transport.write(last)
        client.response_done(keep_alive=self._chunked and self._may_keep())

    # -- what the connection tells

    def pause(self) -> None:
        """The client does not read."""
        self._may_write.clear()

    def resume(self) -> None:
        self._may_write.set()

    def client_gone(self, outcome: str = "client_gone", status: int | None = None) -> None:
        """It left, or is answered without this with that outcome."""
        if not self._is_over:
            self._over(outcome, status)

    # -- what it shares with every answer

    def _over(self, outcome: str, status: int | None = None) -> None:
        self._is_over = True
        gateway = self._client.gateway
        total_s = gateway.clock() - self._arrived_at_s
        head = self.head
        gateway.over(
            Ended(
                id=(head.request_id or b"-").decode(),
                at=gateway.wall() - total_s,
                kind=self.route.label,
                method=head.method.decode(),
                path=head.path[:PATH_CHARS],
                outcome=outcome,
                status=self._status if status is None else status,
                model=self.model,
                tenant=self.tenant,
                rank=head.rank,
                replica=self.replica_id,
                queue_s=self.queue_s,
                first_byte_s=None if self._first_at_s is None else self._first_at_s - self._arrived_at_s,
                total_s=total_s,
                request_bytes=len(self.body),
                figures=None if self.prompt_tokens is None else Figures(prompt_tokens=self.prompt_tokens),
                is_page=self.is_page,
                trace=None if head.trace is None else head.trace.over(),
            )
        )

    def _may_keep(self) -> bool:
        unread = self._client.body_unfinished()
        return self.head.keep_alive and not unread and not self._client.gateway.draining

    def _own_headers(self) -> bytes:
        gateway = self._client.gateway
        chosen = b"" if self.replica_id is None else b"x-corral-replica: %b\r\n" % self.replica_id.encode()
        report = gateway.load_report
        return b"%bx-request-id: %b\r\n%b%b" % (
            chosen,
            self.head.request_id or b"-",
            cors_headers(gateway.rules, self.head),
            b"" if report is None else report.line(self.head.forward),
        )
