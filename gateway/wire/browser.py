"""Host and Origin rules, the same as Ollama's own: they keep web pages a user visits from reaching the models.

A gateway that strips ``Origin`` and rewrites ``Host`` towards its replicas takes their protection away, so it must
apply the same rules itself (DNS rebinding, cross-site requests).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final

_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "0.0.0.0")
_APP_SCHEMES: Final = ("app://", "file://", "tauri://", "vscode-webview://", "vscode-file://")
_EXTENSION_SCHEMES: Final = (
    "chrome-extension://",
    "safari-extension://",
    "moz-extension://",
    "ms-browser-extension://",
)
_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal")

_KNOWN_HOSTS: Final = 256
_KNOWN_BYTES: Final = 64

_METHODS: Final = b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_HEADERS: Final = (
    b"Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    b"X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    b"X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    b"X-Stainless-Runtime-Version,X-Stainless-Timeout,X-Api-Key,Anthropic-Version,Anthropic-Beta,"
    b"Anthropic-Dangerous-Direct-Browser-Access"
)


class BrowserRules:
    """Which Host names and Origins are let in."""

    def __init__(self, *, on_loopback: bool, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._check_host = on_loopback
        self._known: dict[bytes, bool] = {}
        """Answers already given: clients repeat themselves, and parsing an address is dear."""
        self._hosts = frozenset(host.lower() for host in hosts) | {socket.gethostname().lower()}
        self.allow_all = "*" in origins
        self._origins = [_origin_pattern(origin) for origin in origins if origin != "*"]

    def host_allowed(self, host: bytes) -> bool:
        """Ollama's rule: enforced only while listening on loopback; IPs must be local, names known."""
        if not self._check_host:
            return True
        known = self._known.get(host)
        if known is None:
            known = self._is_local(host)
            if len(self._known) < _KNOWN_HOSTS and len(host) <= _KNOWN_BYTES:
                self._known[host] = known
        return known

    def _is_local(self, host: bytes) -> bool:
        name = _host_name(host.decode("latin-1")).lower()
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return not name or name == "localhost" or name in self._hosts or name.endswith(_LOCAL_SUFFIXES)
        return address.is_loopback or address.is_private or address.is_unspecified

    def origin_allowed(self, origin: bytes, host: bytes) -> bool:
        """Same origin, a local page, an app or a browser extension, or one the operator named."""
        if self.allow_all or self.same_origin(origin, host):
            return True
        text = origin.decode("latin-1").lower()
        if text.startswith(_APP_SCHEMES) or text.startswith(_EXTENSION_SCHEMES):
            return True
        scheme, separator, rest = text.partition("://")
        if separator and scheme in ("http", "https") and _host_name(rest) in _LOCAL_NAMES:
            return True
        return any(pattern.fullmatch(text) for pattern in self._origins)

    @staticmethod
    def same_origin(origin: bytes, host: bytes) -> bool:
        return origin in (b"http://" + host, b"https://" + host)

    def response_headers(self, origin: bytes) -> bytes:
        """Header lines that let the page at ``origin`` read the answer."""
        if self.allow_all:
            return b"Access-Control-Allow-Origin: *\r\n"
        return b"Vary: Origin\r\nAccess-Control-Allow-Origin: %b\r\n" % origin

    def preflight_headers(self, origin: bytes) -> bytes:
        """Header lines of the 204 that answers a preflight."""
        vary = b"Vary: Origin\r\nVary: Access-Control-Request-Method\r\nVary: Access-Control-Request-Headers\r\n"
        allowed = b"*" if self.allow_all else origin
        return (
            b"Access-Control-Allow-Headers: %b\r\nAccess-Control-Allow-Methods: %b\r\n"
            b"Access-Control-Allow-Origin: %b\r\nAccess-Control-Max-Age: 43200\r\n%b"
        ) % (_HEADERS, _METHODS, allowed, b"" if self.allow_all else vary)


def _host_name(host: str) -> str:
    """``name:port`` and ``[v6]:port`` without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and ":" not in name else host


def _origin_pattern(origin: str) -> re.Pattern[str]:
    """An allowed origin, ``*`` matching anything within it (``https://*.example.org``)."""
    return re.compile(".*".join(re.escape(part) for part in origin.lower().split("*")))
