"""How the doctor names GPUs and sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from corral.gateway.doctor.facts import DoctorFacts
from corral.gateway.layout.machine import Machine
from corral.model import Gpu, GpuVendor

GIB: Final = 1 << 30


def nvidia_gpus(facts: DoctorFacts) -> list[Gpu]:
    """MIG devices too."""
    return [gpu for gpu in facts.layout.survey.gpus if gpu.vendor is GpuVendor.NVIDIA]


def listed(facts: DoctorFacts, gpus: Iterable[Gpu]) -> str:
    """``GPU 0``, ``GPU 0, 1 and 3``."""
    some = tuple(gpus)
    return Machine(facts.layout.survey).labels(some) if some else "none"


def named(facts: DoctorFacts, uuid: str) -> str:
    """The same of one GPU; its uuid where it is not among those that were found."""
    machine = Machine(facts.layout.survey)
    return next((machine.label(gpu) for gpu in machine.gpus if gpu.uuid == uuid), uuid)


def index_of(facts: DoctorFacts, uuid: str) -> str:
    return next((str(gpu.index) for gpu in facts.layout.survey.gpus if gpu.uuid == uuid), uuid)


def size(count_bytes: float) -> str:
    """``1.5 GiB``, ``512 MiB``."""
    if count_bytes >= GIB:
        return f"{count_bytes / GIB:.3g} GiB" if count_bytes < 1000 * GIB else f"{count_bytes / GIB:.0f} GiB"
    return f"{count_bytes / (1 << 20):.0f} MiB"
