"""What is counted while requests pass: plain integers in plain dicts, a few microseconds per request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from corral.errors import Fault, Refusal
from corral.gateway.ended import Ended
from corral.gateway.serve.series import (
    CLASSES,
    LAG_BOUNDS_S,
    LOAD_BOUNDS_S,
    Histogram,
    ProbeSeries,
    ReplicaSeries,
    Series,
    Timings,
)
from corral.model import Health

MAX_MODELS: Final = 1_000
MAX_REASONS: Final = 1_000
MAX_FAILURES: Final = 1_000
MAX_LOADS: Final = 3_000
OTHER: Final = "other"
"""The label of a model no replica has, and of whatever comes after a bound is reached: clients cannot add series."""
NO_MODEL: Final = "none"


K = TypeVar("K", bound=tuple[object, ...])
V = TypeVar("V")


class Metrics:
    """The counters of one gateway; written by the event loop alone, read when somebody scrapes."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = {}
        """(kind, model) → what became of the requests."""
        self.timings: dict[tuple[str, str], Timings] = {}
        """(model, class) → how long they took, and their tokens."""
        self.by_replica: dict[str, ReplicaSeries] = {}
        self.decisions: dict[tuple[str, str], int] = {}
        """(replica, reason) → decisions."""
        self.retries: dict[Fault, int] = dict.fromkeys(Fault, 0)
        self.failures: dict[tuple[str, str], int] = {}
        """(replica, fault) → attempts that failed there."""
        self.refusals: dict[Refusal, int] = dict.fromkeys(Refusal, 0)
        self.health_changes: dict[tuple[str, Health], int] = {}
        self.probes: dict[tuple[str, str], ProbeSeries] = {}
        self.loads: dict[tuple[str, str, str], int] = {}
        """(replica, model, ``ok`` or ``failed``) → loads of a model that the gateway asked for."""
        self.load_seconds: dict[str, Histogram] = {}
        """Replica → how long those took that went well."""
        self.unloads: dict[tuple[str, str, str], int] = {}
        """As :attr:`loads`: evictions, since the gateway lets go of a model only to make room."""
        self.gpu_rounds = 0
        self.gpu_seconds = 0.0
        """Spent in all rounds of reading the GPUs."""
        self.link_seconds: dict[tuple[str, str], float] = {}
        """(label of a GPU, label of another) → how long a small copy from one to the other takes, where measured."""
        self.loop_lag = Histogram(LAG_BOUNDS_S)
        self.loop_lag_max_s: float | None = None
        """The greatest of about the last minute; None: not measured."""
        self.held: Callable[[], dict[str, int]] = dict
        """What the gateway holds open now, by kind."""
        self.reloads: dict[bool, int] = {True: 0, False: 0}
        self._models: set[str] = set()
        self._replicas: set[str] | None = None
        """Those that there are; None: nobody said."""

    def know_models(self, names: Iterable[str]) -> None:
        """Names a replica has: only these become labels, the first MAX_MODELS of them."""
        for name in names:
            if name not in self._models and len(self._models) < MAX_MODELS:
                self._models.add(name)

    def model_label(self, model: str | None) -> str:
        if model is None:
            return NO_MODEL
        return model if model in self._models else OTHER

    def keep_only(self, replica_ids: Iterable[str]) -> None:
        """Forget what was counted of other replicas: where they come and go, their names have no bound."""
        kept = self._replicas = set(replica_ids)
        for alone in (self.by_replica, self.load_seconds):
            for id in alone.keys() - kept:
                del alone[id]
        _keep(self.decisions, kept)
        _keep(self.failures, kept)
        _keep(self.health_changes, kept)
        _keep(self.probes, kept)
        _keep(self.loads, kept)
        _keep(self.unloads, kept)

    def request_done(self, ended: Ended) -> None:
        """One request is over. Pages are no requests."""
        if ended.is_page:
            return
        model = ended.model
        if model not in self._models:
            model = self.model_label(model)
        assert model is not None
        series = self.series.get((ended.kind, model))
        if series is None:
            series = self.series[ended.kind, model] = Series()
        series.take(ended)
        by_class = (model, CLASSES[ended.rank])
        timings = self.timings.get(by_class)
        if timings is None:
            timings = self.timings[by_class] = Timings()
        timings.take(ended)
        if ended.replica is not None and self._is_there(ended.replica):
            replica = self.by_replica.get(ended.replica)
            if replica is None:
                replica = self.by_replica[ended.replica] = ReplicaSeries()
            replica.take(ended)
        for attempt in ended.failed:
            if self._is_there(attempt.replica):
                _count(self.failures, (attempt.replica, attempt.fault), MAX_FAILURES)

    def _is_there(self, replica_id: str) -> bool:
        """A request may end after its replica has gone, of which nothing is to come back then."""
        return self._replicas is None or replica_id in self._replicas

    def decided(self, replica_id: str, reason: str) -> None:
        _count(self.decisions, (replica_id, reason), MAX_REASONS)

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
        series.take(seconds, ok)

    def load_ended(self, replica_id: str, model: str, seconds: float, *, ok: bool) -> None:
        """A replica was asked to load a model, and has, or has not."""
        self._memory_changed(self.loads, replica_id, model, ok)
        if ok:
            self.load_seconds.setdefault(replica_id, Histogram(LOAD_BOUNDS_S)).observe(seconds)

    def unload_ended(self, replica_id: str, model: str, *, ok: bool) -> None:
        """A replica was asked to let go of a model, and has, or has not in time."""
        self._memory_changed(self.unloads, replica_id, model, ok)

    def _memory_changed(self, counts: dict[tuple[str, str, str], int], replica_id: str, model: str, ok: bool) -> None:
        key = (replica_id, self.model_label(model), "ok" if ok else "failed")
        if key not in counts and len(counts) >= MAX_LOADS:
            key = (replica_id, OTHER, key[2])
        counts[key] = counts.get(key, 0) + 1

    def reloaded(self, ok: bool) -> None:
        """The configuration was read again: used (``ok``) or refused."""
        self.reloads[ok] += 1


def _keep(counts: dict[K, V], replica_ids: set[str]) -> None:
    for key in [key for key in counts if key[0] not in replica_ids]:
        del counts[key]


def _count(counts: dict[tuple[str, str], int], pair: tuple[str, str], bound: int) -> None:
    """One more of these; past the bound they are counted as others of the same replica."""
    if pair not in counts and len(counts) >= bound:
        pair = (pair[0], OTHER)
    counts[pair] = counts.get(pair, 0) + 1
