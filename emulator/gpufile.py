"""Keeps the files with the emulated GPUs' readings up to date: what the stand-in library shows while this one runs."""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corral.emulator.catalog import calibration
from corral.emulator.gpu import reserved_bytes
from corral.emulator.nvml.boards import BOARDS
from corral.emulator.nvml.state import Value, read_file, write_file
from corral.emulator.rig import Rig
from corral.emulator.runnerprocess import RunnerProcesses
from corral.emulator.settings import Settings

_WRITE_S = 0.5
_SAMPLES = 10
_WARMING_S = 20.0
"""How long (of the emulated GPU) until two thirds of a temperature change are done."""
_BUSY_POWER_RATIO = 0.75
"""Decoding takes about this share of the power limit."""
_IDLE_CLOCK_MHZ = 210
_BUSY_CLOCK_RATIO = 0.9
_HOT_CLOCK_RATIO = 0.6

THROTTLE_IDLE: Final = 0x1
THROTTLE_THERMAL: Final = 0x20

Processes = dict[int, int]
"""By pid: bytes on the GPU."""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What of one GPU its readings depend on."""

    memory_bytes: int
    idle_watts: float
    limit_watts: float
    max_clock_mhz: int
    slowdown_celsius: float


@dataclass(slots=True)
class Readings:
    """What a GPU's sensors would say; pure but for the values fed in."""

    facts: GpuFacts
    temperature_c: float = float(calibration()["temperature"]["idle_C"])
    energy_joules: float = 0.0

    def next(self, busy_ratio: float, processes: Processes, seconds: float, speed: float = 1.0) -> dict[str, Value]:
        """The reading after ``seconds`` during which the GPU was busy for ``busy_ratio`` of the time.

        It warms ``speed`` times as fast.
        """
        facts, limits = self.facts, calibration()["temperature"]
        goal = limits["idle_C"] + (limits["load_C"] - limits["idle_C"]) * busy_ratio
        self.temperature_c += (goal - self.temperature_c) * (1.0 - math.exp(-seconds * speed / _WARMING_S))
        watts = facts.idle_watts + max(0.0, _BUSY_POWER_RATIO * facts.limit_watts - facts.idle_watts) * busy_ratio
        self.energy_joules += watts * seconds
        is_hot = self.temperature_c >= facts.slowdown_celsius
        return {
            "utilisation": round(100 * busy_ratio),
            "memory_used": sum(processes.values()),
            "memory_reserved": reserved_bytes(),
            "temperature": round(self.temperature_c),
            "power_mw": round(watts * 1e3),
            "energy_mj": round(self.energy_joules * 1e3),
            "sm_clock": self._clock_mhz(busy_ratio, is_hot=is_hot),
            "throttle": (THROTTLE_THERMAL if is_hot else 0) | (0 if busy_ratio else THROTTLE_IDLE),
            "processes": " ".join(f"{pid}:{size}" for pid, size in processes.items()),
        }

    def _clock_mhz(self, busy_ratio: float, *, is_hot: bool) -> int:
        if not busy_ratio:
            return _IDLE_CLOCK_MHZ
        return round(self.facts.max_clock_mhz * (_HOT_CLOCK_RATIO if is_hot else _BUSY_CLOCK_RATIO))


class GpuFiles:
    """The files of the GPUs that one emulator runs on: its load is shared among them, layer after layer."""

    def __init__(self, settings: Settings, rig: Rig, processes: RunnerProcesses | None) -> None:
        self._rig = rig
        self._processes = processes
        self._readings = {path: _readings(path, settings) for path in settings.gpu_files}
        self._strangers = {path: _left_by_others(path) for path in settings.gpu_files}
        total = sum(readings.facts.memory_bytes for readings in self._readings.values())
        self._shares = {path: one.facts.memory_bytes / max(1, total) for path, one in self._readings.items()}

    async def keep_writing(self) -> None:
        """Write a reading now and twice a second, each whole or not at all."""
        busy = 0
        while True:
            self._write(busy / _SAMPLES, self._memory())
            busy = 0
            for _ in range(_SAMPLES):
                await asyncio.sleep(_WRITE_S / _SAMPLES)
                busy += self._rig.active_streams() > 0

    def leave(self) -> None:
        """The last reading: nothing runs any more."""
        self._write(0.0, {})

    def _memory(self) -> Processes:
        if self._processes is not None:
            return self._processes.memory()
        used = sum(runner.bytes_vram for runner in self._rig.machine.runners.values())
        return {os.getpid(): used} if used else {}

    def _write(self, busy_ratio: float, processes: Processes) -> None:
        # one GPU of a group waits while another works on its layers
        each = busy_ratio / len(self._readings)
        for path, readings in self._readings.items():
            own = {pid: int(size * self._shares[path]) for pid, size in processes.items()}
            others = {pid: size for pid, size in self._strangers[path].items() if Path(f"/proc/{pid}").exists()}
            reading = readings.next(each, others | own, _WRITE_S, self._rig.speed)
            write_file(path, {"writer": os.getpid()} | reading)


def _readings(path: Path, settings: Settings) -> Readings:
    """The GPU as its own file beside says, else as the emulator's options do."""
    said, spec = read_file(path.with_name(path.name.removesuffix(".live"))), settings.gpu
    board = BOARDS.get(spec.name)
    facts = GpuFacts(
        memory_bytes=int(said.get("memory_total", spec.vram_bytes)),
        idle_watts=int(said.get("power_mw", spec.idle_watts * 1e3)) / 1e3,
        limit_watts=int(said.get("power_limit_mw", spec.tdp_watts * 1e3)) / 1e3,
        max_clock_mhz=int(said.get("max_sm_clock", 2000 if board is None else board.max_sm_clock_mhz)),
        slowdown_celsius=float(said.get("slowdown", 90)),
    )
    before = read_file(path) if path.name.endswith(".live") else {}
    return Readings(facts, energy_joules=int(before.get("energy_mj", 0)) / 1e3)


def _left_by_others(path: Path) -> Processes:
    """Processes of an emulator that was here before and may still hold memory."""
    pairs = (pair.partition(":") for pair in read_file(path).get("processes", "").split())
    return {int(pid): int(size) for pid, _, size in pairs if pid.isdigit() and size.isdigit()}
