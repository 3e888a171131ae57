"""Facts of invented machines for the doctor's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from corral.gateway.doctor.facts import (
    DeviceFile,
    DoctorFacts,
    Folder,
    Limits,
    Memory,
    PciGpus,
    Port,
    Program,
    Software,
    StoreFiles,
    Wanted,
)
from corral.gateway.layout.plan import Facts, OllamaProgram, StoredModel
from corral.model import Gpu, GpuLink, GpuSample, GpuSurvey, GpuVendor, LinkKind

GIB = 1 << 30
STORE = "/srv/models"


def gpu(index: int = 0, name: str = "NVIDIA L4", **more: Any) -> Gpu:
    known: dict[str, Any] = {
        "uuid": f"GPU-{index}",
        "vendor": GpuVendor.NVIDIA,
        "memory_bytes": 24 * GIB,
        "compute_capability": (8, 9),
        "persistence_mode": True,
        "ecc": True,
    }
    return Gpu(index=index, name=name, **(known | more))


def mig_device(parent: int = 0, number: int = 0) -> Gpu:
    return gpu(parent, uuid=f"MIG-{parent}-{number}", parent_uuid=f"GPU-{parent}", persistence_mode=None, ecc=None)


def amd(index: int = 0) -> Gpu:
    return Gpu(uuid=f"GPU-a{index}", index=index, vendor=GpuVendor.AMD, name="AMD W7900", memory_bytes=48 * GIB)


def nvlink(a: int, b: int, lanes: int | None = 4, peer_to_peer: bool | None = True) -> GpuLink:
    return GpuLink(f"GPU-{a}", f"GPU-{b}", LinkKind.NVLINK, lanes, peer_to_peer)


def sample(index: int = 0, **more: Any) -> GpuSample:
    known: dict[str, Any] = {
        "temperature_celsius": 60.0,
        "slowdown_celsius": 90.0,
        "throttles": frozenset(),
        "uncorrected_ecc_errors": 0,
    }
    return GpuSample(uuid=f"GPU-{index}", taken_at_s=1.0, **(known | more))


def machine(*gpus: Gpu, version: str | None = "0.32.15", **more: Any) -> DoctorFacts:
    """A healthy machine with these GPUs (none: without one), and what else is said of it.

    ``links``, ``driver``, ``problems`` are of its survey, ``models`` of its store; the rest are fields of the facts.
    """
    survey = GpuSurvey(
        gpus,
        links=tuple(more.pop("links", ())),
        driver_version=more.pop("driver", "570.86.15" if gpus else None),
        cuda_version="12.8" if gpus else None,
        problems=tuple(more.pop("problems", ())),
    )
    models: tuple[StoredModel, ...] = more.pop("models", ())
    facts = DoctorFacts(
        wanted=Wanted(replicas=max(1, len(gpus)), host_cache_bytes=8 * GIB),
        layout=Facts(survey, OllamaProgram("/usr/bin/ollama", version), store=STORE, models=models),
        samples=tuple(sample(each.index) for each in gpus if each.vendor is GpuVendor.NVIDIA),
        pci=PciGpus(nvidia=sum(each.vendor is GpuVendor.NVIDIA for each in gpus), amd=0),
        nvidia_devices=(DeviceFile("/dev/nvidia0", True),) if gpus else (),
        amd_devices=(),
        gpu_users=(),
        container="",
        wsl=False,
        program=Program("ollama", "/usr/bin/ollama"),
        other_ollamas=(),
        ports=(Port("listen", "127.0.0.1:11434", True), Port("admin_listen", "127.0.0.1:11435", True)),
        store=Folder(STORE, True, True, True, "ann", True, False, 500 * GIB, "ext4"),
        store_files=StoreFiles(12, 0),
        state=Folder("/var/lib/corral", True, True, True, "ann", True, False, 50 * GIB, "ext4"),
        memory=Memory(64 * GIB, 50 * GIB, 0),
        limits=Limits(True, 65_536, None, None),
        software=Software((3, 12, 1), "0.21.0"),
        numa_nodes=1,
        numa_balancing=False,
    )
    return replace(facts, **more)
