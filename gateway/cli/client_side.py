"""Questions to the address where clients connect, for what a client can do as well."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import Any, Final
from urllib.parse import urlsplit

from corral.errors import OperatorError
from corral.gateway.cli.admin_client import ask, base_url
from corral.gateway.cli.messages import client_url

CONNECT_S: Final = 3.0
_MAX_BYTES: Final = 4 << 20


def address_of(admin: str, timeout_s: float = CONNECT_S) -> str | None:
    """Where clients of this machine meet the gateway with this admin address; None: it does not say, or they cannot.

    Raises :class:`OperatorError` where it does not answer.
    """
    keys = ask(admin, "GET", "/config", timeout_s=timeout_s).get("keys", ())
    listen = next((str(key["value"]) for key in keys if key.get("key") == "listen"), "")
    return met_at(listen, urlsplit(base_url(admin)).hostname or "")


def met_at(listen: str, admin_host: str) -> str | None:
    """The URL of ``host:port`` where the gateway listens, for whoever met its admin port at ``admin_host``."""
    parts = urlsplit(f"//{listen}")
    if not parts.hostname or not parts.port:
        return None
    if _is_loopback(admin_host):
        return client_url(f"http://{listen}")
    if _is_loopback(parts.hostname):
        return None  # only its own machine gets there
    host = admin_host if parts.hostname in ("0.0.0.0", "::") else parts.hostname
    return f"http://{f'[{host}]' if ':' in host else host}:{parts.port}"


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def post(url: str, path: str, body: object) -> tuple[int, dict[str, Any], str | None]:
    """Status, JSON object and the replica that answered. It takes as long as it takes. Raises OperatorError."""
    parts = urlsplit(url)
    try:
        with closing(http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=CONNECT_S)) as asked:
            asked.connect()
            asked.sock.settimeout(None)
            asked.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = asked.getresponse()
            return answer.status, _object(answer.read(_MAX_BYTES)), answer.headers.get("x-corral-replica")
    except (OSError, http.client.HTTPException) as error:
        raise OperatorError(f"{url} does not answer ({str(error) or type(error).__name__})") from error


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
