"""Turns each round of GPU readings into what the scheduler is told of the GPUs of every replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from corral.gateway.carrier import Carrier
from corral.gateway.schedule.gpuload import GpuGauge, OwnUse
from corral.gateway.serve.gpus import GpuBoard
from corral.gateway.serve.metrics import Metrics
from corral.model import GpuLoad, OllamaSample, ProcessState, ProcessStatus, Replica

_BUSY: Final = (ProcessState.STARTING, ProcessState.STOPPING)
"""States in which a replica uses its GPUs for itself: it warms up, or lets go of its memory."""


class ReplicaSource(Protocol):
    """Whose replicas they are."""

    def replicas(self) -> tuple[Replica, ...]: ...

    def processes(self) -> tuple[ProcessStatus, ...]: ...


class GpuFeed:
    """Call :meth:`look` after each round of readings, and :meth:`sampled` with each reading of an Ollama."""

    def __init__(
        self, board: GpuBoard, carrier: Carrier, metrics: Metrics, source: ReplicaSource, clock: Callable[[], float]
    ) -> None:
        self.is_loading: Callable[[str], bool] = lambda replica_id: False
        """Whether the gateway has the replica load or unload a model now."""
        self._board = board
        self._carrier = carrier
        self._metrics = metrics
        self._source = source
        self._clock = clock
        self._gauges: dict[tuple[str, tuple[str, ...]], GpuGauge] = {}
        self._models_bytes: dict[str, list[int]] = {}
        """By replica, what each of its models takes of its GPUs."""
        self._told: dict[str, GpuLoad | None] = {}

    def sampled(self, sample: OllamaSample) -> None:
        if sample.loaded is not None:
            sizes = (model.size_vram_bytes for model in sample.loaded)
            self._models_bytes[sample.replica_id] = [size for size in sizes if size]

    def look(self) -> None:
        """The GPUs were read, well or not: say of each replica what that means."""
        now_s = self._clock()
        replicas = [replica for replica in self._source.replicas() if replica.gpus]
        self._forget_others(replicas)
        for replica in replicas:
            gauge = self._gauges.setdefault((replica.id, replica.gpus), GpuGauge())
            samples = [self._board.fresh(uuid) for uuid in replica.gpus]
            self._tell(replica.id, gauge.read(samples, self._own_use(replica, replicas), now_s), now_s)
        for replica_id in self._told.keys() - {replica.id for replica in replicas}:
            self._tell(replica_id, None, now_s)
            del self._told[replica_id]

    def _own_use(self, replica: Replica, replicas: Sequence[Replica]) -> OwnUse:
        """Of all replicas that share a GPU with this one: a GPU does not say whose work it does."""
        ids = {other.id for other in replicas if not set(other.gpus).isdisjoint(replica.gpus)}
        scheduler, is_known = self._carrier.scheduler, ids <= self._models_bytes.keys()
        sizes = [size for id in ids for size in self._models_bytes.get(id, ())]
        return OwnUse(
            inflight=sum(scheduler.inflight_on(id) for id in ids),
            sent=sum(count for (id, _), count in self._metrics.decisions.items() if id in ids),
            is_loading=any(map(self.is_loading, ids))
            or any(status.id in ids and status.state in _BUSY for status in self._source.processes()),
            vram_bytes=sum(sizes) if is_known else None,
            models=len(sizes),
        )

    def _tell(self, replica_id: str, load: GpuLoad | None, now_s: float) -> None:
        if load is not None or self._told.get(replica_id) is not None:
            self._carrier.apply(self._carrier.scheduler.gpu_loaded(replica_id, load, now_s))
        self._told[replica_id] = load

    def _forget_others(self, replicas: Sequence[Replica]) -> None:
        """What is remembered of replicas that are gone, or that have other GPUs now."""
        known = {(replica.id, replica.gpus) for replica in replicas}
        self._gauges = {key: gauge for key, gauge in self._gauges.items() if key in known}
