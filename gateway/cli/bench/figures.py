"""What the records of a benchmark come to. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from corral.gateway.cli.bench.record import Ending, Record
from corral.gateway.cli.bench.rounds import Fairness, Level, Round


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds, of whole answers."""

    p50_s: float
    p95_s: float
    most_s: float


@dataclass(frozen=True, slots=True)
class LevelFigures:
    """One address at one concurrency. None: no request was answered."""

    target: str
    concurrency: int
    ok: int
    refused: int
    errors: dict[str, int]
    """By what it was."""
    unfinished: int
    ttft: Spread | None
    e2e: Spread | None
    stream_tok_s: float | None
    """Of one stream: the median."""
    tok_s: float
    """Of all streams together: the median of the rounds."""
    requests_s: float
    prompt_tokens: float | None
    """Of one request: the median, as the address counts them."""
    output_tokens: float | None
    replicas: dict[str, float]
    """Share of the answers, where the address tells who answered."""


@dataclass(frozen=True, slots=True)
class FairnessFigures:
    target: str
    flood_streams: int
    alone: Spread | None
    """Time to the first token of the one who asks now and then."""
    flooded: Spread | None
    failed: int
    """Of the requests of the one who asks now and then, refused ones too."""
    flood_answered: int

    @property
    def ratio(self) -> float | None:
        if self.alone is None or self.flooded is None or not self.alone.p50_s:
            return None
        return self.flooded.p50_s / self.alone.p50_s


def level_figures(level: Level) -> LevelFigures:
    records = [record for each in level.rounds for record in each.records]
    whole = [record for record in records if record.ending is Ending.OK]
    speeds = [speed for record in whole if (speed := record.stream_tok_s) is not None]
    answered_by = Counter(record.replica for record in whole if record.replica is not None)
    return LevelFigures(
        target=level.target,
        concurrency=level.concurrency,
        ok=len(whole),
        refused=_count(records, Ending.REFUSED),
        errors=dict(Counter(record.why for record in records if record.ending is Ending.ERROR)),
        unfinished=_count(records, Ending.UNFINISHED),
        ttft=spread(record.ttft_s for record in whole),
        e2e=spread(record.e2e_s for record in whole),
        stream_tok_s=median(speeds) if speeds else None,
        tok_s=median(map(_tok_s, level.rounds)) if level.rounds else 0.0,
        requests_s=median(map(_requests_s, level.rounds)) if level.rounds else 0.0,
        prompt_tokens=median(record.prompt_tokens for record in whole) if whole else None,
        output_tokens=median(record.output_tokens for record in whole) if whole else None,
        replicas={name: count / answered_by.total() for name, count in sorted(answered_by.items())},
    )


def fairness_figures(found: Fairness) -> FairnessFigures:
    light = [*found.alone, *found.flooded]
    return FairnessFigures(
        target=found.target,
        flood_streams=found.flood_streams,
        alone=spread(record.ttft_s for record in found.alone if record.ending is Ending.OK),
        flooded=spread(record.ttft_s for record in found.flooded if record.ending is Ending.OK),
        failed=sum(record.ending is not Ending.OK for record in light),
        flood_answered=_count(found.flood, Ending.OK),
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """None where there is none."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    return Spread(percentile(ordered, 0.5), percentile(ordered, 0.95), ordered[-1])


def percentile(ordered: Sequence[float], ratio: float) -> float:
    """Of values in ascending order: linear between the two nearest ranks."""
    place = ratio * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _count(records: Iterable[Record], ending: Ending) -> int:
    return sum(record.ending is ending for record in records)


def _tok_s(each: Round) -> float:
    tokens = sum(record.output_tokens for record in each.records if record.ending is Ending.OK)
    return tokens / each.took_s if each.took_s > 0 else 0.0


def _requests_s(each: Round) -> float:
    return _count(each.records, Ending.OK) / each.took_s if each.took_s > 0 else 0.0
