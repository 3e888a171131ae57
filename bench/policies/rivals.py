"""The rivals: rules of other balancers, as a router in front of Ollamas would follow them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import count
from random import Random

from bench.policies.types import Arrival, Box, Sight
from bench.policies.workloads import BLOCK_TOKENS


class Rival:
    """What a rule that learns nothing needs."""

    name = ""

    def __init__(self, box: Box, seed: int) -> None:
        self.rng = Random(f"{self.name} {seed}")

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        raise NotImplementedError

    def began(self, arrival: Arrival, replica_id: str, now_s: float) -> None:
        return

    def ended(self, arrival: Arrival, replica_id: str, now_s: float, *, ok: bool) -> None:
        return

    def least(self, sights: Sequence[Sight], cost: Callable[[Sight], float]) -> str:
        """The lowest cost; of several any one, so that no order of a list favours a replica."""
        costs = [cost(sight) for sight in sights]
        lowest = min(costs)
        return self.rng.choice([sight.id for sight, its in zip(sights, costs, strict=True) if its == lowest])


def _warm(arrival: Arrival, sights: Sequence[Sight]) -> list[Sight]:
    return [sight for sight in sights if arrival.model in sight.loaded]


class RoundRobin(Rival):
    """One after the other, whatever they do. nginx, gpustack and most others by default."""

    name = "round-robin"

    def __init__(self, box: Box, seed: int) -> None:
        super().__init__(box, seed)
        self._turns = count()

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        return sights[next(self._turns) % len(sights)].id


class AtRandom(Rival):
    """Any replica, all alike. ollama_proxy_server."""

    name = "random"

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        return self.rng.choice(sights).id


class LeastConnections(Rival):
    """The fewest requests in flight. olla, Traefik, and nginx or HAProxy without weights."""

    name = "least-conn"

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        return self.least(sights, lambda sight: sight.inflight)


class WeightedLeastConnections(Rival):
    """The fewest requests in flight for its weight; of several one by weight. nginx's least_conn with weights."""

    name = "weighted-least-conn"

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        lowest = min(sight.inflight / sight.weight for sight in sights)
        alike = [sight for sight in sights if sight.inflight / sight.weight == lowest]
        return self.rng.choices(alike, [sight.weight for sight in alike])[0].id


class ShortestExpectedDelay(Rival):
    """The lowest (in flight + 1) / weight: unlike nginx's rule it prefers the fastest of idle replicas. LVS's sed."""

    name = "shortest-delay"

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        return self.least(sights, lambda sight: (sight.inflight + 1) / sight.weight)


class PowerOfTwo(Rival):
    """The less busy of two drawn replicas. Envoy's least_request with equal weights, Ray Serve."""

    name = "power-of-two"

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        drawn = self.rng.sample(list(sights), min(2, len(sights)))
        return self.least(drawn, lambda sight: sight.inflight)


class PeakEwma(Rival):
    """The least (average response time) × (in flight + 1), where a slower answer counts at once and fades over 10 s.
    Finagle, Linkerd. The time is to the first token: that is when a stream's head comes."""  # noqa: RUF002

    name = "peak-ewma"
    decay_s = 10.0
    unknown_s = 1e6
    """A replica that is busy and has not answered yet."""

    def __init__(self, box: Box, seed: int) -> None:
        super().__init__(box, seed)
        self._sent_s: dict[int, float] = {}
        self._averages: dict[str, tuple[float, float]] = {}

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        self._sent_s[arrival.number] = now_s
        return self.least(sights, lambda sight: self._cost(sight, now_s))

    def began(self, arrival: Arrival, replica_id: str, now_s: float) -> None:
        took_s = now_s - self._sent_s.pop(arrival.number, now_s)
        before_s, at_s = self._averages.get(replica_id, (0.0, now_s))
        kept = math.exp(-(now_s - at_s) / self.decay_s)
        average_s = took_s if took_s > before_s else before_s * kept + took_s * (1 - kept)
        self._averages[replica_id] = (average_s, now_s)

    def _cost(self, sight: Sight, now_s: float) -> float:
        average_s, at_s = self._averages.get(sight.id, (0.0, now_s))
        faded_s = average_s * math.exp(-(now_s - at_s) / self.decay_s)
        if not faded_s and sight.inflight:
            return self.unknown_s + sight.inflight
        return faded_s * (sight.inflight + 1)


class LeastConnectionsLoaded(Rival):
    """Of those that hold the model and have a free slot for it the least used; else any with a free slot; else the
    least used. nomyo-router."""

    name = "least-conn-loaded"

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        free = [sight for sight in sights if sight.inflight_model < sight.slots]
        if warm := _warm(arrival, free):
            return self.least(warm, lambda sight: sight.inflight_model)
        if free:
            return self.rng.choice(free).id
        return self.least(sights, lambda sight: sight.inflight_model)


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
        cache = self._caches.get((replica_id, arrival.model), ())
        hits = 0
        for block in arrival.blocks:
            if block not in cache:
                break
            hits += 1
        return max(1, arrival.prompt_tokens - hits * BLOCK_TOKENS)

    def _remember(self, arrival: Arrival, replica_id: str) -> None:
        cache = self._caches.setdefault((replica_id, arrival.model), OrderedDict())
        for block in arrival.blocks:
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > self.remembered_blocks:
            cache.popitem(last=False)


class HaproxyMaxconn(Rival):
    """An idle one, else the lowest (connections + 1) / weight of those below ``maxconn`` = slots; else the request
    waits, first come first served, whatever its model. HAProxy's leastconn with maxconn."""

    name = "haproxy-maxconn"

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        free = [sight for sight in sights if sight.inflight < sight.slots]
        if not free:
            return None
        return self.least(free, lambda sight: sight.inflight and (sight.inflight + 1) / sight.weight)


RIVALS: dict[str, type[Rival]] = {
    rival.name: rival
    for rival in (
        RoundRobin,
        AtRandom,
        LeastConnections,
        WeightedLeastConnections,
        ShortestExpectedDelay,
        PowerOfTwo,
        PeakEwma,
        LeastConnectionsLoaded,
        BoundedHash,
        LMetric,
        HaproxyMaxconn,
    )
}


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
