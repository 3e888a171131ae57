"""What is counted while requests pass: plain integers in plain dicts, a microsecond or two per request."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from corral.errors import Fault, Refusal
from corral.gateway.ended import Ended
from corral.model import Health

QUEUE_BOUNDS_S: Final = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
FIRST_BYTE_BOUNDS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOTAL_BOUNDS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
LOAD_BOUNDS_S: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0)

MAX_MODELS: Final = 1_000
MAX_REASONS: Final = 1_000
OTHER: Final = "other"
"""The label of a model no replica has, and of whatever comes after a bound is reached: clients cannot add series."""
NO_MODEL: Final = "none"


class Histogram:
    """Counts per bucket; ``bounds`` are inclusive upper edges, one more bucket holds the rest."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Series:
    """Everything counted for one kind of request and one model."""

    __slots__ = ("first_byte", "lines", "outcomes", "output_tokens", "prompt_tokens", "queue", "total")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.queue = Histogram(QUEUE_BOUNDS_S)
        self.first_byte = Histogram(FIRST_BYTE_BOUNDS_S)
        self.total = Histogram(TOTAL_BOUNDS_S)
        self.lines = 0
        self.prompt_tokens = 0
        self.output_tokens = 0

    def take(self, ended: Ended) -> None:
        self.outcomes[ended.outcome] = self.outcomes.get(ended.outcome, 0) + 1
        self.queue.observe(ended.queue_s)
        self.total.observe(ended.total_s)
        self.lines += ended.lines
        if ended.first_byte_s is not None:
            self.first_byte.observe(ended.first_byte_s)
        figures = ended.figures
        if figures is not None:
            self.prompt_tokens += figures.prompt_tokens or 0
            self.output_tokens += figures.output_tokens or 0


class ProbeSeries:
    """Everything counted for one part of one replica's probe."""

    __slots__ = ("failures", "probes", "seconds")

    def __init__(self) -> None:
        self.probes = 0
        self.failures = 0
        self.seconds = 0.0


class Metrics:
    """The counters of one gateway; written by the event loop alone, read when somebody scrapes."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = {}
        self.by_replica: dict[tuple[str, str], int] = {}
        """(replica, outcome) → requests."""
        self.decisions: dict[tuple[str, str], int] = {}
        """(replica, reason) → decisions."""
        self.retries: dict[Fault, int] = dict.fromkeys(Fault, 0)
        self.refusals: dict[Refusal, int] = dict.fromkeys(Refusal, 0)
        self.health_changes: dict[tuple[str, Health], int] = {}
        self.probes: dict[tuple[str, str], ProbeSeries] = {}
        self.loads: dict[tuple[str, str], int] = {}
        """(replica, ``ok`` or ``failed``) → loads of a model that the gateway asked for."""
        self.load_seconds: dict[str, Histogram] = {}
        """Replica → how long those took that went well."""
        self.unloads: dict[tuple[str, str], int] = {}
        self.gpu_rounds = 0
        self.gpu_seconds = 0.0
        """Spent in all rounds of reading the GPUs."""
        self.reloads: dict[bool, int] = {True: 0, False: 0}
        self._models: set[str] = set()

    def know_models(self, names: Iterable[str]) -> None:
        """Names a replica has: only these become labels, the first MAX_MODELS of them."""
        for name in names:
            if name not in self._models and len(self._models) < MAX_MODELS:
                self._models.add(name)

    def model_label(self, model: str | None) -> str:
        if model is None:
            return NO_MODEL
        return model if model in self._models else OTHER

    def request_done(self, ended: Ended) -> None:
        """One request is over. Pages are no requests."""
        if ended.is_page:
            return
        model = ended.model
        key = (ended.kind, model if model in self._models else self.model_label(model))
        series = self.series.get(key)
        if series is None:
            series = self.series[key] = Series()
        series.take(ended)
        if ended.replica is not None:
            pair = (ended.replica, ended.outcome)
            self.by_replica[pair] = self.by_replica.get(pair, 0) + 1

    def decided(self, replica_id: str, reason: str) -> None:
        pair = (replica_id, reason)
        if pair not in self.decisions and len(self.decisions) >= MAX_REASONS:
            pair = (replica_id, OTHER)
        self.decisions[pair] = self.decisions.get(pair, 0) + 1

    def retried(self, fault: Fault) -> None:
        self.retries[fault] += 1

    def refused(self, refusal: Refusal) -> None:
        self.refusals[refusal] += 1

    def health_changed(self, replica_id: str, health: Health) -> None:
        pair = (replica_id, health)
        self.health_changes[pair] = self.health_changes.get(pair, 0) + 1

    def probe(self, replica_id: str, part: str, seconds: float, ok: bool) -> None:
        pair = (replica_id, part)
        series = self.probes.get(pair)
        if series is None:
            series = self.probes[pair] = ProbeSeries()
        series.probes += 1
        series.failures += not ok
        series.seconds += seconds

    def load_ended(self, replica_id: str, seconds: float, *, ok: bool) -> None:
        """A replica was asked to load a model, and has, or has not."""
        _count(self.loads, replica_id, ok)
        if ok:
            self.load_seconds.setdefault(replica_id, Histogram(LOAD_BOUNDS_S)).observe(seconds)

    def unload_ended(self, replica_id: str, *, ok: bool) -> None:
        """A replica was asked to let go of a model, and has, or has not in time."""
        _count(self.unloads, replica_id, ok)

    def reloaded(self, ok: bool) -> None:
        """The configuration was read again: used (``ok``) or refused."""
        self.reloads[ok] += 1


def _count(counts: dict[tuple[str, str], int], replica_id: str, ok: bool) -> None:
    pair = (replica_id, "ok" if ok else "failed")
    counts[pair] = counts.get(pair, 0) + 1
