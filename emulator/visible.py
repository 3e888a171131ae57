"""The GPUs of a stand-in machine that an Ollama finds with its ``CUDA_VISIBLE_DEVICES``, and what they are together.

A GPU that it cannot use is not there for it: like the real one it then runs on the CPU without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corral.emulator.catalog import GpuSpec, gpu_named
from corral.emulator.nvml.boards import spec_of
from corral.emulator.nvml.state import read_file


@dataclass(frozen=True, slots=True)
class VisibleGpu:
    """One GPU or MIG device that can be used."""

    name: str
    """Of its file: ``gpu0``, ``gpu0.mig1``."""
    uuid: str
    description: str
    spec: GpuSpec
    """With the memory that others have left."""
    memory_bytes: int


def visible_gpus(folder: Path, wanted: str | None) -> list[VisibleGpu]:
    """What ``CUDA_VISIBLE_DEVICES`` leaves: all GPUs without it; those before the first that is unknown with it."""
    if read_file(folder / "machine").get("init_error") != "0":
        return []
    whole = [path.name for path in _files(folder, "gpu[0-9]*") if "." not in path.name]
    parts = [path.name for path in _files(folder, "gpu*.mig[0-9]*") if not path.name.endswith(".live")]
    if wanted is None:
        named = whole
    else:
        named = []
        for token in wanted.split(","):
            name = _named(folder, token.strip(), whole, [*whole, *parts])
            if name is None:
                break
            named.append(name)
    return [found for name in dict.fromkeys(named) if (found := _usable(folder, name)) is not None]


def together(gpus: Sequence[VisibleGpu]) -> GpuSpec:
    """One GPU that is as fast as these when each works on its layers in turn; without any: the CPU."""
    if not gpus:
        return cpu()
    specs = [gpu.spec for gpu in gpus]
    if len(specs) == 1:
        return specs[0]
    total = sum(spec.vram_bytes for spec in specs)
    shares = [spec.vram_bytes / max(1, total) for spec in specs]

    def in_turn(values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    return replace(
        max(specs, key=lambda spec: spec.vram_bytes),
        name=" + ".join(spec.name for spec in specs),
        vram_bytes=total,
        bandwidth_bytes_s=1 / in_turn([1 / spec.bandwidth_bytes_s for spec in specs]),
        tdp_watts=sum(spec.tdp_watts for spec in specs),
        idle_watts=sum(spec.idle_watts for spec in specs),
        step_base_s=in_turn([spec.step_base_s for spec in specs]),
        step_s_per_gb=in_turn([spec.step_s_per_gb for spec in specs]),
        prefill_8b_tok_s=1 / in_turn([1 / spec.prefill_8b_tok_s for spec in specs]),
    )


def cpu() -> GpuSpec:
    """No GPU at all: a model has none of its layers on one, which makes it as slow as a CPU."""
    return replace(gpu_named("RTX 3090 24GB"), name="cpu", vram_bytes=0)


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))


def _named(folder: Path, token: str, whole: list[str], every: list[str]) -> str | None:
    """A GPU by its index, or by its UUID or the beginning of it."""
    if token.isdigit():
        return whole[int(token)] if int(token) < len(whole) else None
    if not token.startswith(("GPU-", "MIG-")):
        return None
    return next((name for name in every if read_file(folder / name).get("uuid", "").startswith(token)), None)


def _usable(folder: Path, name: str) -> VisibleGpu | None:
    """Not one that is lost, hangs, is divided, or with which CUDA alone does not work (``cuda_broken``)."""
    said, gpu = read_file(folder / name), read_file(folder / name.partition(".")[0])
    if any(gpu.get(key, "0") != "0" for key in ("error", "hang", "cuda_broken")):
        return None
    if "." not in name and said.get("mig_mode") == "1":
        return None
    memory = int(said.get("memory_total", 0))
    spec = spec_of(gpu.get("name", ""), memory)
    free = max(0, memory - int(said.get("memory_used", 0)))
    return VisibleGpu(name, said.get("uuid", ""), said.get("name", ""), replace(spec, vram_bytes=free), memory)
