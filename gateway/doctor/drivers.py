"""Facts of the GPUs from their drivers: which there are, and one reading of each."""

from __future__ import annotations

import time
from typing import Final

from corral.gateway.doctor.parts import Part
from corral.model import Gpu, GpuFault, GpuMiss, GpuSample, GpuSurvey
from corral.probes.gpu import GpuReadError, GpuSource

VENDOR_S: Final = 6.0
"""For the list of one vendor's GPUs: a driver without persistence mode takes seconds to wake them up."""
SURVEY_S: Final = 2 * VENDOR_S
READ_S: Final = 3.0

Reading = GpuSample | GpuMiss


class Drivers:
    """The drivers of this machine, and what they said of its GPUs."""

    def __init__(self, sources: tuple[GpuSource, ...], survey: GpuSurvey) -> None:
        self.survey = survey
        self._sources = sources

    def read(self) -> tuple[Reading, ...]:
        """Each GPU on its own: one that hangs keeps nothing from being known of the others."""
        parts = {gpu.uuid: Part(f"GPU {gpu.index}", self._reading_of(gpu), READ_S) for gpu in self.survey.gpus}
        return tuple(_ended(uuid, part) for uuid, part in parts.items())

    def _reading_of(self, gpu: Gpu) -> _Reading:
        return _Reading([source for source in self._sources if source.vendor is gpu.vendor], gpu.uuid)


class _Reading:
    """One reading to be made."""

    def __init__(self, sources: list[GpuSource], uuid: str) -> None:
        self._sources = sources
        self._uuid = uuid

    def __call__(self) -> Reading:
        at_s = time.monotonic()
        try:
            return self._sources[0].read(self._uuid, at_s)
        except GpuReadError as error:
            return GpuMiss(self._uuid, at_s, error.fault, error.reason)


def _ended(uuid: str, part: Part[Reading]) -> Reading:
    reading = part.result()
    if reading is not None:
        return reading
    fault = GpuFault.HUNG if part.is_late else GpuFault.FAILED
    return GpuMiss(uuid, time.monotonic(), fault, part.fault or "it gave no reading")


def look(nvml_library: str | None) -> Drivers:
    """May take as long as :data:`SURVEY_S`."""
    from corral.probes.reader import sources, survey_now

    found = sources(nvml_library)
    return Drivers(found, survey_now(found, VENDOR_S))
