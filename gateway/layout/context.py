"""The context length of all replicas: one for all, so that a request means the same wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from corral.gateway.config.schema import Config
from corral.gateway.layout.estimate import CPU_CONTEXT, TIERS, context_tier, gib
from corral.gateway.layout.machine import Machine
from corral.model import Gpu


@dataclass(frozen=True, slots=True)
class Context:
    """A context length, why it is so, and what would be better (empty: nothing)."""

    length: int
    reason: str
    advice: str = ""


def choose_context(config: Config, machine: Machine, places: Sequence[tuple[Gpu, ...]]) -> Context:
    """As configured, else what Ollama would take on the smallest of ``places``."""
    if config.ollama.context_length is not None:
        return Context(config.ollama.context_length, f"context {config.ollama.context_length}: ollama.context_length")
    if not places:
        return Context(CPU_CONTEXT, f"context {CPU_CONTEXT}: Ollama's own without a GPU")
    sizes = [(machine.total(gpus), machine.replica_id(gpus)) for gpus in places]
    unknown = next((name for size, name in sizes if size is None), None)
    if unknown is not None:
        return Context(CPU_CONTEXT, f"context {CPU_CONTEXT}: the memory of {unknown} is not known")
    known = [(size, name) for size, name in sizes if size is not None]
    return _of_smallest(known)


def _of_smallest(known: Sequence[tuple[int, str]]) -> Context:
    least, name = min(known, key=lambda pair: pair[0])
    length = context_tier(least)
    what = f"what Ollama takes on {gib(least)}"
    if least >= TIERS[0][0]:
        what = (
            f"Corral's most (the {TIERS[0][1]} that Ollama takes on {gib(least)} leave room for one request at a time)"
        )
    if len(known) == 1:
        return Context(length, f"context {length}: {what}")
    better = max(context_tier(size) for size, _ in known)
    advice = (
        f"{name} ({gib(least)}) keeps the context of all replicas at {length}; the larger ones would take {better}: "
        "set ollama.context_length, or leave the small ones out with a list under gpus:."
    )
    reason = f"context {length}, the same for all: {what} ({name}, the smallest)"
    return Context(length, reason, advice if better > length else "")
