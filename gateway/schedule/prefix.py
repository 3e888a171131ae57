"""Which beginnings of prompts each replica still has in its caches, as far as can be told from what it was sent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

BLOCK_BYTES: Final = 512
_FIRST_BLOCKS: Final = 2048
_LEAST_BLOCKS: Final = 64
_MOST_BLOCKS: Final = 1 << 15
_MISSED: Final = 0.9
_HIT: Final = 1.01
_MOST_KEYS: Final = 32
"""Per replica; options come from clients, and a model that is loaded with others has lost its caches."""


class _Cache:
    """The blocks that one replica was sent for one key, the longest unused first."""

    __slots__ = ("blocks", "room")

    def __init__(self) -> None:
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self.room = float(_FIRST_BLOCKS)


class Prefixes:
    """Chained hashes: where a block is known, those before it are, so the longest beginning is found by halving."""

    def __init__(self) -> None:
        self._caches: dict[str, dict[str, _Cache]] = {}

    def hit_blocks(self, replica_id: str, key: str, prefix: Sequence[int]) -> int:
        """How many blocks at the beginning it has."""
        caches = self._caches.get(replica_id)
        cache = None if caches is None else caches.get(key)
        if cache is None or not prefix or prefix[0] not in cache.blocks:
            return 0
        low, high = 1, len(prefix)
        while low < high:
            middle = (low + high + 1) // 2
            if prefix[middle - 1] in cache.blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def sent(self, replica_id: str, key: str, prefix: Sequence[int]) -> None:
        """It will have this one. The end goes before the beginning, so that what is left is always a beginning."""
        if not prefix:
            return
        caches = self._caches.setdefault(replica_id, {})
        cache = caches.pop(key, None) or _Cache()
        caches[key] = cache
        if len(caches) > _MOST_KEYS:
            del caches[next(iter(caches))]
        blocks = cache.blocks
        for block in reversed(prefix):
            blocks[block] = None
            blocks.move_to_end(block)
        while len(blocks) > cache.room:
            blocks.popitem(last=False)

    def measured(self, replica_id: str, key: str, predicted_tokens: float, cached_tokens: float) -> None:
        """So many tokens were thought to be cached, and so many were: how much it remembers is learned from that."""
        caches = self._caches.get(replica_id)
        cache = None if caches is None else caches.get(key)
        if cache is None or predicted_tokens <= 0:
            return
        factor = _HIT if cached_tokens > 0.5 * predicted_tokens else _MISSED
        cache.room = min(_MOST_BLOCKS, max(_LEAST_BLOCKS, cache.room * factor))

    def left(self, replica_id: str, key: str) -> None:
        """The model is no longer in its memory, and its caches went with it."""
        if replica_id in self._caches:
            self._caches[replica_id].pop(key, None)

    def forget(self, replica_id: str) -> None:
        self._caches.pop(replica_id, None)

    def keys_of(self, replica_id: str) -> list[str]:
        return list(self._caches.get(replica_id, ()))
