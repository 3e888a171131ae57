"""Keeps a file with the emulated GPU's readings up to date, for probes that read an emulated GPU."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.emulator.catalog import calibration
from corral.emulator.rig import Rig
from corral.emulator.settings import Settings
from corral.emulator.text import to_json

_WRITE_S = 0.5
_SAMPLES = 10
_WARMING_S = 20.0
"""How long (of the emulated GPU) until two thirds of a temperature change are done."""
_BUSY_POWER_RATIO = 0.75
"""Decoding takes about this share of the power limit."""


@dataclass(slots=True)
class Readings:
    """What a GPU's sensors would say; pure but for the values fed in."""

    settings: Settings
    temperature_c: float = float(calibration()["temperature"]["idle_C"])

    def next(self, busy_ratio: float, used_bytes: int, seconds: float) -> dict[str, Any]:
        """The reading after ``seconds`` during which the GPU was busy for ``busy_ratio`` of the time."""
        spec, limits = self.settings.gpu, calibration()["temperature"]
        goal = limits["idle_C"] + (limits["load_C"] - limits["idle_C"]) * busy_ratio
        self.temperature_c += (goal - self.temperature_c) * (1.0 - math.exp(-seconds / _WARMING_S))
        watts = spec.idle_watts + max(0.0, _BUSY_POWER_RATIO * spec.tdp_watts - spec.idle_watts) * busy_ratio
        return {
            "name": f"{spec.name} (emulated)",
            "uuid": uuid_of(self.settings.id),
            "utilisation_ratio": round(busy_ratio, 3),
            "memory_used_bytes": used_bytes,
            "memory_total_bytes": spec.vram_bytes,
            "temperature_celsius": round(self.temperature_c, 1),
            "power_watts": round(watts, 1),
            "power_limit_watts": spec.tdp_watts,
        }


def uuid_of(identity: str) -> str:
    """In NVIDIA's form, the same for the same emulator."""
    digits = hashlib.sha256(identity.encode()).hexdigest()
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"


async def keep_writing(path: Path, settings: Settings, rig: Rig) -> None:
    """Write a reading now and twice a second, each whole or not at all."""
    readings = Readings(settings)
    busy = 0
    while True:
        reading = readings.next(busy / _SAMPLES, rig.machine.used_bytes(), _WRITE_S * rig.speed)
        _write(path, reading | {"taken_at_s": round(time.time(), 3)})
        busy = 0
        for _ in range(_SAMPLES):
            await asyncio.sleep(_WRITE_S / _SAMPLES)
            busy += rig.active_streams() > 0


def _write(path: Path, reading: dict[str, Any]) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_bytes(to_json(reading) + b"\n")
    new.replace(path)
