"""``OLLAMA_HOST`` as Ollama's own server reads it."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from corral.gateway.config.addresses import parse_address
from corral.gateway.config.places import Address

_PORTS: Final = {"http": 80, "https": 443}
_OLLAMA: Final = Address("127.0.0.1", 11434)


def parse_ollama_host(text: str) -> Address:
    """``host``, ``:port``, ``host:port``, an IPv6 address with or without brackets, all of it with a scheme and a path
    or without.

    A port that is none is Ollama's own, and a port without a host means every interface, as in Ollama. Raises
    ValueError where the host is none.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    usual = _PORTS.get(scheme.lower(), _OLLAMA.port)
    host, port = _split(rest.partition("/")[0])
    number = int(port) if port.isascii() and port.isdecimal() and int(port) <= 65_535 else usual
    if host is None:
        return Address(_OLLAMA.host, number)
    return parse_address(str(Address(host or "0.0.0.0", number)))


def _split(text: str) -> tuple[str | None, str]:
    """Host and port. The host is None where nothing names one, and empty where only a port is given."""
    bare = text.strip("[]")
    if not text or (_is_ipv6(bare) and "]:" not in text):
        return bare or None, ""
    host, colon, port = text.rpartition(":")
    return (host.strip("[]"), port) if colon else (text, "")


def _is_ipv6(text: str) -> bool:
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False
