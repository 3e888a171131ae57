"""A replica's response head: parsed strictly, its end-to-end header lines kept verbatim."""

from __future__ import annotations

from typing import Final

from corral.errors import ReplicaError
from corral.gateway.wire.grammar import LEAF, LENGTH, RESPONSE_HEAD, header_values

_HOP_BY_HOP: Final = frozenset(
    {b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"te", b"trailer", b"upgrade", b"x-corral-replica"}
    | {b"x-corral-reason", b"x-corral-queue-s", b"x-corral-parts", b"x-request-id"}
    | {b"endpoint-load-metrics", b"endpoint-load-metrics-bin"}  # of one replica, not of all behind the gateway
)
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"connection", b"content-type"})


class ResponseHead:
    """One parsed response head. ``forward`` holds the end-to-end lines, framing headers left out."""

    __slots__ = ("chunked", "content_length", "content_type", "forward", "keep_alive", "reason", "replica", "status")

    def __init__(self, status: int, reason: bytes, http10: bool) -> None:
        self.status = status
        self.reason = reason
        self.keep_alive = not http10
        self.chunked = False
        self.content_length: int | None = None
        self.content_type = b""
        self.forward = b""
        self.replica = b""
        """Of a Corral's answer: which of its replicas makes it."""

    def has_no_body(self, method: bytes) -> bool:
        """Whether a response to ``method`` ends with its head (RFC 9112 §6.3)."""
        return method == b"HEAD" or self.status in (204, 304) or self.status < 200


_parsed: dict[bytes, ResponseHead] = {}
"""The last few heads: a replica's streams all begin with the same one, but for a date that changes once a second."""
_PARSED_HEADS: Final = 64
_PARSED_BYTES: Final = 1024


def parse_response_head(head: bytes) -> ResponseHead:
    """Parse ``head`` (up to and including the empty line); never changed afterwards. Raises ReplicaError."""
    response = _parsed.get(head)
    if response is None:
        response = _parse(head)
        if len(_parsed) >= _PARSED_HEADS:
            _parsed.clear()
        if len(head) <= _PARSED_BYTES:
            _parsed[head] = response
    return response


def _parse(head: bytes) -> ResponseHead:
    match = RESPONSE_HEAD.fullmatch(head)
    if match is None:
        raise ReplicaError("malformed response head")
    minor, status, reason, fields = match.groups()
    response = ResponseHead(int(status), reason, minor == b"0")
    forward: list[bytes] = []
    named: list[bytes] = []
    for line in fields.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        key = name.lower()
        if key in _FRAMING:
            _take_framing(response, key, value.strip(b" \t"), line, forward, named)
        elif key not in _HOP_BY_HOP:
            forward.append(line)
        elif key == b"x-corral-replica" and LEAF.fullmatch(value.strip(b" \t")):
            response.replica = value.strip(b" \t")
    if named:
        forward = [line for line in forward if line.partition(b":")[0].lower() not in named]
    forward.append(b"")
    response.forward = b"\r\n".join(forward)
    if response.chunked and (response.content_length is not None or minor == b"0"):
        raise ReplicaError("contradictory framing")
    return response


def _take_framing(
    response: ResponseHead, key: bytes, value: bytes, line: bytes, forward: list[bytes], named: list[bytes]
) -> None:
    if key == b"content-type":
        response.content_type = value.partition(b";")[0].strip().lower()
        forward.append(line)
    elif key == b"content-length":
        if response.content_length is not None or LENGTH.fullmatch(value) is None:
            raise ReplicaError("invalid Content-Length")
        response.content_length = int(value)
    elif key == b"transfer-encoding":
        if response.chunked or value.lower() != b"chunked":
            raise ReplicaError("unsupported Transfer-Encoding")
        response.chunked = True
    else:
        members = header_values(value)
        response.keep_alive = response.keep_alive and b"close" not in members
        named.extend(member for member in members if member not in (b"close", b"keep-alive"))
