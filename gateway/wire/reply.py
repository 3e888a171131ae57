"""Answers the gateway gives itself."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Final

_JSON: Final = b"application/json; charset=utf-8"


def reply(
    status: int,
    body: bytes = b"",
    *,
    content_type: bytes = _JSON,
    headers: bytes = b"",
    close: bool = False,
    head_only: bool = False,
) -> bytes:
    """One whole response. ``headers``: further lines, each with its CRLF. ``head_only`` answers HEAD."""
    typed = b"Content-Type: %b\r\n" % content_type if body else b""
    length = b"" if status == 204 else b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 %d %b\r\n%b%bDate: %b\r\n%b%b\r\n%b" % (
        status,
        HTTPStatus(status).phrase.encode(),
        typed,
        headers,
        formatdate(usegmt=True).encode(),
        length,
        b"Connection: close\r\n" if close else b"",
        b"" if head_only else body,
    )
