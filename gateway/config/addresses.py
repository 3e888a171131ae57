"""Addresses as people write them: ``host:port`` and ``http://host:port``."""

from __future__ import annotations

import re
from ipaddress import ip_address

from corral.gateway.config.schema import Address, ReplicaUrl

_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[0-9]{1,5})", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)


def parse_address(text: str) -> Address:
    """``127.0.0.1:11434``, ``[::1]:11434`` or ``name:11434``; raises ValueError that says what to write instead."""
    if text.startswith(("http://", "https://")):
        raise ValueError(f"write host:port without {text.partition('//')[0]}//, for instance 127.0.0.1:11434")
    host, port = _split(text, "127.0.0.1:11434")
    return Address(host, port)


def parse_replica_url(text: str) -> ReplicaUrl:
    """``http://host:port``; raises ValueError that says what to write instead."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise ValueError(f"write http:// before it: http://{text}")
    if scheme.lower() == "https":
        raise ValueError(
            "https is not supported towards a replica: Ollama itself speaks plain HTTP; "
            "write http:// and keep the network between them private"
        )
    if scheme.lower() != "http":
        raise ValueError(f"{scheme}:// is not supported; write http://host:port")
    if "@" in rest:
        raise ValueError("has a user name or password, which Ollama does not know; write http://host:port")
    rest = rest.removesuffix("/")
    for mark, what in (("#", "fragment"), ("?", "query"), ("/", "path")):
        if mark in rest:
            raise ValueError(f"has a {what}; write only http://host:port: routes are passed on as they come")
    host, port = _split(rest, "http://gpu-box:11434")
    if port == 0:
        raise ValueError("port 0 is no place to connect to; write the replica's port (1 to 65535)")
    return ReplicaUrl(host, port)


def _split(text: str, example: str) -> tuple[str, int]:
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError(_why_not(text, example))
    port = int(match["port"])
    if port > 65_535:
        raise ValueError(f"port {port} does not exist; ports end at 65535")
    if match["v6"] is not None:
        return _ipv6(match["v6"]), port
    host: str = match["host"].lower()
    if not host:
        raise ValueError(f"has no host; write for instance {example} (0.0.0.0 listens on every interface)")
    if not host.isascii():
        raise ValueError(f"{host!r} is not ASCII; write an international name in its xn-- form")
    if not _is_host(host):
        raise ValueError(f"{host!r} is not a host name or an IP address; write for instance {example}")
    return host, port


def _why_not(text: str, example: str) -> str:
    if text.count(":") > 1 and "[" not in text:
        return f"an IPv6 address needs brackets, for instance [::1]:11434; found {text!r}"
    if ":" not in text:
        return f"has no port; write for instance {example}"
    return f"{text!r} is not host:port; write for instance {example}"


def _ipv6(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"[{text}] is not an IPv6 address; write for instance [::1]:11434") from None
    if address.version == 4:
        raise ValueError(f"brackets are for IPv6 addresses; write {text} without them")
    return str(address)


def _is_host(text: str) -> bool:
    if re.fullmatch(r"[0-9.]+", text):
        try:
            ip_address(text)
        except ValueError:
            return False
        return True
    return len(text) <= 253 and all(map(_LABEL.fullmatch, text.removesuffix(".").split(".")))


def same_place(a: Address | ReplicaUrl, b: Address | ReplicaUrl) -> bool:
    """Whether two addresses certainly lead to the same server of one machine (no name is looked up)."""
    if a.port != b.port or a.port == 0:
        return False
    first, second = _plain_host(a.host), _plain_host(b.host)
    return first == second or ({first, second} & _EVERY_INTERFACE != set() and _is_local(first) and _is_local(second))


_EVERY_INTERFACE = {"0.0.0.0", "::"}


def _plain_host(host: str) -> str:
    return "127.0.0.1" if host in {"localhost", "localhost.localdomain", "::1"} else host


def _is_local(host: str) -> bool:
    if host in _EVERY_INTERFACE:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.endswith(".localhost")
