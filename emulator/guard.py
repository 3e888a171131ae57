"""Ollama's protection against browsers: which Host and Origin it accepts, and its answers to preflights."""

from __future__ import annotations

import ipaddress
import re
import socket

from corral.emulator.wire import Header

_LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)(:\d+)?")
_APP_SCHEMES = ("app://", "file://", "tauri://", "vscode-webview://", "vscode-file://")
_METHODS = b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_HEADERS = (
    b"Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,"
    b"X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,"
    b"X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,"
    b"X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout"
)


def host_allowed(host: str) -> bool:
    """Whether a server that listens on loopback answers to this Host header."""
    name = _without_port(host)
    if not name or name.lower() == "localhost" or name.lower() == socket.gethostname().lower():
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name.lower().endswith((".localhost", ".local", ".internal"))
    return address.is_loopback or address.is_private or address.is_link_local or address.is_unspecified


def origin_allowed(origin: str, host: str) -> bool:
    """Whether a page from this origin may call; its own origin always may."""
    if origin in (f"http://{host}", f"https://{host}"):
        return True
    return _LOCAL_ORIGIN.fullmatch(origin) is not None or origin.startswith(_APP_SCHEMES)


def origin_headers(origin: str) -> list[Header]:
    """What an answer to an allowed cross-origin request carries."""
    return [(b"Access-Control-Allow-Origin", origin.encode("latin-1")), (b"Vary", b"Origin")]


def preflight_headers() -> list[Header]:
    return [
        (b"Access-Control-Allow-Headers", _HEADERS),
        (b"Access-Control-Allow-Methods", _METHODS),
        (b"Access-Control-Max-Age", b"43200"),
    ]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    head, colon, tail = host.rpartition(":")
    return head if colon and tail.isdigit() and ":" not in head else host
