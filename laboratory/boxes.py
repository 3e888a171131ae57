"""The machines of the laboratory, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from corral.emulator.catalog import GpuSpec, ModelSpec, gpu_named, model_given
from corral.errors import OperatorError
from corral.laboratory.types import Box, BoxReplica, Incident

BASE = "RTX 4090 24GB"
"""Its batch curve is nearly flat: that part of a step is by class and does not scale with the speed."""
SPEEDS = (1.6, 1.0, 0.6, 0.4)
MIXED = (
    "RTX A6000 48GB",
    "RTX 4090 24GB",
    "RTX 3090 24GB",
    "L4 24GB",
    "RTX 4080 16GB",
    "T4 16GB",
    "RTX 3060 12GB",
    "RTX 3080 10GB",
)
MODELS: dict[str, tuple[str, ...]] = {
    "1": ("llama3.1:8b",),
    "3": ("llama3.1:8b", "mistral:7b", "llama3.2:3b"),
    "6": ("llama3.1:8b", "qwen2.5:7b", "mistral:7b", "qwen3:8b", "gemma3:4b", "llama3.2:3b"),
    "6-large": (
        "qwen2.5:32b",
        "qwen3:32b",
        "mistral-small3.1:24b",
        "deepseek-r1:32b",
        "qwen2.5:14b",
        "llama3.1:70b",
    ),
}
"""In the order of their popularity."""
ONE_OLLAMA = "one-ollama-8"
GPUS_BEHIND = {ONE_OLLAMA: 8}
"""Boxes where one replica stands for several GPUs."""
SHARED_CONTEXT = 8192
"""OLLAMA_CONTEXT_LENGTH where there is more than one model: by itself Ollama takes so much for the first one's context
that no second fits beside it on 24 GiB."""
SLOW_DISK_BYTES_S = 0.4e9
"""A SATA disk or a share: an 8B model takes 13 s to load instead of 2."""
INCIDENTS = ("none", "throttle", "kill")


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """A box in the words of the command line."""

    name: str = "unequal-4"
    models: str = "1"
    """A key of :data:`MODELS`, or models as the emulator takes them, separated by commas."""
    slots: int = 4
    max_loaded: int = 2
    incident: str = "none"
    equal_weights: bool = False
    """Nobody told the gateway which GPUs are faster."""
    is_disk_slow: bool = False
    """Models are read from a disk, :data:`SLOW_DISK_BYTES_S`, instead of the page cache."""


def scaled_gpu(gpu: GpuSpec, speed: float) -> GpuSpec:
    """The same GPU, ``speed`` times as fast at everything it does alone."""
    return replace(
        gpu,
        name=f"{gpu.name} × {speed:g}",  # noqa: RUF001
        bandwidth_bytes_s=gpu.bandwidth_bytes_s * speed,
        step_base_s=gpu.step_base_s / speed,
        step_s_per_gb=gpu.step_s_per_gb / speed,
        prefill_8b_tok_s=gpu.prefill_8b_tok_s * speed,
    )


def make_box(spec: BoxSpec, span_s: float | None = None) -> Box:
    """The box; with ``span_s``, how long its workload lasts, its incident happens in the middle of that."""
    if spec.name not in BOXES:
        raise OperatorError(f"--box {spec.name}: unknown; known: {', '.join(BOXES)}")
    gpus, weights = BOXES[spec.name]()
    models = models_of(spec.models)
    context = SHARED_CONTEXT if len(models) > 1 else None
    disk = SLOW_DISK_BYTES_S if spec.is_disk_slow else None
    replicas = tuple(
        BoxReplica(
            f"gpu{number}", gpu, spec.slots, 1.0 if spec.equal_weights else weight, spec.max_loaded, context, disk
        )
        for number, (gpu, weight) in enumerate(zip(gpus, weights, strict=True))
    )
    incidents = () if span_s is None else incidents_of(spec.incident, replicas, span_s)
    return Box(spec.name, replicas, models, incidents)


def models_of(text: str) -> tuple[ModelSpec, ...]:
    names = MODELS.get(text) or tuple(name for name in text.split(",") if name)
    return tuple(model_given(name) for name in names)


def incidents_of(kind: str, replicas: Sequence[BoxReplica], span_s: float) -> tuple[Incident, ...]:
    """``throttle``: the first (fastest) GPU slows to 0.6 half-way. ``kill``: the second is away from 40 % to 60 %."""
    if kind == "none":
        return ()
    if kind == "throttle":
        return (Incident(span_s * 0.5, replicas[0].id, "throttle", 0.6),)
    if kind == "kill":
        away = replicas[min(1, len(replicas) - 1)].id
        return (Incident(span_s * 0.4, away, "kill"), Incident(span_s * 0.6, away, "restore"))
    raise OperatorError(f"--incident {kind}: unknown; known: {', '.join(INCIDENTS)}")


def _equal(gpu: str, count: int) -> tuple[list[GpuSpec], list[float]]:
    return [gpu_named(gpu)] * count, [1.0] * count


def _unequal() -> tuple[list[GpuSpec], list[float]]:
    return [scaled_gpu(gpu_named(BASE), speed) for speed in SPEEDS], list(SPEEDS)


def _mixed() -> tuple[list[GpuSpec], list[float]]:
    """Weights as an operator would set them: by decode speed of an 8B model, the RTX 4090 being 1."""
    gpus = [gpu_named(name) for name in MIXED]
    steps_s = [gpu.step_base_s + gpu.step_s_per_gb * 4.92 for gpu in gpus]
    base_s = steps_s[MIXED.index(BASE)]
    return gpus, [round(base_s / step_s, 2) for step_s in steps_s]


def _one_ollama() -> tuple[list[GpuSpec], list[float]]:
    """Ollama puts a model that fits on one GPU on one GPU: the memory of eight, the speed of one."""
    gpu = gpu_named("A100 SXM 80GB")
    return [replace(gpu, name=f"8 of {gpu.name}, one Ollama", vram_bytes=8 * gpu.vram_bytes)], [1.0]


BOXES: dict[str, Callable[[], tuple[list[GpuSpec], list[float]]]] = {
    "equal-4": lambda: _equal(BASE, 4),
    "unequal-4": _unequal,
    "mixed-8": _mixed,
    "a100-8": lambda: _equal("A100 SXM 80GB", 8),
    "a100-4": lambda: _equal("A100 SXM 80GB", 4),
    ONE_OLLAMA: _one_ollama,
}
