"""What no scheduler can beat: provable lower bounds of mean times and of the makespan."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from corral.emulator.catalog import ModelSpec
from corral.laboratory.speeds import Solos, speed
from corral.laboratory.types import Arrival, Box, BoxReplica
from corral.laboratory.workloads import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds; every real scheduler is above them."""

    ttft_mean_s: float
    e2e_mean_s: float
    makespan_s: float
    loads: int
    """Models asked for: each has to be loaded once."""


def bounds(box: Box, arrivals: Sequence[Arrival], from_s: float = 0.0) -> Bounds:
    """Loose on purpose: nobody waits for a load, everything ever computed is cached, and all GPUs are one server.

    A mean time is at least that of every request alone on the best GPU; and at least that of one server with the GPUs'
    joint speed that always works on what ends soonest, which is the best any schedule can do. Means are of the requests
    that come from ``from_s`` on, as if the others, but for what they left in caches, had not been.
    """
    solos = Solos(box)
    hits = best_hits(arrivals)
    alone = [solos.of(arrival, hit) for arrival, hit in zip(arrivals, hits, strict=True)]
    works = _Pool(box, arrivals, hits).works_s
    counted = [number for number, arrival in enumerate(arrivals) if arrival.at_s >= from_s]
    pooled_s = mean_flow_s([(arrivals[number].at_s, works[number]) for number in counted])
    last_s = max(arrival.at_s + one.total_s for arrival, one in zip(arrivals, alone, strict=True))
    return Bounds(
        ttft_mean_s=fmean(alone[number].ttft_s for number in counted),
        e2e_mean_s=max(fmean(alone[number].total_s for number in counted), pooled_s),
        makespan_s=max(sum(works), last_s),
        loads=len({arrival.model for arrival in arrivals}),
    )


def best_hits(arrivals: Iterable[Arrival]) -> list[int]:
    """Prompt tokens of each request that came before, with a cache that is infinite and everywhere."""
    seen: set[tuple[str, int]] = set()
    hits = []
    for arrival in arrivals:
        known = 0
        for block in arrival.blocks:
            if (arrival.model, block) not in seen:
                break
            known += 1
        seen.update((arrival.model, block) for block in arrival.blocks)
        hits.append(min(known * BLOCK_TOKENS, arrival.prompt_tokens - 1))
    return hits


def mean_flow_s(jobs: Iterable[tuple[float, float]]) -> float:
    """Mean time in the system of (arrival, work) on one server of speed 1 that serves the shortest remaining first."""
    waiting: list[float] = []
    ended: list[float] = []
    ordered = sorted(jobs)
    now_s = 0.0
    for at_s, work_s in ordered:
        _serve(waiting, ended, now_s, at_s)
        now_s = at_s
        heapq.heappush(waiting, work_s)
    _serve(waiting, ended, now_s, float("inf"))
    return (sum(ended) - sum(at_s for at_s, _ in ordered)) / len(ordered) if ordered else 0.0


def _serve(waiting: list[float], ended: list[float], now_s: float, until_s: float) -> None:
    while waiting and now_s + waiting[0] <= until_s:
        now_s += heapq.heappop(waiting)
        ended.append(now_s)
    if waiting:
        heapq.heapreplace(waiting, waiting[0] - (until_s - now_s))


class _Pool:
    """All GPUs of a box as one server, in seconds of its first GPU."""

    def __init__(self, box: Box, arrivals: Sequence[Arrival], hits: Sequence[int]) -> None:
        self._models = {model.name: model for model in box.models}
        self._longest = max(arrival.prompt_tokens + arrival.output_tokens for arrival in arrivals)
        kinds = Counter(replace(replica, id="", weight=1.0) for replica in box.replicas)
        costs = {kind: self._costs_s(kind, arrivals, hits) for kind in kinds}
        first = next(iter(costs.values()))
        # as fast as it is for the request that it suits best: no schedule gets more out of it
        speeds = {kind: max(f / c for f, c in zip(first, its, strict=True)) for kind, its in costs.items()}
        joint = sum(speeds[kind] * count for kind, count in kinds.items())
        self.works_s = [cost_s / joint for cost_s in first]

    def _costs_s(self, replica: BoxReplica, arrivals: Sequence[Arrival], hits: Sequence[int]) -> list[float]:
        return [
            least_gpu_s(replica, self._models[arrival.model], arrival, hit, self._longest)
            for arrival, hit in zip(arrivals, hits, strict=True)
        ]


def least_gpu_s(
    replica: BoxReplica, model: ModelSpec, arrival: Arrival, cached_tokens: int = 0, longest_context: int = 0
) -> float:
    """The least share of a GPU's time the request can be charged, whatever it shares its steps with."""
    at = speed(replica, model)
    token_s = min(at.decode_step_s(sequences, 0) / sequences for sequences in range(1, replica.slots + 1))
    own_context_s = (arrival.prompt_tokens + max(0.0, arrival.output_tokens / 2 - 1)) * at.context_token_s * at.slowdown
    fresh = max(1, arrival.prompt_tokens - cached_tokens)
    # a prefill step gives each other slot of the runner a token that needs no step of its own
    given_s = (replica.slots - 1) * (token_s + longest_context * at.context_token_s * at.slowdown)
    steps = -(-fresh // BLOCK_TOKENS) + 1
    prefill_s = max(0.0, fresh / at.prefill_tok_s * at.slowdown - steps * given_s)
    return max(1e-9, prefill_s + (arrival.output_tokens - 1) * (token_s + own_context_s))
