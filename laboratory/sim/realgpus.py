"""The GPU of the catalogue that a driver means: ``NVIDIA A100-SXM4-80GB``, ``Tesla T4``, ``NVIDIA H100 80GB HBM3``."""

from __future__ import annotations

import re

from corral.emulator.catalog import GpuSpec, calibration, gpu_named

_NOISE = {"nvidia", "geforce", "tesla", "gpu", "hbm2", "hbm2e"}
_FORMS = {"sxm", "pcie"}
_MEMORY = re.compile(r"\d+gi?b")


def gpu_meant(name: str, memory_bytes: int | None = None) -> GpuSpec | None:
    """The same chip, in the same form where that is known, with the nearest memory; None: nobody measured it."""
    words = _words(name)
    alike = [key for key in calibration()["gpus"] if _words(key) - _FORMS == words - _FORMS]
    same_form = [key for key in alike if _words(key) & _FORMS == words & _FORMS]
    found = [gpu_named(key) for key in same_form or alike]
    wanted = memory_bytes or _memory_bytes(name)
    return min(found, key=lambda gpu: abs(gpu.vram_bytes - (wanted or gpu.vram_bytes)), default=None)


def _words(name: str) -> frozenset[str]:
    words = (re.sub(r"sxm\d", "sxm", word) for word in re.findall(r"[a-z0-9]+", name.lower()))
    # the driver calls an H100 SXM "H100 80GB HBM3"
    known = ("sxm" if word == "hbm3" else word for word in words if word not in _NOISE)
    return frozenset(word for word in known if not _MEMORY.fullmatch(word))


def _memory_bytes(name: str) -> int | None:
    found = re.search(r"(\d+)\s?gi?b", name.lower())
    return int(found.group(1)) << 30 if found else None
