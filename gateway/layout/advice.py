"""What would serve better: models that no replica holds, and models that turned out too big for their GPU."""

from __future__ import annotations

from collections.abc import Sequence

from corral.gateway.config.schema import Config
from corral.gateway.layout.estimate import fitting_context, gib, need_bytes
from corral.gateway.layout.groups import smallest_group
from corral.gateway.layout.machine import FIT_RATIO, Machine
from corral.gateway.layout.plan import Facts, ReplicaPlan, StoredModel
from corral.model import LoadedModel, normalise_model

_MOST = 8
"""So many models are named; a person reads no more."""


def store_advice(config: Config, facts: Facts, machine: Machine, replicas: Sequence[ReplicaPlan]) -> tuple[str, ...]:
    """One sentence for each model of the store that spills to the CPU wherever it may run."""
    large = {normalise_model(name) for name in config.large_models}
    found = [_spills(model, machine, replicas, config) for model in facts.models if model.name not in large]
    said = [text for text in found if text is not None]
    more = (
        [f"{len(said) - _MOST} more models of the store do not fit their replicas either."] if len(said) > _MOST else []
    )
    return (*said[:_MOST], *more)


def _spills(model: StoredModel, machine: Machine, replicas: Sequence[ReplicaPlan], config: Config) -> str | None:
    listed = [replica for replica in replicas if replica.models is not None and model.name in replica.models]
    serving = listed or [replica for replica in replicas if replica.models is None]
    sized = [
        (room, replica) for replica in serving if (room := machine.room(replica.gpus)) is not None and replica.gpus
    ]
    if not sized:
        return None
    if any(_need(model, replica) <= room for room, replica in sized):
        return None
    room, best = max(sized, key=lambda pair: pair[0])
    return (
        f"{model.name} needs {gib(_need(model, best))} with context {best.context_length} and slots {best.slots}, but "
        f"{best.id} takes models of up to {gib(room)}: it would run partly on the CPU; "
        f"{_way(model, best, room, machine, config)}."
    )


def _need(model: StoredModel, replica: ReplicaPlan) -> int:
    return need_bytes(model, replica.context_length, replica.slots, len(replica.gpus))


def _way(model: StoredModel, best: ReplicaPlan, room: int, machine: Machine, config: Config) -> str:
    if best.slots > 1 and need_bytes(model, best.context_length, 1, len(best.gpus)) <= room:
        return "it fits with ollama.parallel: 1"
    whole = [gpu for gpu in machine.gpus if not gpu.is_split and gpu.parent_uuid is None and not gpu.unified_memory]
    group = smallest_group(model, whole, machine, best.context_length, config.ollama.parallel or 1)
    if group is not None:
        if config.gpus is None or config.gpus.auto:
            return f"spread it with large_models: [{model.name}]"
        return f"give it a group under gpus:, for instance {machine.labels(group.gpus)}"
    context = fitting_context(model, 1, len(best.gpus), room)
    if context is not None and context < best.context_length:
        return f"it fits with ollama.parallel: 1 and ollama.context_length: {context}"
    return "take a smaller model, or a larger GPU"


def runtime_advice(loaded: LoadedModel, replica: ReplicaPlan) -> str | None:
    """What to do about a model that is loaded on ``replica`` and too big for it; None: nothing."""
    if not replica.gpus:
        return None
    where = f"{loaded.name} on {replica.id}"
    spread = "spread it over several GPUs (large_models, or a group under gpus:) or lower ollama.context_length"
    if loaded.size_vram_bytes < loaded.size_bytes:
        spilled = loaded.size_bytes - loaded.size_vram_bytes
        return f"{where} runs partly on the CPU: {gib(spilled)} of its {gib(loaded.size_bytes)} are there; {spread}"
    known = [gpu.memory_bytes for gpu in replica.gpus]
    total = sum(size for size in known if size is not None)
    if len(known) > 1 or None in known or loaded.size_vram_bytes <= FIT_RATIO * total:
        return None
    return f"{where} takes {gib(loaded.size_vram_bytes)} of {gib(total)}, more than 80 % of the GPU; {spread}"
