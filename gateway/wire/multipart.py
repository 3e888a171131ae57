"""One field of a multipart form (RFC 7578), read for routing: strictly, in one pass, and without copying a file.

Rules of this file:

1. What is found is what Ollama finds, which takes the first value of a name. Where a form could be read in two ways,
   nothing is found: the request names no model, and Ollama itself says what is wrong with it.
2. A file is searched for its end, and never looked into: what a field is called is read between boundaries only.
3. Parts, their heads and the value have a most; time grows with the length of the body, whatever is in it.
"""

from __future__ import annotations

import re
from typing import Final

from corral.gateway.wire.grammar import TRAILERS

MOST_VALUE_BYTES: Final = 512
_MOST_PARTS: Final = 100
_MOST_HEAD_BYTES: Final = 8192
_MOST_PARAMETERS: Final = 16
_MOST_LOOKALIKES: Final = 1000
"""What begins like a boundary in a file. One that a client drew by lot stands in no file; a search costs."""

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_PARAMETER: Final = re.compile(rb"[ \t]*+;[ \t]*+(" + _TOKEN + rb')=(?:"((?:[^"\\]|\\.)*+)"|(' + _TOKEN + rb"))")
_END_OF_PARAMETERS: Final = re.compile(rb"[ \t]*+;?[ \t]*+")
_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_REST_OF_LINE: Final = re.compile(rb"[ \t]{0,256}+\r\n")
_SPACE: Final = frozenset(b" \t\r\n")
_DASH: Final = ord("-")


class _OddError(Exception):
    """The form breaks the grammar, or another reader could understand it differently."""


def form_value(body: bytes | bytearray, content_type: bytes, name: bytes) -> bytes | None:
    """The value of the field ``name``; None: there is none, or the form cannot be read."""
    try:
        return _value(body, b"\r\n--" + _boundary(content_type), name)
    except _OddError:
        return None


def _boundary(content_type: bytes) -> bytes:
    kind, parameters = _parse(content_type)
    boundary = parameters.get(b"boundary", b"")
    if kind != b"multipart/form-data" or _BOUNDARY.fullmatch(boundary) is None:
        raise _OddError
    return boundary


def _value(body: bytes | bytearray, delimiter: bytes, name: bytes) -> bytes | None:
    at: int | None = _first_line(body, delimiter)
    for _ in range(_MOST_PARTS):
        if at is None:
            return None
        head = TRAILERS.match(body, at, at + _MOST_HEAD_BYTES)
        if head is None:
            raise _OddError
        # An empty part may end with the very line end that ends its head.
        end = _end_of_part(body, delimiter, head.end() - 2)
        if _is_value_of(head[1], name):
            value = bytes(body[head.end() : min(end, head.end() + MOST_VALUE_BYTES + 1)])
            return value if len(value) <= MOST_VALUE_BYTES else None
        at = _next_part(body, end + len(delimiter))
    raise _OddError


def _first_line(body: bytes | bytearray, delimiter: bytes) -> int | None:
    """Where the first part begins: nothing but an empty line may stand before its boundary."""
    for start in (delimiter[2:], delimiter):
        if body.startswith(start):
            return _next_part(body, len(start))
    raise _OddError


def _next_part(body: bytes | bytearray, at: int) -> int | None:
    """Where the part begins whose boundary ends at ``at``; None: that was the last boundary."""
    if body[at : at + 2] == b"--":
        return None
    line = _REST_OF_LINE.match(body, at)
    if line is None:
        raise _OddError
    return line.end()


def _end_of_part(body: bytes | bytearray, delimiter: bytes, at: int) -> int:
    for _ in range(_MOST_LOOKALIKES):
        at = body.find(delimiter, at)
        behind = at + len(delimiter)
        if at < 0 or behind >= len(body):
            raise _OddError
        if body[behind] in _SPACE or body[behind : behind + 2] == b"--":
            return at
        if body[behind] == _DASH:  # to some readers an end, to others a part of the file
            raise _OddError
        at = behind
    raise _OddError


def _is_value_of(head: bytes, name: bytes) -> bool:
    """Whether the part with this head is a plain value of that name."""
    lines = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-disposition:")]
    if len(lines) > 1:
        raise _OddError
    kind, parameters = _parse(lines[0].partition(b":")[2]) if lines else (b"", {})
    if any(key.startswith(b"name*") for key in parameters):
        raise _OddError
    if kind != b"form-data" or parameters.get(b"name") != name:
        return False
    if any(key.startswith(b"filename*") for key in parameters) or b"quoted-printable" in head.lower():
        raise _OddError
    return not parameters.get(b"filename")


def _parse(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """``kind; name="value"; …`` of a header: the kind and the parameters, with lower-case names."""
    kind, semicolon, _ = value.partition(b";")
    parameters: dict[bytes, bytes] = {}
    at = len(kind)
    while (found := _PARAMETER.match(value, at)) is not None:
        key, quoted, plain = found.groups()
        if key.lower() in parameters or len(parameters) == _MOST_PARAMETERS:
            raise _OddError
        parameters[key.lower()] = plain if quoted is None else quoted
        at = found.end()
    if semicolon and _END_OF_PARAMETERS.fullmatch(value, at) is None:
        raise _OddError
    return kind.strip().lower(), parameters
