"""What is asked of a box: a trace or generated requests, models assigned, time scaled to a stated load."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random

from corral.emulator.batch import MICRO_BATCH_TOKENS
from corral.errors import OperatorError
from corral.laboratory.speeds import capacity_rps
from corral.laboratory.traces import in_order, read_trace
from corral.laboratory.types import Arrival, Box

BLOCK_TOKENS = MICRO_BATCH_TOKENS
"""Prompt tokens that one block hash stands for."""
FLOODER = "flooder"
_AZURE_CONV = (math.log(1020), 1.05, math.log(129), 1.1)
"""Log-normal prompts and answers with the medians, and about the spread, of Azure's conversations."""
_LONGEST_PROMPT, _LONGEST_OUTPUT = 7000, 1000


@dataclass(frozen=True, slots=True)
class Work:
    """A named workload before it meets a box."""

    name: str
    """``poisson``, ``bursty``, ``sessions`` or ``tenants`` are generated; anything else is the path of a trace."""
    requests: int = 2000
    flooder: bool = False
    """One more tenant sends half of all requests in the middle third of the time."""
    only_light: bool = False
    """The same requests, without the flooder's: what the others see alone, at the same pace."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """A workload as it is played to a box."""

    arrivals: list[Arrival]
    factor: float
    """Times of the original are multiplied by it."""
    capacity_rps: float
    span_s: float


def workload(work: Work, box: Box, load: float, seed: int) -> Scaled:
    """The workload's requests for this seed at ``load`` times what the box can do."""
    arrivals = with_models(_original(work, seed), [model.name for model in box.models], seed)
    if work.flooder:
        arrivals = with_flooder(arrivals, seed)
    scaled = scale(arrivals, box, load)
    if work.only_light:
        left = [arrival for arrival in scaled.arrivals if arrival.tenant != FLOODER]
        return replace(scaled, arrivals=left)
    return scaled


def scale(arrivals: Sequence[Arrival], box: Box, load: float) -> Scaled:
    """Stretches or presses time, never reorders."""
    if len(arrivals) < 2 or not load > 0:
        raise OperatorError(f"cannot scale {len(arrivals)} requests to a load of {load:g}")
    can = capacity_rps(box, arrivals)
    span_s = len(arrivals) / (can * load)
    factor = span_s / max(arrivals[-1].at_s - arrivals[0].at_s, 1e-9)
    played = [replace(arrival, at_s=arrival.at_s * factor) for arrival in arrivals]
    return Scaled(played, factor, can, span_s)


def with_models(arrivals: Sequence[Arrival], names: Sequence[str], seed: int) -> list[Arrival]:
    """Models by Zipf (1.0) in the order of ``names``. Requests of one conversation ask for the same one."""
    rng, bounds = Random(f"models {seed}"), zipf_bounds(len(names))
    of_session: dict[int, str] = {}
    assigned = []
    for arrival in arrivals:
        name = names[bisect(bounds, rng.random() * bounds[-1])] if len(names) > 1 else names[0]
        if (session := session_of(arrival)) is not None:
            name = of_session.setdefault(session, name)
        assigned.append(replace(arrival, model=name))
    return assigned


def session_of(arrival: Arrival) -> int | None:
    """The first block that is not everybody's: the very first is often a system prompt that all share."""
    return arrival.blocks[1] if len(arrival.blocks) > 1 else None


def zipf_bounds(count: int) -> list[float]:
    return list(accumulate(1 / rank for rank in range(1, count + 1)))


def with_flooder(arrivals: Sequence[Arrival], seed: int) -> list[Arrival]:
    """Adds as many requests again as there are in the middle third, all of one new tenant."""
    rng, span_s = Random(f"flooder {seed}"), arrivals[-1].at_s
    middle = [arrival for arrival in arrivals if span_s / 3 <= arrival.at_s <= span_s * 2 / 3]
    flood = [
        replace(rng.choice(middle), at_s=rng.uniform(span_s / 3, span_s * 2 / 3), tenant=FLOODER, blocks=())
        for _ in middle
    ]
    return in_order([*arrivals, *flood])


