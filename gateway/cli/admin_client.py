"""Questions to the admin port of a running gateway, and what to say when it cannot be asked."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from corral.errors import OperatorError
from corral.gateway.cli.events import Events

TIMEOUT_S = 3.0
SILENT_S = 10.0
"""``/live`` says something twice a second; one that is silent for so long has hung."""


class Refused(OperatorError):
    """The gateway is there, and would not or could not do it; ``page`` is what it answered."""

    def __init__(self, text: str, page: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.page = page or {}


def ask(
    admin: str, method: str, path: str, body: object = None, *, timeout_s: float | None = TIMEOUT_S
) -> dict[str, Any]:
    """The JSON object the admin port answers. Raises :class:`Refused` when it does not do it, and
    :class:`OperatorError` when it is not there. ``timeout_s`` None: it may take as long as it takes."""
    try:
        with closing(_connected(admin, timeout_s)) as connection:
            answer = _answer(connection, method, path, body)
            content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise _absent(admin, error) from error
    return _object(admin, path, answer.status, content)


def lines(admin: str, method: str, path: str, body: object = None) -> Iterator[dict[str, Any]]:
    """The objects of an answer in lines, as they come. Raises as :func:`ask`, and where the answer breaks off."""
    try:
        with closing(_connected(admin, None)) as connection:
            answer = _answer(connection, method, path, body)
            if answer.status != 200 or answer.headers.get_content_type() != "application/x-ndjson":
                _object(admin, path, answer.status, answer.read())
                raise OperatorError(f"{admin}{path} answered otherwise than expected: is it another version of Corral?")
            yield from _objects(admin, answer)
    except (OSError, http.client.HTTPException) as error:
        raise _absent(admin, error) from error


def events(admin: str, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of ``/live``, as they come. Raises as :func:`ask`, and where the stream breaks off."""
    try:
        with closing(_connected(admin, SILENT_S)) as connection:
            answer = _answer(connection, "GET", path, None)
            if answer.status != 200 or answer.headers.get_content_type() != "text/event-stream":
                _object(admin, path, answer.status, answer.read())
                raise OperatorError(f"{admin}{path} answered otherwise than expected: is it another version of Corral?")
            yield from _events(admin, answer)
    except (OSError, http.client.HTTPException) as error:
        raise _absent(admin, error) from error


def base_url(admin: str) -> str:
    """The address of the admin port, as a client of another kind wants it."""
    host, port = _place(admin)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _connected(admin: str, timeout_s: float | None) -> http.client.HTTPConnection:
    host, port = _place(admin)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S if timeout_s is None else timeout_s)
    connection.connect()
    connection.sock.settimeout(timeout_s)
    return connection


def _answer(connection: http.client.HTTPConnection, method: str, path: str, body: object) -> http.client.HTTPResponse:
    sent = None if body is None else json.dumps(body)
    connection.request(method, path, sent, {} if body is None else {"Content-Type": "application/json"})
    return connection.getresponse()


def _objects(admin: str, answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """A line that is none is passed over: what a replica says is sent on as it came."""
    try:
        for line in answer:
            found = _loads(line)
            if isinstance(found, dict):
                yield found
    except (OSError, http.client.HTTPException) as error:
        raise OperatorError(f"the gateway on {admin} broke off its answer ({_why(error)})") from error


def _events(admin: str, answer: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    parser = Events()
    try:
        while piece := answer.read1(1 << 16):
            yield from parser.feed(piece)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OperatorError(f"the gateway on {admin} broke off ({_why(error)})") from error
    raise OperatorError(f"the gateway on {admin} ended")


def _loads(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _absent(admin: str, error: Exception) -> OperatorError:
    return OperatorError(
        f"no gateway answers on {admin} ({_why(error)})\n"
        "  start one: corral serve --config FILE (or corral demo)\n"
        "  or name its admin address: --admin URL or CORRAL_ADMIN"
    )


def _why(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "in the middle of its answer"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _object(admin: str, path: str, status: int, body: bytes) -> dict[str, Any]:
    page = _loads(body)
    if not isinstance(page, dict) or (status < 300 and "schema" not in page and "id" not in page):
        raise OperatorError(
            f"what answers on {admin} is not the admin port of a Corral\n"
            "  its address is admin_listen in the configuration: --admin URL or CORRAL_ADMIN"
        )
    if status >= 300:
        raise Refused(str(page.get("error", f"{admin}{path} answered {status}")), page)
    return page


def _place(admin: str) -> tuple[str, int]:
    """Host and port of ``http://host:port`` or ``host:port``."""
    try:
        parts = urlsplit(admin if "://" in admin else f"http://{admin}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = parts = None
    if parts is None or parts.scheme != "http" or not host:
        raise OperatorError(f"--admin {admin!r} is not an address; write for instance http://127.0.0.1:11435")
    return host, port or 11435
