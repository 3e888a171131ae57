"""Whether a model fell back to the CPU although its replica's GPUs have room for it.

Ollama says nothing when a GPU is gone (after a suspend, a driver crash): it loads the model into the host's memory and
answers many times slower. ``/api/ps`` shows it: ``size_vram`` is less than ``size``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from corral.model import LoadedModel

FIT_RATIO: Final = 0.8
"""Ollama loads a model whole where it needs at most this share of the free memory."""


def fell_back(loaded: Sequence[LoadedModel], room_bytes: int) -> LoadedModel | None:
    """The first model that spills though it should fit; None: there is none.

    ``room_bytes``: the memory of the replica's GPUs, without what is reserved and what other programs hold; what the
    models hold is part of it. What the replica's other models hold counts as taken.
    """
    for model in loaded:
        if model.size_vram_bytes >= model.size_bytes:
            continue
        others_bytes = sum(other.size_vram_bytes for other in loaded if other is not model)
        if model.size_bytes <= FIT_RATIO * (room_bytes - others_bytes):
            return model
    return None
