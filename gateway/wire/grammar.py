"""The HTTP/1.1 grammar Corral accepts, as regular expressions over whole heads: what does not match is refused.

One compiled expression checks a head at C speed, so strictness costs nothing: no bare LF, no obs-fold, no NUL, no
space before a colon, no empty or non-ASCII name can pass: the grammar (RFC 9110 §5, RFC 9112) has no place for them.
"""

from __future__ import annotations

import re
from typing import Final

HEAD_END: Final = b"\r\n\r\n"

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_FIELDS: Final = rb"((?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+)"

REQUEST_HEAD: Final = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]++) HTTP/1\.([01])\r\n" + _FIELDS + rb"\r\n")
RESPONSE_HEAD: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9]{2})( [\t\x20-\x7e\x80-\xff]*+|)\r\n" + _FIELDS + rb"\r\n"
)
TRAILERS: Final = re.compile(_FIELDS + rb"\r\n")

BARE_LF: Final = re.compile(rb"(?<!\r)\n")

CHUNK_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})((?:;[\t\x20-\x7e\x80-\xff]{0,256}+)?)\r\n")
"""Size and extension. 15 hex digits stay below 2**60; ``0x``, ``+``, ``_`` and spaces have no place."""

LENGTH: Final = re.compile(rb"[0-9]{1,18}")
HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%\-\[\]:]*+")
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._\-]{1,128}")
VIA: Final = re.compile(rb"[0-9a-f]{8}(?:,[0-9a-f]{8}){0,31}")
"""Runs of Corrals."""
_ID: Final = rb"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._\-]{1,64}"
LEAF: Final = re.compile(_ID + rb"(?:/" + _ID + rb"){0,7}")
"""A replica below a Corral."""


def header_values(value: bytes) -> list[bytes]:
    """The lower-case members of a comma-separated header value."""
    return [member.strip().lower() for member in value.split(b",")]
