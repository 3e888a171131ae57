"""What one replica will have done by when, by the emulator's formulas and with true lengths: coarse and quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from corral.emulator.batch import MICRO_BATCH_TOKENS
from corral.emulator.catalog import ModelSpec
from corral.emulator.gpu import Speed
from corral.laboratory.speeds import speed
from corral.laboratory.types import Arrival, BoxReplica


@dataclass(slots=True)
class Work:
    """What is left of one request on a replica."""

    number: int
    model: str
    prefill_tokens: float
    decode_tokens: float
    context_tokens: float
    first_s: float = 0.0
    """In a forecast: when its first token comes, from now; 0 where it came already."""
    end_s: float = 0.0


def work_of(arrival: Arrival) -> Work:
    """A request that has not begun."""
    prompt = float(arrival.prompt_tokens)
    return Work(arrival.number, arrival.model, prompt, arrival.output_tokens - 1.0, prompt)


def forecast(replica: BoxReplica, models: dict[str, ModelSpec], works: Sequence[Work], seconds: float) -> None:
    """Lets the replica work for so long, in place: prompts one after the other, answers side by side.

    Coarse in one thing: models that work at once count as one batch at the pace of the one that came first.
    """
    now_s = 0.0
    waiting = list(works)
    active: list[Work] = []
    while now_s < seconds:
        _enter(waiting, active, replica.slots)
        if not active:
            return
        at = speed(replica, models[active[0].model])
        fresh = next((work for work in active if work.prefill_tokens > 0), None)
        took_s = _prefill(at, fresh, active, seconds - now_s) if fresh else _decode(at, active, seconds - now_s)
        now_s += took_s
        if fresh is not None and fresh.prefill_tokens <= 0:
            fresh.first_s = now_s
        for work in [work for work in active if work.prefill_tokens <= 0 and work.decode_tokens <= 1e-9]:
            work.end_s = now_s
            active.remove(work)


def _enter(waiting: list[Work], active: list[Work], slots: int) -> None:
    taken = [work.model for work in active]
    for work in list(waiting):
        if taken.count(work.model) < slots:
            waiting.remove(work)
            active.append(work)
            taken.append(work.model)


def _prefill(at: Speed, fresh: Work, active: Sequence[Work], most_s: float) -> float:
    """Each step of a prompt gives every decoding sequence a token."""
    whole_s = fresh.prefill_tokens / at.prefill_tok_s
    ratio = min(1.0, most_s / whole_s)
    tokens = fresh.prefill_tokens * ratio
    _give(active, tokens / MICRO_BATCH_TOKENS)
    fresh.prefill_tokens = fresh.prefill_tokens - tokens if ratio < 1 else 0.0
    return whole_s * ratio


def _decode(at: Speed, active: Sequence[Work], most_s: float) -> float:
    """Until the shortest answer ends."""
    steps = max(1e-9, min(work.decode_tokens for work in active))
    context = sum(work.context_tokens for work in active) + len(active) * steps / 2
    step_s = at.decode_step_s(len(active), int(context))
    steps = min(steps, most_s / step_s)
    _give(active, steps)
    return steps * step_s


def _give(active: Sequence[Work], tokens: float) -> None:
    for work in active:
        if work.prefill_tokens <= 0:
            work.decode_tokens = max(0.0, work.decode_tokens - tokens)
            work.context_tokens += tokens
