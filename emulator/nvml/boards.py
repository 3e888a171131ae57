"""What NVIDIA's driver says of the GPUs that the emulator knows, beside their figures in ``calibration.json``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from corral.emulator.catalog import GIB, GpuSpec, calibration, gpu_named


@dataclass(frozen=True, slots=True)
class Board:
    """The constant facts of one kind of GPU."""

    name: str
    """As the driver gives it."""
    capability: str
    bus_width_bits: int
    max_sm_clock_mhz: int
    ecc: bool = False
    slowdown_celsius: int = 90


BOARDS: Final = {
    "RTX 3060 12GB": Board("NVIDIA GeForce RTX 3060", "8.6", 192, 2100),
    "RTX 3080 10GB": Board("NVIDIA GeForce RTX 3080", "8.6", 320, 2100),
    "RTX 3090 24GB": Board("NVIDIA GeForce RTX 3090", "8.6", 384, 2100),
    "RTX 4080 16GB": Board("NVIDIA GeForce RTX 4080", "8.9", 256, 3105),
    "RTX 4090 24GB": Board("NVIDIA GeForce RTX 4090", "8.9", 384, 3105),
    "RTX 5090 32GB": Board("NVIDIA GeForce RTX 5090", "12.0", 512, 3090),
    "RTX A6000 48GB": Board("NVIDIA RTX A6000", "8.6", 384, 2100, ecc=True),
    "L40S 48GB": Board("NVIDIA L40S", "8.9", 384, 2520, ecc=True),
    "A100 PCIe 40GB": Board("NVIDIA A100-PCIE-40GB", "8.0", 5120, 1410, ecc=True),
    "A100 PCIe 80GB": Board("NVIDIA A100 80GB PCIe", "8.0", 5120, 1410, ecc=True),
    "A100 SXM 80GB": Board("NVIDIA A100-SXM4-80GB", "8.0", 5120, 1410, ecc=True),
    "H100 PCIe 80GB": Board("NVIDIA H100 PCIe", "9.0", 5120, 1755, ecc=True),
    "H100 SXM 80GB": Board("NVIDIA H100 80GB HBM3", "9.0", 5120, 1980, ecc=True),
    "V100 PCIe 32GB": Board("Tesla V100-PCIE-32GB", "7.0", 4096, 1530, ecc=True),
    "T4 16GB": Board("Tesla T4", "7.5", 256, 1590, ecc=True),
    "L4 24GB": Board("NVIDIA L4", "8.9", 192, 2040, ecc=True),
}


def spec_of(driver_name: str, memory_bytes: int) -> GpuSpec:
    """The GPU that the driver calls so; one that nobody measured is as fast as the known one nearest in memory."""
    for name, board in BOARDS.items():
        if board.name == driver_name:
            return replace(gpu_named(name), vram_bytes=memory_bytes)
    known = calibration()["gpus"]
    near = min(known, key=lambda name: abs(known[name]["vram_GiB"] * GIB - memory_bytes))
    return replace(gpu_named(near), name=driver_name, vram_bytes=memory_bytes)
