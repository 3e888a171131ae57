"""A request's ``keep_alive`` as Go reads it: seconds, or a duration such as ``"1h30m"``; a negative one: for ever."""

from __future__ import annotations

import re
from functools import lru_cache
from math import inf
from typing import Final

import msgspec

_LONGEST: Final = 32
_NANOSECOND: Final = 1e-9
_FOR_EVER_S: Final = 2**63 * _NANOSECOND
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+")


def keep_alive_s(given: bytes) -> float | None:
    """Seconds, infinity where it is for ever. None: it is not there, or nothing that Ollama takes: it says so itself.

    >>> keep_alive_s(b'"1h30m"'), keep_alive_s(b"0"), keep_alive_s(b'"-1s"'), keep_alive_s(b"null")
    (5400.0, 0.0, inf, None)
    """
    return _seconds(given) if 0 < len(given) <= _LONGEST else None


@lru_cache(maxsize=256)
def _seconds(given: bytes) -> float | None:
    try:
        value = msgspec.json.decode(given, type=float | str | None)
    except (ValueError, RecursionError):
        return None
    seconds = _duration(value) if isinstance(value, str) else value
    if seconds is None:
        return None
    if seconds < 0 or seconds >= _FOR_EVER_S:
        return inf
    return seconds if seconds >= _NANOSECOND else 0.0


def _duration(text: str) -> float | None:
    """As Go's ``time.ParseDuration``."""
    sign, plain = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if plain == "0":
        return 0.0
    if _DURATION.fullmatch(plain) is None:
        return None
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(plain))
    return sign * seconds if seconds < _FOR_EVER_S else None
