"""What an Ollama of one version does, and how it has to be told."""

from __future__ import annotations

import re

LLAMA_SERVER = (0, 30)
"""From here on llama.cpp's own server runs the models and obeys its ``LLAMA_ARG_*`` variables."""
_MIG_TO_CPU = ((0, 13, 2), (0, 16))
"""From, and up to: MIG devices named by UUID were ignored (ollama issue 14031)."""


def parts(version: str | None) -> tuple[int, ...] | None:
    """``0.32.15-rc2`` as (0, 32, 15). None: not known, also for what was built from source and says 0.0.0."""
    found = re.match(r"v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", version or "")
    numbers = tuple(int(part or 0) for part in found.groups()) if found else ()
    return numbers if any(numbers) else None


def takes_llama_args(version: str | None) -> bool:
    """A version that is not known is taken for a new one."""
    known = parts(version)
    return known is None or known >= LLAMA_SERVER


def ignores_mig(version: str | None) -> bool:
    known = parts(version)
    return known is not None and _MIG_TO_CPU[0] <= known < _MIG_TO_CPU[1]
