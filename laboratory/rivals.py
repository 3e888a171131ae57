"""The rivals: rules of other balancers, as a router in front of Ollamas would follow them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

from corral.laboratory.affinity import BoundedHash, CacheAware, LMetric
from corral.laboratory.rival import Rival, warm
from corral.laboratory.types import Arrival, Box, Sight


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
        if holding := warm(arrival, free):
            return self.least(holding, lambda sight: sight.inflight_model)
        if free:
            return self.rng.choice(free).id
        return self.least(sights, lambda sight: sight.inflight_model)


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
        CacheAware,
        HaproxyMaxconn,
    )
}
