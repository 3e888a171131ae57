"""Heads as they go out, a request's to its replica, a response's to its client: pure, end-to-end lines verbatim."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from corral.gateway.wire.request_head import RequestHead
from corral.gateway.wire.response_head import ResponseHead
from corral.model import Replica

_WITHOUT_BODY: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"DELETE"})


def request_head(
    request: RequestHead, replica: Replica, body_bytes: int | None, run: bytes = b"", leaf: str = ""
) -> bytes:
    """The head for ``replica``. ``body_bytes`` None: the body follows as the client frames it (an upload). ``run``: of
    this gateway, which those must know that may lead back to it; ``leaf``: where below a Corral it is thought to go."""
    is_known = replica.admin is None and replica.found_by is None and not request.via
    via = b"" if is_known else b"x-corral-via: %b\r\n" % (b"%b,%b" % (request.via, run) if request.via else run)
    if leaf:
        via += b"x-corral-prefer: %b\r\n" % leaf.encode()
    if body_bytes is None and request.content_length is None:
        framing = b"Transfer-Encoding: chunked\r\n" if request.chunked else b""
    elif body_bytes is None:
        framing = b"Content-Length: %d\r\n" % (request.content_length or 0)
    elif body_bytes or request.method not in _WITHOUT_BODY:
        framing = b"Content-Length: %d\r\n" % body_bytes
    else:
        framing = b""
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%b%b\r\n" % (
        request.method,
        request.target,
        _host(replica.host, replica.port),
        request.forward,
        framing,
        via,
    )


def is_chunked(response: ResponseHead, request: RequestHead) -> bool:
    """Whether the client gets the body in chunks (an HTTP/1.0 client gets the bare payload until the close)."""
    return response.chunked and not request.http10 and not response.has_no_body(request.method)


def is_delimited(response: ResponseHead, request: RequestHead) -> bool:
    """Whether the client can tell where the response ends without the connection ending."""
    return response.chunked or response.content_length is not None or response.has_no_body(request.method)


def framing_of(response: ResponseHead, request: RequestHead) -> bytes:
    """The header line that says where the response's body ends."""
    if is_chunked(response, request):
        return b"Transfer-Encoding: chunked\r\n"
    if response.content_length is not None and response.status not in (204, 304):
        return b"Content-Length: %d\r\n" % response.content_length
    return b""


def framing_of_held(response: ResponseHead, payload_bytes: int) -> bytes:
    """Header lines for a response that was held back whole; a 503 says when to come back, if the replica did not."""
    framing = b"Content-Length: %d\r\n" % payload_bytes
    if response.status == 503 and b"retry-after:" not in response.forward.lower():
        framing += b"Retry-After: 1\r\n"  # Ollama says none; the SDKs that retry by themselves go by it
    return framing


def response_head(response: ResponseHead, framing: bytes, own: bytes, *, keep: bool) -> bytes:
    """The head for the client; ``own``: the gateway's header lines."""
    return b"HTTP/1.1 %d%b\r\n%b%b%b%b\r\n" % (
        response.status,
        response.reason,
        response.forward,
        framing,
        own,
        b"" if keep else b"Connection: close\r\n",
    )


@lru_cache(maxsize=256)
def _host(host: str, port: int) -> bytes:
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
