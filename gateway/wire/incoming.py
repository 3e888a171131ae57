"""A request body as it comes in: where it ends, and what may be passed on or kept of it."""

from __future__ import annotations

from corral.errors import ClientError
from corral.gateway.wire.bodies import LAST_CHUNK, ChunkedBody, chunk
from corral.gateway.wire.request_head import RequestHead


class IncomingBody:
    """Reads one request body, counted or chunked."""

    __slots__ = ("_decoder", "_rest", "kept")

    def __init__(self, head: RequestHead) -> None:
        self._rest = head.content_length or 0
        self._decoder = ChunkedBody(framed=False, tail=False) if head.chunked else None
        self.kept = bytearray()
        """Of a body that is buffered: its payload so far. Of an upload: what came before its replica was ready."""

    def take(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Payload, bytes behind the body, and whether it is complete. Raises ClientError."""
        if self._decoder is None:
            payload, surplus = data[: self._rest], data[self._rest :]
            self._rest -= len(payload)
            return payload, surplus, self._rest == 0
        payload = self._decoder.feed(data)
        if self._decoder.broken is not None:
            raise ClientError(400, f"malformed chunked body: {self._decoder.broken}")
        return payload, self._decoder.leftover(), self._decoder.ended

    def framed(self, payload: bytes, *, ended: bool) -> bytes:
        """``payload`` framed for the replica as the client framed it."""
        if self._decoder is None:
            return payload
        return (chunk(payload) if payload else b"") + (LAST_CHUNK if ended else b"")
