"""What requests cost on a box, by the emulator's own formulas: alone, and with all slots full."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter

from corral.emulator.batch import MICRO_BATCH_TOKENS
from corral.emulator.catalog import ModelSpec
from corral.emulator.gpu import Speed, predicted_bytes, reserved_bytes, speed_of
from corral.errors import OperatorError
from corral.laboratory.types import Arrival, Box, BoxReplica

CONTEXT_TOKENS = 4096
"""What a slot must hold at least for a model to count as one that a replica can serve."""
_FIT_RATIO = 0.8


@dataclass(frozen=True, slots=True)
class Solo:
    """One request alone on a GPU that holds the model."""

    ttft_s: float
    tpot_s: float
    """Per output token after the first."""
    total_s: float


@dataclass(slots=True)
class Mix:
    """What the requests of one model need together."""

    requests: int = 0
    prompt_tokens: int = 0
    chunks: int = 0
    """Steps that prefill takes."""
    output_tokens: int = 0
    context_tokens: float = 0.0
    """Sum over the output tokens of the context they were made with."""

    def add(self, arrival: Arrival) -> None:
        prompt, output = arrival.prompt_tokens, arrival.output_tokens
        self.requests += 1
        self.prompt_tokens += prompt
        self.chunks += -(-prompt // MICRO_BATCH_TOKENS)
        self.output_tokens += output
        self.context_tokens += output * (prompt + output / 2)


@lru_cache(maxsize=1024)
def speed(replica: BoxReplica, model: ModelSpec) -> Speed:
    return speed_of(replica.gpu, model)


def fits(replica: BoxReplica, model: ModelSpec) -> bool:
    """Whether it serves the model, and can have it wholly on the GPU, by the rule Ollama predicts with."""
    if replica.models is not None and model.name not in replica.models:
        return False
    room = (replica.gpu.vram_bytes - reserved_bytes()) * _FIT_RATIO
    return predicted_bytes(model, CONTEXT_TOKENS, replica.slots) <= room


def solo(replica: BoxReplica, model: ModelSpec, arrival: Arrival, cached_tokens: int = 0) -> Solo:
    """The last prompt token is always worked off anew: something has to make the first token."""
    at = speed(replica, model)
    fresh = max(1, arrival.prompt_tokens - cached_tokens)
    whole, rest = divmod(fresh, MICRO_BATCH_TOKENS)
    ttft_s = whole * at.step_with_prefill_s(MICRO_BATCH_TOKENS, 0, 0) + at.step_with_prefill_s(rest, 0, 0) * (rest > 0)
    steps = arrival.output_tokens - 1
    tpot_s = at.decode_step_s(1, arrival.prompt_tokens + arrival.output_tokens // 2)
    return Solo(ttft_s, tpot_s, ttft_s + steps * tpot_s)


class Solos:
    """Solo figures of requests on the best GPU of a box, whichever that is for each request."""

    def __init__(self, box: Box) -> None:
        self._models = {model.name: model for model in box.models}
        kinds = {replica.gpu: replica for replica in box.replicas}
        self._homes = {
            model.name: [r for r in kinds.values() if fits(r, model)] or list(kinds.values()) for model in box.models
        }

    def of(self, arrival: Arrival, cached_tokens: int = 0) -> Solo:
        return min(self._all(arrival, cached_tokens), key=_total_s)

    def best_and_slowest(self, arrival: Arrival) -> tuple[Solo, Solo]:
        """On the best GPU, and on the slowest of those that have the memory for its model."""
        tried = self._all(arrival)
        return min(tried, key=_total_s), max(tried, key=_total_s)

    def _all(self, arrival: Arrival, cached_tokens: int = 0) -> list[Solo]:
        model = self._models[arrival.model]
        return [solo(replica, model, arrival, cached_tokens) for replica in self._homes[arrival.model]]


_total_s = attrgetter("total_s")


def mixes(arrivals: Iterable[Arrival]) -> dict[str, Mix]:
    found: dict[str, Mix] = {}
    for arrival in arrivals:
        if (mix := found.get(arrival.model)) is None:
            mix = found[arrival.model] = Mix()
        mix.add(arrival)
    return found


def full_slots_s(replica: BoxReplica, model: ModelSpec, mix: Mix) -> float:
    """GPU-seconds that one average request of the mix costs while all slots are busy.

    In the time in which every slot finishes one request, each prefill step keeps the other slots waiting, and gives
    each of them a token; the remaining tokens come from decode steps with all slots.
    """
    at, slots = speed(replica, model), replica.slots
    prompt, chunks = mix.prompt_tokens / mix.requests, mix.chunks / mix.requests
    output = mix.output_tokens / mix.requests
    context = int(slots * mix.context_tokens / max(1, mix.output_tokens))
    decode_s = at.decode_step_s(slots, context)
    prefill_s = chunks * at.step_with_prefill_s(max(1, round(prompt / chunks)), slots - 1, context)
    left = max(0.0, output - 1 - (slots - 1) * chunks)
    return prefill_s + left * decode_s / slots


def capacity_rps(box: Box, arrivals: Sequence[Arrival]) -> float:
    """Requests a second of these sizes and models that the box could do with all slots of all replicas full.

    Where large models fit only on some replicas, those replicas may be the limit: the least over "this model and all
    larger ones", each by the replicas that can hold any of them.
    """
    found = mixes(arrivals)
    models = sorted((model for model in box.models if model.name in found), key=lambda model: model.file_bytes)
    if not models:
        raise OperatorError("the workload asks for no model of the box")
    limits = []
    for number in range(len(models)):
        share = sum(found[model.name].requests for model in models[number:]) / len(arrivals)
        limits.append(_rate_of(box, models[number:], found) / share)
    return min(limits)


def _rate_of(box: Box, models: Sequence[ModelSpec], found: dict[str, Mix]) -> float:
    rate = 0.0
    for replica in box.replicas:
        held = [model for model in models if fits(replica, model)]
        total = sum(found[model.name].requests for model in held)
        cost_s = sum(found[m.name].requests * full_slots_s(replica, m, found[m.name]) for m in held)
        rate += total / cost_s if cost_s else 0.0
    if not rate:
        raise OperatorError(f"{box.name}: no replica has the memory for {models[0].name}")
    return rate
