"""What fits into a replica's memory, as far as that was told or seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from corral.gateway.schedule.costs import Costs
from corral.gateway.schedule.member import Member

_FIT_RATIO: Final = 0.8
"""Ollama takes no more than this share of what is free."""
_GUESS: Final = 1.15
"""A model takes more than its files: the cache of its context, buffers."""
_GUESS_BYTES: Final = 1 << 29


class Room:
    """Sizes are what any replica showed, else guessed from the files."""

    def __init__(self, members: Callable[[], Iterable[Member[Any]]], costs: Costs) -> None:
        self._members = members
        self._costs = costs
        self._sizes: dict[str, int | None] = {}
        """What was found out since the last tick, by model."""

    def look_again(self) -> None:
        self._sizes.clear()

    def fits(self, model: str, member: Member[Any], victims: Sequence[str]) -> bool:
        """Whether the model would be in memory there beside those that stay."""
        memory = member.memory
        left = {name: held for name, held in memory.models.items() if name not in victims}
        if not left:
            return True  # alone it is as good as it gets; what does not fit, Ollama puts on the CPU
        if len(left) >= memory.most_models(member.replica.max_loaded, len(member.replica.gpus)):
            return False
        need = self._bytes(model)
        if need is None:
            return True
        used = sum(held.size_bytes or self._bytes(name) or 0 for name, held in left.items())
        too_many = memory.bytes_seen_too_many
        if too_many is not None and used + need >= too_many:
            return False
        gpu = member.gpu
        if gpu is None or gpu.memory_bytes is None:
            return True
        free = gpu.memory_bytes - used - (gpu.foreign_bytes or 0)
        return need <= _FIT_RATIO * free

    def _bytes(self, model: str) -> int | None:
        """What it takes in memory: as seen on any replica, or guessed from its files."""
        if model not in self._sizes:
            self._sizes[model] = self._find_bytes(model)
        return self._sizes[model]

    def _find_bytes(self, model: str) -> int | None:
        seen = [
            held.size_bytes
            for member in self._members()
            if (held := member.memory.models.get(model)) is not None and held.size_bytes
        ]
        if seen:
            return max(seen)
        size = self._costs.size_bytes(model)
        return None if size is None else int(size * _GUESS) + _GUESS_BYTES
