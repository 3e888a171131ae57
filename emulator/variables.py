"""Ollama's environment variables, read as it reads them; quick to import, since each of its commands does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DEFAULT_VERSION: Final = "0.32.15"
DEFAULT_ADDRESS: Final = ("127.0.0.1", 11434)
_PORTS: Final = {"http": 80, "https": 443}


def address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Where ``OLLAMA_HOST`` has it listen, or look for the server."""
    scheme, _, rest = (value(environment, "OLLAMA_HOST") or "").rpartition("://")
    text, usual = rest.partition("/")[0], _PORTS.get(scheme, DEFAULT_ADDRESS[1])
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, ""
    number = int(port) if port.isdigit() and int(port) < 1 << 16 else usual
    return host.strip("[]") or DEFAULT_ADDRESS[0], number


def version(environment: Mapping[str, str]) -> str:
    return value(environment, "EMULATED_OLLAMA_VERSION") or DEFAULT_VERSION


def value(environment: Mapping[str, str], name: str) -> str | None:
    """As Ollama reads one: without spaces and quotes around it; None where nothing is left."""
    return environment.get(name, "").strip().strip("\"'") or None


def is_on(environment: Mapping[str, str], name: str) -> bool:
    """Whatever is not clearly no means yes, as Ollama takes it."""
    text = value(environment, name)
    return text is not None and text.lower() not in ("0", "f", "false")
