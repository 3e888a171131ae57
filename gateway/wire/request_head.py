"""A client's request head: parsed strictly, split into what Corral acts on and what it forwards verbatim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from corral.errors import ClientError
from corral.gateway.wire.grammar import HOST, LEAF, LENGTH, REQUEST_HEAD, REQUEST_ID, VIA, header_values

if TYPE_CHECKING:
    from corral.gateway.trace import Trail

# How a field of the request is treated; names not listed here are forwarded as they came.
_DROP: Final = 0
_HOST: Final = 1
_ORIGIN: Final = 2
_REQUEST_ID: Final = 3
_CLASS: Final = 4
_LENGTH: Final = 5
_CODING: Final = 6
_CONNECTION: Final = 7
_EXPECT: Final = 8
_TYPE: Final = 9
_AUTHORIZATION: Final = 10
_API_KEY: Final = 11
_ENCODING: Final = 12
_VIA: Final = -1
_PREFER: Final = -2

_SPECIAL: Final[dict[bytes, int]] = {
    b"host": _HOST,
    b"origin": _ORIGIN,
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"expect": _EXPECT,
    b"x-request-id": _REQUEST_ID,
    b"content-type": _TYPE,
    b"content-encoding": _ENCODING,
    b"authorization": _AUTHORIZATION,
    b"x-api-key": _API_KEY,
    b"x-corral-class": _CLASS,
    b"x-corral-via": _VIA,
    b"x-corral-prefer": _PREFER,
    # Hop by hop (RFC 9110 §7.6.1), and the names Corral itself speaks with.
    b"keep-alive": _DROP,
    b"proxy-connection": _DROP,
    b"proxy-authorization": _DROP,
    b"te": _DROP,
    b"trailer": _DROP,
    b"upgrade": _DROP,
    b"http2-settings": _DROP,
    b"x-corral-replica": _DROP,
    b"x-corral-reason": _DROP,
    b"x-corral-queue-s": _DROP,
    b"x-corral-parts": _DROP,
}
_RANKS: Final = {b"interactive": 0, b"normal": 1, b"batch": 2}
_NORMAL: Final = 1
_CANNOT_BE_NAMED_IN_CONNECTION: Final = frozenset(
    {b"host", b"content-length", b"content-type", b"content-encoding", b"authorization"}
)
_PLAIN_CONNECTION: Final = frozenset({b"keep-alive", b"close", b"upgrade", b"te", b"http2-settings", b""})


class RequestHead:
    """One parsed request head. ``forward`` holds the end-to-end header lines, each with its CRLF."""

    __slots__ = (
        "api_key",
        "chunked",
        "content_encoding",
        "content_length",
        "content_type",
        "expects_continue",
        "forward",
        "host",
        "http10",
        "keep_alive",
        "method",
        "origin",
        "path",
        "prefer",
        "rank",
        "request_id",
        "target",
        "trace",
        "via",
    )

    def __init__(self, method: bytes, target: bytes, http10: bool) -> None:
        self.method = method
        self.target = target
        self.path = ""
        """Decoded, without the query: what routes are matched against. ``target`` is what is forwarded."""
        self.http10 = http10
        self.keep_alive = not http10
        self.content_length: int | None = None
        self.chunked = False
        self.expects_continue = False
        self.host: bytes | None = None
        self.origin: bytes | None = None
        self.request_id: bytes | None = None
        self.content_type = b""
        self.content_encoding: bytes | None = None
        """As :attr:`content_type`, the first that is given: so Ollama takes them."""
        self.api_key = b""
        """What the client proves itself with, empty: nothing. Never to be logged or kept."""
        self.rank = _NORMAL
        """Its class: 0 interactive, 1 normal, 2 batch."""
        self.forward = b""
        self.prefer = b""
        """Where the last of these thinks that it goes."""
        self.via = b""
        """The runs of the Corrals that it came through, with commas; empty: it came from a client."""
        self.trace: Trail | None = None
        """None: it is not traced."""


def parse_request_head(head: bytes) -> RequestHead:
    """Parse ``head`` (up to and including the empty line). Raises ClientError (400, 417 or 505)."""
    match = REQUEST_HEAD.fullmatch(head)
    if match is None:
        raise ClientError(*_why_not(head))
    method, target, minor, fields = match.groups()
    request = RequestHead(method, target, minor == b"0")
    _take_fields(request, fields)
    _check_framing(request)
    _take_target(request)
    return request


def _take_fields(request: RequestHead, fields: bytes) -> None:
    forward: list[bytes] = []
    hop_by_hop: list[bytes] = []
    for line in fields.split(b"\r\n"):  # the last one is empty: it gives the joined lines their final CRLF
        colon = line.find(b":")
        name = line[:colon].lower()
        action = _SPECIAL.get(name)
        if action is None:
            # As nginx does: a name with "_" could pass for its twin with "-" further on.
            if b"_" not in name:
                forward.append(line)
        elif action >= _TYPE:
            forward.append(line)
            _take_forwarded(request, action, line[colon + 1 :].strip(b" \t"))
        elif action >= _LENGTH:
            _take_framing(request, action, line[colon + 1 :].strip(b" \t"), hop_by_hop)
        elif action:
            _take_note(request, action, line[colon + 1 :].strip(b" \t"))
    if hop_by_hop:
        named = frozenset(hop_by_hop) - _CANNOT_BE_NAMED_IN_CONNECTION
        forward = [line for line in forward if line.partition(b":")[0].lower() not in named]
    request.forward = b"\r\n".join(forward)


def _take_forwarded(request: RequestHead, action: int, value: bytes) -> None:
    """Content-Type, Content-Encoding and keys: forwarded as they are, and looked at here."""
    if action == _TYPE:
        request.content_type = request.content_type or value
    elif action == _ENCODING:
        if request.content_encoding is None:
            request.content_encoding = value
    elif action == _API_KEY:
        request.api_key = value
    else:
        scheme, _, token = value.partition(b" ")
        if scheme.lower() == b"bearer":
            request.api_key = token.strip(b" \t")


def _take_framing(request: RequestHead, action: int, value: bytes, hop_by_hop: list[bytes]) -> None:
    """Content-Length, Transfer-Encoding, Connection, Expect: what decides where the body ends and what may pass."""
    if action == _LENGTH:
        if request.content_length is not None or LENGTH.fullmatch(value) is None:
            raise ClientError(400, "invalid Content-Length")
        request.content_length = int(value)
    elif action == _CONNECTION:
        if value != b"keep-alive":
            _take_connection(request, value, hop_by_hop)
    elif action == _CODING:
        if request.chunked or value.lower() != b"chunked":
            raise ClientError(400, "unsupported Transfer-Encoding")
        request.chunked = True
    else:
        if value.lower() != b"100-continue":
            raise ClientError(417, "unsupported Expect header")
        request.expects_continue = True


def _take_note(request: RequestHead, action: int, value: bytes) -> None:
    """Host, Origin, class, request id: not forwarded as they are, but needed here."""
    if action == _HOST:
        if request.host is not None or HOST.fullmatch(value) is None:
            raise ClientError(400, "invalid Host header")
        request.host = value
    elif action == _ORIGIN:
        if request.origin is not None:
            raise ClientError(400, "more than one Origin header")
        request.origin = value
    elif action == _VIA:
        request.via = value if VIA.fullmatch(value) else b""
    elif action == _PREFER:
        request.prefer = value if LEAF.fullmatch(value) else b""
    elif action == _CLASS:
        request.rank = _RANKS.get(value.lower(), _NORMAL)
    else:
        request.request_id = value if REQUEST_ID.fullmatch(value) else None


def _take_connection(request: RequestHead, value: bytes, hop_by_hop: list[bytes]) -> None:
    for member in header_values(value):
        if member == b"close":
            request.keep_alive = False
        elif member not in _PLAIN_CONNECTION:
            hop_by_hop.append(member)


def _check_framing(request: RequestHead) -> None:
    if request.host is None:
        if not request.http10:
            raise ClientError(400, "missing Host header")
        request.host = b""
    if request.chunked and request.content_length is not None:
        raise ClientError(400, "both Content-Length and Transfer-Encoding")
    if request.chunked and request.http10:
        raise ClientError(400, "Transfer-Encoding in an HTTP/1.0 request")


def _take_target(request: RequestHead) -> None:
    target = request.target
    if target[:1] != b"/":
        if target == b"*" and request.method == b"OPTIONS":
            request.path = "*"
            return
        target = _origin_form(request)
    raw = target.partition(b"?")[0]
    if b"%" in raw:
        lowered = raw.lower()
        if b"%2f" in lowered or b"%5c" in lowered or b"%00" in lowered:
            raise ClientError(400, "encoded slash, backslash or NUL in the path")
        raw = unquote_to_bytes(raw)
    path = raw.decode("utf-8", "replace")
    if "/." in path and any(segment in (".", "..") for segment in path.split("/")):
        raise ClientError(400, "dot segments in the path")
    if "\\" in path or "#" in path:
        raise ClientError(400, "invalid character in the path")
    request.path = path


def _origin_form(request: RequestHead) -> bytes:
    """``http://host/path`` → ``/path`` (RFC 9112 §3.2.2: its host replaces the Host header)."""
    scheme, separator, rest = request.target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise ClientError(400, "invalid request target")
    host, slash, path = rest.partition(b"/")
    if not host or HOST.fullmatch(host) is None:
        raise ClientError(400, "invalid request target")
    request.host = host
    request.target = slash + path if slash else b"/"
    return request.target


def _why_not(head: bytes) -> tuple[int, str]:
    """Name what is wrong with a head that the grammar refused; the client's own bytes are not repeated."""
    line = head.partition(b"\n")[0].rstrip(b"\r")
    parts = line.split(b" ")
    if b"\x00" in head:
        return 400, "NUL in the request head"
    if len(parts) == 3 and parts[2].startswith(b"HTTP/") and parts[2] not in (b"HTTP/1.0", b"HTTP/1.1"):
        return 505, "only HTTP/1.0 and HTTP/1.1 are spoken here"
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/"):
        return 400, "malformed request line"
    return 400, "malformed request header"
