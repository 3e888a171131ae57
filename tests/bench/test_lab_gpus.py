"""The virtual GPUs' readings, as they come to the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import pytest

from corral.emulator.catalog import gpu_named, model_given
from corral.gateway.schedule.effects import Effect
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.laboratory.clock import Alarm, Clock
from corral.laboratory.gpus import GpuReadings
from corral.laboratory.replica import VirtualReplica
from corral.laboratory.types import Arrival, BoxReplica
from corral.model import GpuLoad
from corral.policies import make_policy

GPU, MODEL = gpu_named("RTX 3090 24GB"), model_given("llama3.1:8b")


class Recorded(Scheduler[Any]):
    """A scheduler that keeps what it is told of GPUs."""

    def __init__(self) -> None:
        super().__init__(make_policy("random"), "random", QueueLimits(), Random(1))
        self.loads: list[GpuLoad] = []

    def gpu_loaded(self, replica_id: str, load: GpuLoad | None, now_s: float) -> list[Effect[Any]]:
        assert (replica_id, load is None) == ("r", False)
        self.loads += [load] if load is not None else []
        return []


class Lab:
    """One replica, in a world where nothing but it happens."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.replica = VirtualReplica(BoxReplica("r", GPU, 4), (MODEL,))
        self.alarm = Alarm(self.clock, self.advance)
        self.scheduler = Recorded()
        GpuReadings(self, self.clock, {"r": self.replica}).start()

    def decide(self, call: Callable[[float], Iterable[Effect[Any]]]) -> None:
        assert not list(call(self.clock.now_s))

    def until(self, when_s: float) -> GpuLoad:
        """Let time pass; what was said last."""
        self.clock.at(when_s, lambda: None)
        self.clock.run(lambda: self.clock.now_s >= when_s, when_s)
        return self.scheduler.loads[-1]

    def send(self, tokens: int) -> None:
        self.replica.submit(Arrival(0, self.clock.now_s, MODEL.name, 100, tokens), self.clock.now_s)
        self.alarm.set(self.replica.next_s())

    def throttle(self, ratio: float) -> None:
        self.replica.throttle(ratio, self.clock.now_s)
        self.alarm.set(self.replica.next_s())

    def advance(self) -> None:
        self.replica.advance(self.clock.now_s)
        self.alarm.set(self.replica.next_s())


def test_a_gpu_is_read_every_two_seconds() -> None:
    lab = Lab()
    idle = lab.until(20.5)
    assert len(lab.scheduler.loads) == 10
    assert (idle.slowdown, idle.foreign, idle.utilisation_ratio, idle.foreign_bytes) == (1.0, 0.0, 0.0, 0)
    assert idle.memory_bytes == GPU.vram_bytes


def test_a_gpu_at_work_shows_it_and_own_work_is_not_foreign() -> None:
    lab = Lab()
    idle = lab.until(10.5)
    lab.send(6_000)
    busy = lab.until(40.5)
    assert busy.utilisation_ratio == pytest.approx(1.0)
    assert busy.foreign == 0.0
    assert busy.foreign_bytes == 0
    for name in ("memory_ratio", "temperature_ratio", "power_ratio"):
        assert getattr(busy, name) > getattr(idle, name)


def test_a_throttled_gpu_is_told_as_slow_as_it_is() -> None:
    lab = Lab()
    lab.send(20_000)
    assert lab.until(40.5).slowdown == 1.0
    lab.throttle(0.6)
    assert lab.until(100.5).slowdown == pytest.approx(1 / 0.6, rel=0.03)
    lab.throttle(1.0)
    assert lab.until(170.5).slowdown == 1.0
