"""How much GPU memory a model needs, and how much context and how many slots a GPU has room for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from types import MappingProxyType

from corral.gateway.layout.plan import StoredModel
from corral.model import normalise_model

GIB = 1 << 30
MIB = 1 << 20

PER_GPU_BYTES = (457 + 324) * MIB
"""What the driver keeps per process, and one compute buffer (measured: ollama issues 14164 and 5494)."""
TIERS = ((47 * GIB, 262_144), (23 * GIB, 32_768), (0, 4_096))
"""Ollama's default context by the GPU memory it sees (server/routes.go)."""
CONTEXT_MAX = 32_768
CPU_CONTEXT = 4_096
SLOTS = (4, 2, 1)
KV_PER_WEIGHT = 1 / 130_000
"""KV bytes per token and byte of weights, of a model that does not say: as Llama 3.1 70B's."""
TYPICAL = StoredModel("an 8B model", 4_900_000_000, 131_072, None)
"""What slots are counted for where no model is named."""


@cache
def shipped_sizes() -> Mapping[str, StoredModel]:
    """Well-known models by normalised name, for those that are not in the store yet."""
    text = resources.files("corral.gateway.layout").joinpath("models.json").read_text()
    rows = json.loads(text)["models"]
    sizes = {
        normalise_model(name): StoredModel(
            normalise_model(name), row["weights_bytes"], row["kv_bytes_per_token"], row["context_length"]
        )
        for name, row in rows.items()
    }
    return MappingProxyType(sizes)


def find_model(name: str, stored: Sequence[StoredModel]) -> StoredModel | None:
    """The model of that normalised name: as it lies in the store, else as it is known to be; None: neither."""
    shipped = shipped_sizes().get(name)
    found = next((model for model in stored if model.name == name), None)
    if found is None:
        return shipped
    if found.kv_bytes_per_token is None and shipped is not None:
        return shipped
    return found


def need_bytes(model: StoredModel, context: int, slots: int, gpu_count: int) -> int:
    """GPU memory of the loaded model: weights, 16-bit keys and values of every slot, buffers on each GPU."""
    tokens = min(context, model.context_length or context) * slots
    kv = model.kv_bytes_per_token
    per_token = model.weights_bytes * KV_PER_WEIGHT if kv is None else kv
    return model.weights_bytes + int(per_token * tokens) + PER_GPU_BYTES * gpu_count


def fitting_context(model: StoredModel, slots: int, gpu_count: int, room: int) -> int | None:
    """The largest power of two that leaves the model in ``room`` bytes; None: not even 2048 does."""
    sizes = (1 << power for power in range(17, 10, -1))
    return next((size for size in sizes if need_bytes(model, size, slots, gpu_count) <= room), None)


def context_tier(memory_bytes: int) -> int:
    """Ollama's default context for that much GPU memory, but no more than leaves room for several slots."""
    return min(CONTEXT_MAX, next(context for least, context in TIERS if memory_bytes >= least))


def auto_slots(models: Sequence[StoredModel], context: int, gpu_count: int, room: int) -> int:
    """Requests at a time for which each of ``models`` fits ``room`` bytes; at least one."""
    sized = [(model, gpu_count) for model in models] or [(TYPICAL, 0)]
    return next(
        (n for n in SLOTS if all(need_bytes(model, context, n, gpus) <= room for model, gpus in sized)), SLOTS[-1]
    )


def gib(size: int) -> str:
    """``24 GiB``, ``9.6 GiB``, ``512 MiB``: for a sentence, not for arithmetic."""
    if size < GIB:
        return f"{size / MIB:.0f} MiB"
    value = size / GIB
    return f"{value:.0f} GiB" if value >= 10 or abs(value - round(value)) < 0.05 else f"{value:.1f} GiB"
