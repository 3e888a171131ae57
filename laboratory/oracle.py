"""A clairvoyant reference: knows how long every answer will be and how fast every GPU is."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import replace

from corral.emulator.gpu import load_s, recovery_s, unload_s
from corral.laboratory.engine import run_pushing
from corral.laboratory.forecast import Work, forecast, work_of
from corral.laboratory.pushing import Pushing, Sender
from corral.laboratory.requests import Request
from corral.laboratory.rival import Rival
from corral.laboratory.speeds import solo
from corral.laboratory.types import Arrival, Box, BoxReplica, Run, Sight


class Oracle(Rival):
    """Where all requests there together lose the least: this one's first token and end, and what the others lose by it,
    forecast with true lengths and speeds, among those with a free slot. Throttling it does not foresee."""

    name = "oracle"
    end_weight = 0.1
    """What a second of the end is worth against one of the first token."""

    def __init__(self, box: Box, seed: int) -> None:
        super().__init__(box, seed)
        self._replicas = {replica.id: replica for replica in box.replicas}
        self._models = {model.name: model for model in box.models}
        self._works: dict[str, list[Work]] = {replica.id: [] for replica in box.replicas}
        self._at_s: dict[str, float] = dict.fromkeys(self._works, 0.0)
        """Up to when a replica's works are worked off; in the future while it loads a model."""

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        for sight in sights:
            self._advance(sight.id, now_s)
        able = self._able(arrival, sights)
        if not able:
            return None
        costs = {sight.id: self._cost_s(arrival, sight, now_s) for sight in able}
        best = min(able, key=lambda sight: (costs[sight.id], self.rng.random()))
        if self._is_cold(arrival, best):
            self._at_s[best.id] = max(now_s, self._at_s[best.id]) + self._load_s(arrival, best)
        self._works[best.id].append(work_of(arrival))
        return best.id

    def _able(self, arrival: Arrival, sights: Sequence[Sight]) -> list[Sight]:
        """Those with a free slot and the model or room for it. A model leaves only for one that is nowhere."""
        warm = [sight for sight in sights if not self._is_cold(arrival, sight)]
        free = [
            sight for sight in sights if sight.inflight_model < sight.slots and (sight in warm or self._has_room(sight))
        ]
        return free or ([] if warm else list(sights))

    def began(self, arrival: Arrival, replica_id: str, now_s: float) -> None:
        self._advance(replica_id, now_s)
        for work in self._works[replica_id]:
            if work.number == arrival.number:
                work.prefill_tokens, work.decode_tokens = 0.0, float(arrival.output_tokens - 1)

    def ended(self, arrival: Arrival, replica_id: str, now_s: float, *, ok: bool) -> None:
        self._advance(replica_id, now_s)
        self._works[replica_id] = [w for w in self._works[replica_id] if w.number != arrival.number]

    def solo_s(self, arrival: Arrival) -> float:
        """What it takes alone on the first replica."""
        return solo(next(iter(self._replicas.values())), self._models[arrival.model], arrival).total_s

    def _is_cold(self, arrival: Arrival, sight: Sight) -> bool:
        return arrival.model not in sight.loaded and all(w.model != arrival.model for w in self._works[sight.id])

    def _load_s(self, arrival: Arrival, sight: Sight) -> float:
        evicts = not self._has_room(sight)
        disk = self._replicas[sight.id].disk_bytes_s
        return load_s(self._models[arrival.model], disk) + evicts * (unload_s() + recovery_s())

    def _has_room(self, sight: Sight) -> bool:
        held = sight.loaded | {work.model for work in self._works[sight.id]}
        return len(held) < self._replicas[sight.id].max_loaded

    def _cost_s(self, arrival: Arrival, sight: Sight, now_s: float) -> float:
        replica, works = self._replicas[sight.id], self._works[sight.id]
        late_s = max(0.0, self._at_s[sight.id] - now_s)
        if self._is_cold(arrival, sight):
            late_s += self._load_s(arrival, sight)
        with_it = self._total_s(replica, [*works, work_of(arrival)])
        return with_it - self._total_s(replica, works) + late_s * (1 + self.end_weight)

    def _total_s(self, replica: BoxReplica, works: Sequence[Work]) -> float:
        copies = [replace(work) for work in works]
        forecast(replica, self._models, copies, float("inf"))
        return sum(copy.first_s + self.end_weight * copy.end_s for copy in copies)

    def _advance(self, replica_id: str, now_s: float) -> None:
        left_s = now_s - self._at_s[replica_id]
        if left_s > 0:
            self._at_s[replica_id] = now_s
            forecast(self._replicas[replica_id], self._models, self._works[replica_id], left_s)


class Clairvoyant(Pushing):
    """The oracle before a queue that it may reorder: the shortest first, and what cannot be placed blocks nobody."""

    heads = 16
    """So many of the queue it looks at."""

    def __init__(self, world: Sender, oracle: Oracle) -> None:
        super().__init__(world, oracle)
        self._oracle = oracle
        self._order: list[tuple[float, int, Request]] = []

    def arrived(self, request: Request) -> None:
        insort(self._order, (self._oracle.solo_s(request.arrival), request.arrival.number, request))
        self._drain()

    def _drain(self) -> None:
        super()._drain()
        while placed := next((entry for entry in self._order[: self.heads] if self._place(entry[2])), None):
            self._order.remove(placed)


def run_oracle(box: Box, arrivals: Sequence[Arrival], seed: int) -> Run:
    """The reference: nobody knows so much, yet it is no proof that nobody could do better."""
    return run_pushing(box, arrivals, lambda world: Clairvoyant(world, Oracle(box, seed)), seed)
