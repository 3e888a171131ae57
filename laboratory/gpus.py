"""What the GPUs of the virtual replicas would read, and what the scheduler is told of it by the gateway's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from corral.gateway.schedule.effects import Effect
from corral.gateway.schedule.gpuload import PROCESS_BYTES, GpuGauge, OwnUse
from corral.gateway.schedule.scheduler import Scheduler
from corral.laboratory.clock import Clock
from corral.laboratory.replica import VirtualReplica
from corral.model import GpuLoad, GpuSample, Throttle

INTERVAL_S = 2.0
"""As the gateway reads them unless told otherwise."""
CLOCK_HZ = 2.0e9
IDLE_CLOCK_HZ = 0.3e9
SLOWDOWN_CELSIUS = 90.0
IDLE_CELSIUS = 40.0
WORK_CELSIUS = 75.0
IDLE_RATIO = 0.1
WORK_RATIO = 0.75
"""Of the power limit."""


class Front(Protocol):
    """Who has the scheduler, see :class:`corral.laboratory.ours.Ours`."""

    @property
    def scheduler(self) -> Scheduler[Any]: ...

    def decide(self, call: Callable[[float], Iterable[Effect[Any]]]) -> None: ...


class GpuReadings:
    """Reads every GPU in the gateway's rhythm, from :meth:`start` on, and has the scheduler told."""

    def __init__(self, front: Front, clock: Clock, replicas: Mapping[str, VirtualReplica]) -> None:
        self._front = front
        self._clock = clock
        self._gpus = {key: _VirtualGpu(replica) for key, replica in replicas.items()}

    def start(self) -> None:
        self._clock.at(self._clock.now_s + INTERVAL_S, self._round)

    def _round(self) -> None:
        scheduler = self._front.scheduler
        for replica_id, gpu in self._gpus.items():
            load = gpu.read(scheduler.inflight_on(replica_id), self._clock.now_s)
            self._front.decide(partial(scheduler.gpu_loaded, replica_id, load))
        self.start()


class _VirtualGpu:
    """The GPU of one virtual replica, and what became of its last readings."""

    def __init__(self, replica: VirtualReplica) -> None:
        self._replica = replica
        self._gauge = GpuGauge()
        self._busy_s = 0.0
        self._sent = 0

    def read(self, inflight: int, now_s: float) -> GpuLoad | None:
        sizes = [runner.bytes_vram for runner in self._replica.listed(now_s)]
        sample = self._sample(sizes, now_s)
        self._sent += sample.utilisation_ratio != 0.0  # all that works there is ours
        own = OwnUse(inflight, self._sent, vram_bytes=sum(sizes), models=len(sizes))
        return self._gauge.read([sample], own, now_s)

    def _sample(self, sizes: Sequence[int], now_s: float) -> GpuSample:
        replica, before_s = self._replica, self._busy_s
        self._busy_s = replica.busy_s(now_s)
        busy_ratio = min(1.0, max(0.0, (self._busy_s - before_s) / INTERVAL_S))
        is_throttled = replica.slowdown > 1.0
        heat_celsius = IDLE_CELSIUS + (WORK_CELSIUS - IDLE_CELSIUS) * busy_ratio
        memory_bytes = replica.box.gpu.vram_bytes
        return GpuSample(
            uuid=replica.id,
            taken_at_s=now_s,
            utilisation_ratio=busy_ratio,
            memory_used_bytes=min(memory_bytes, sum(sizes) + PROCESS_BYTES * len(sizes)),
            memory_total_bytes=memory_bytes,
            temperature_celsius=SLOWDOWN_CELSIUS if is_throttled else heat_celsius,
            slowdown_celsius=SLOWDOWN_CELSIUS,
            power_watts=replica.box.gpu.tdp_watts * (IDLE_RATIO + (WORK_RATIO - IDLE_RATIO) * busy_ratio),
            power_limit_watts=replica.box.gpu.tdp_watts,
            sm_clock_hz=CLOCK_HZ / replica.slowdown if busy_ratio else IDLE_CLOCK_HZ,
            max_sm_clock_hz=CLOCK_HZ,
            throttles=frozenset({Throttle.THERMAL}) if is_throttled else frozenset(),
        )