def _original(work: Work, seed: int) -> list[Arrival]:
    if work.name in GENERATED:
        return generate(work.name, work.requests, seed)
    return window(_trace(Path(work.name), seed), work.requests, seed)


@lru_cache(maxsize=4)
def _trace(path: Path, seed: int) -> tuple[Arrival, ...]:
    return tuple(read_trace(path, seed))


def window(arrivals: Sequence[Arrival], requests: int, seed: int) -> list[Arrival]:
    """So many requests in a row; seed 0 takes the first, every other seed begins elsewhere."""
    spare = len(arrivals) - requests
    start = 0 if spare <= 0 or seed == 0 else Random(f"window {seed}").randrange(spare + 1)
    return in_order(list(arrivals[start : start + requests]))


# -- generated ---------------------------------------------------------------------------------------------------------


def generate(kind: str, requests: int, seed: int) -> list[Arrival]:
    """Requests like Azure's conversations in size, on average one a second.

    ``poisson``: independent. ``bursty``: on and off, gaps with a coefficient of variation of about 3. ``sessions``:
    conversations of several turns, each turn's prompt holding the ones before. ``tenants``: Poisson, of twelve tenants
    by Zipf (1.0).
    """
    rng = Random(f"{kind} {seed}")
    if kind == "sessions":
        return _sessions(requests, rng)
    gap_s = _burst_gap_s if kind == "bursty" else _even_gap_s
    bounds, at_s, made = zipf_bounds(12), 0.0, []
    for number in range(requests):
        at_s += gap_s(rng)
        prompt, output = _sizes(rng)
        tenant = f"tenant-{bisect(bounds, rng.random() * bounds[-1]) + 1}" if kind == "tenants" else ""
        made.append(Arrival(number, at_s, "", prompt, output, tenant))
    return in_order(made)


GENERATED = ("poisson", "bursty", "sessions", "tenants")


def _even_gap_s(rng: Random) -> float:
    return rng.expovariate(1.0)


def _burst_gap_s(rng: Random) -> float:
    """One gap in ten is long: a mixture of two exponentials with mean 1."""
    return rng.expovariate(1 / 7.0) if rng.random() < 0.1 else rng.expovariate(3.0)


def _sizes(rng: Random) -> tuple[int, int]:
    prompt_mu, prompt_sigma, output_mu, output_sigma = _AZURE_CONV
    prompt = min(_LONGEST_PROMPT, max(8, round(rng.lognormvariate(prompt_mu, prompt_sigma))))
    return prompt, min(_LONGEST_OUTPUT, max(4, round(rng.lognormvariate(output_mu, output_sigma))))


def _sessions(requests: int, rng: Random) -> list[Arrival]:
    """A turn comes some seconds after the one before; block 0 is a system prompt that all share."""
    made: list[Arrival] = []
    began_s, session = 0.0, 0
    while len(made) < requests:
        session += 1
        began_s += rng.expovariate(1 / 4.0)
        at_s, prompt, tenant = began_s, BLOCK_TOKENS, f"tenant-{session % 8}"
        for _ in range(min(12, 1 + int(rng.expovariate(1 / 3.5)))):
            fresh, output = _sizes(rng)
            prompt = min(_LONGEST_PROMPT, prompt + fresh // 2)
            made.append(Arrival(0, at_s, "", prompt, output, tenant, _blocks(session, prompt)))
            prompt = min(_LONGEST_PROMPT, prompt + output)
            at_s += rng.lognormvariate(math.log(20), 0.8)
    return in_order(sorted(made, key=lambda arrival: arrival.at_s)[:requests])


def _blocks(session: int, prompt_tokens: int) -> tuple[int, ...]:
    whole = prompt_tokens // BLOCK_TOKENS
    return (0, *(session * 1000 + number for number in range(1, whole)))
