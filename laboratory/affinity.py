"""The rivals that send a prompt where its beginning was before."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Container, Sequence
from hashlib import blake2b

from corral.laboratory.rival import Rival
from corral.laboratory.types import Arrival, Box, Sight
from corral.laboratory.workloads import BLOCK_TOKENS


class BoundedHash(Rival):
    """The replica next on a ring to the hash of model and beginning of the prompt, passing by those whose load is above
    1.25 × the mean. Consistent hashing with bounded load: KubeAI's PrefixHash, HAProxy's hash-balance-factor."""  # noqa: RUF002

    name = "bounded-hash"
    bound = 1.25
    points = 256

    def __init__(self, box: Box, seed: int) -> None:
        super().__init__(box, seed)
        self._ring = sorted((_hash(f"{r.id} {number}"), r.id) for r in box.replicas for number in range(self.points))

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        up = {sight.id: sight for sight in sights}
        most = self.bound * (sum(sight.inflight for sight in sights) + 1) / len(sights)
        beginning = arrival.blocks[:2] or arrival.number
        start = bisect_left(self._ring, (_hash(f"{arrival.model} {beginning}"), ""))
        for step in range(len(self._ring)):
            replica_id = self._ring[(start + step) % len(self._ring)][1]
            if replica_id in up and up[replica_id].inflight <= most:
                return replica_id
        return self.least(sights, lambda sight: sight.inflight)


class LMetric(Rival):
    """The least (prompt tokens to work off there, with this request's that are not cached) × (requests + 1); of those
    that hold the model or have room for it, where there are any. LMetric, with residency."""  # noqa: RUF002

    name = "lmetric"
    remembered_blocks = 4096
    """Per replica and model: about what Ollama's caches hold."""

    def __init__(self, box: Box, seed: int) -> None:
        super().__init__(box, seed)
        self._caches: dict[tuple[str, str], OrderedDict[int, None]] = {}
        self._rooms = {replica.id: replica.max_loaded for replica in box.replicas}
        self._queued: dict[str, dict[int, int]] = {replica.id: {} for replica in box.replicas}

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        asked = [s for s in sights if arrival.model in s.loaded or len(s.loaded) < self._rooms[s.id]] or sights
        fresh = {sight.id: self._fresh_tokens(arrival, sight.id) for sight in asked}
        chosen = self.least(
            asked, lambda sight: (sum(self._queued[sight.id].values()) + fresh[sight.id]) * (sight.inflight + 1)
        )
        self._queued[chosen][arrival.number] = fresh[chosen]
        self._remember(arrival, chosen)
        return chosen

    def began(self, arrival: Arrival, replica_id: str, now_s: float) -> None:
        self._queued[replica_id].pop(arrival.number, None)

    def ended(self, arrival: Arrival, replica_id: str, now_s: float, *, ok: bool) -> None:
        self._queued[replica_id].pop(arrival.number, None)

    def _fresh_tokens(self, arrival: Arrival, replica_id: str) -> int:
        hits = known_blocks(self._caches.get((replica_id, arrival.model), ()), arrival.blocks)
        return max(1, arrival.prompt_tokens - hits * BLOCK_TOKENS)

    def _remember(self, arrival: Arrival, replica_id: str) -> None:
        cache = self._caches.setdefault((replica_id, arrival.model), OrderedDict())
        remember(cache, arrival.blocks, self.remembered_blocks)


class CacheAware(Rival):
    """Where the longest beginning of the prompt was sent before, if that is more than half of it; else, and where the
    loads differ by more than 32 requests and a tenth, the least used. SGLang's router, cache_aware, by its defaults."""

    name = "sglang-cache-aware"
    cache_threshold = 0.5
    balance_abs = 32
    balance_rel = 1.1
    tree_blocks = 1 << 15
    """Per replica and model: its 2^26 characters hardly ever fill, so the oldest hardly ever go."""

    def __init__(self, box: Box, seed: int) -> None:
        super().__init__(box, seed)
        self._trees: dict[tuple[str, str], OrderedDict[int, None]] = {}

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        chosen = self._chosen(arrival, sights)
        tree = self._trees.setdefault((chosen, arrival.model), OrderedDict())
        remember(tree, arrival.blocks, self.tree_blocks)
        return chosen

    def _chosen(self, arrival: Arrival, sights: Sequence[Sight]) -> str:
        loads = [sight.inflight for sight in sights]
        if max(loads) - min(loads) > self.balance_abs and max(loads) > self.balance_rel * min(loads):
            return self.least(sights, lambda sight: sight.inflight)
        trees = {sight.id: self._trees.get((sight.id, arrival.model), ()) for sight in sights}
        matched = {replica_id: known_blocks(tree, arrival.blocks) for replica_id, tree in trees.items()}
        best = max(matched.values())
        if best * BLOCK_TOKENS > self.cache_threshold * arrival.prompt_tokens:
            return self.least(sights, lambda sight: -matched[sight.id])
        least = [sight for sight in sights if sight.inflight == min(loads)]
        return self.least(least, lambda sight: len(trees[sight.id]))


def known_blocks(cache: Container[int], blocks: Sequence[int]) -> int:
    """How many of them, from the first on, are in it."""
    for number, block in enumerate(blocks):
        if block not in cache:
            return number
    return len(blocks)


def remember(cache: OrderedDict[int, None], blocks: Sequence[int], most: int) -> None:
    """Put them in, and let those go that were not used for longest."""
    for block in blocks:
        cache[block] = None
        cache.move_to_end(block)
    while len(cache) > most:
        cache.popitem(last=False)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
