"""How many lines each part gets."""

from __future__ import annotations

from typing import Final

TALL: Final = 40
"""From so many lines on there is an empty line between the parts."""
_LEAST_REQUESTS: Final = 4


def heights(lines: int, *, gpus: int, replicas: int, advice: bool) -> dict[str, int]:
    """By part, each with its titles; what is left is for the requests. Parts do not grow and shrink with what
    happens: only with the terminal and with the machine."""
    rest = lines - 2 - advice - (5 if lines >= TALL else 0)
    now = 2 if rest < 20 else 4 if rest < 30 else 9
    log = 3 if rest < 20 else 4 if rest < 30 else 9
    if rest < 14:
        now, log = (2, 0) if rest >= 9 else (0, 0)
    share = max(0, rest - now - log - _LEAST_REQUESTS)
    of_replicas = min(replicas + 1, max(2, share - min(gpus + 1, share // 2)))
    of_gpus = min(gpus + 1, max(0, share - of_replicas)) if gpus else 0
    return {
        "advice": int(advice),
        "gpus": of_gpus if of_gpus > 1 else 0,
        "replicas": of_replicas,
        "now": now,
        "log": log,
    }
