"""Names in a model store that are the gateway's own."""

from __future__ import annotations

from typing import Final

_OURS: Final = "corral-previous/"


def previous_name(number: int) -> str:
    """Under which the version of a model that is being replaced is kept for a moment, so that it can be named.

    >>> previous_name(255)
    'corral-previous/00000000000000ff:latest'
    """
    return f"{_OURS}{number:016x}:latest"


def is_ours(name: str) -> bool:
    """Whether a *normalised* name is one that no client is to see."""
    return name.startswith(_OURS)
