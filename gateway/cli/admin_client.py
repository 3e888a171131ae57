"""One question to the admin port of a running gateway, and what to say when it cannot be asked."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from corral.errors import OperatorError

TIMEOUT_S = 3.0


def ask(admin: str, method: str, path: str) -> dict[str, Any]:
    """The JSON object the admin port answers. Raises :class:`OperatorError` when it refuses or is not there."""
    host, port = _place(admin)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise OperatorError(
            f"no gateway answers on {admin} ({why})\n"
            "  start one: corral serve --config FILE (or corral demo)\n"
            "  or name its admin address: --admin URL or CORRAL_ADMIN"
        ) from error
    finally:
        connection.close()
    return _object(admin, path, answer.status, body)


def _object(admin: str, path: str, status: int, body: bytes) -> dict[str, Any]:
    try:
        page = json.loads(body)
    except ValueError:
        page = None
    if not isinstance(page, dict) or (status == 200 and "schema" not in page and "id" not in page):
        raise OperatorError(
            f"what answers on {admin} is not the admin port of a Corral\n"
            "  its address is admin_listen in the configuration: --admin URL or CORRAL_ADMIN"
        )
    if status != 200:
        raise OperatorError(str(page.get("error", f"{admin}{path} answered {status}")))
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
