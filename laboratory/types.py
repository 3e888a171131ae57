"""The nouns of the laboratory. All times are seconds of the emulated machines, from the start of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from corral.emulator.catalog import GpuSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a workload: when it comes, and what it asks for."""

    number: int
    at_s: float
    model: str
    prompt_tokens: int
    output_tokens: int
    tenant: str = ""
    blocks: tuple[int, ...] = ()
    """Hashes of the prompt's 512-token blocks; equal ones at the beginning are a shared prefix."""
    rank: int = 1
    """Its class: 0 interactive, 1 normal, 2 batch."""


@dataclass(frozen=True, slots=True)
class BoxReplica:
    """One Ollama on one GPU."""

    id: str
    gpu: GpuSpec
    slots: int
    weight: float = 1.0
    max_loaded: int = 3
    context_length: int | None = None
    """OLLAMA_CONTEXT_LENGTH; None: Ollama chooses by the GPU's memory."""
    disk_bytes_s: float | None = None
    """How fast models are read; None: from the page cache."""
    models: frozenset[str] | None = None
    """The only models it serves; None: any that no other replica lists."""
    pinned: frozenset[str] = frozenset()
    kept_off: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that happens to a replica during a run."""

    at_s: float
    replica_id: str
    kind: str
    """``throttle`` (it works at ``factor`` of its speed from then on), ``kill`` or ``restore``."""
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Box:
    """A machine: its replicas, the models of its store, and what goes wrong."""

    name: str
    replicas: tuple[BoxReplica, ...]
    models: tuple[ModelSpec, ...]
    incidents: tuple[Incident, ...] = ()

    def serves(self, replica: BoxReplica, model: str) -> bool:
        """Whether the replica may be sent requests for it."""
        if replica.models is not None:
            return model in replica.models
        return model not in replica.kept_off and not any(model in (other.models or ()) for other in self.replicas)


@dataclass(slots=True)
class Outcome:
    """What became of one arrival."""

    arrival: Arrival
    replica_id: str | None = None
    sent_s: float | None = None
    """When the last attempt was sent to a replica."""
    first_token_s: float | None = None
    end_s: float | None = None
    ok: bool = False
    """False: refused, failed, or not done when the run ended."""
    attempts: int = 0
    predicted_ttft_s: float | None = None
    """Seconds from the last sending until the first token, as predicted when it was sent; None: nobody predicted."""
    predicted_e2e_s: float | None = None
    """Until the end, likewise."""


@dataclass(slots=True)
class Run:
    """Everything that one run measured."""

    box: Box
    contender: str
    seed: int
    outcomes: list[Outcome]
    end_s: float
    """When the last request ended."""
    busy_s: dict[str, float]
    """Seconds in which a replica's GPU computed."""
    loads: int
    """Models loaded, on all replicas."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that needed no prefill."""
    decide_s: float = 0.0
    """Real seconds spent in the contender's own code."""
    decisions: int = 0
    unloads: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """How often each reason was given for a decision; rivals give none."""
    policy_error: str | None = None
    """The last thing that the policy did wrong."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a push router may see of a replica: what a gateway in front of Ollamas knows by itself."""

    id: str
    weight: float
    slots: int
    inflight: int
    """Requests it was sent and has not ended, all models."""
    inflight_model: int
    """Of these, those of the request's model."""
    loaded: frozenset[str]
    """Models in its memory, as ``/api/ps`` would say."""


class Router(Protocol):
    """A rival: decides at arrival, and sends at once unless :meth:`choose` says None (its own queue: first come, first
    served; asked again whenever a request ends)."""

    name: str

    def choose(self, arrival: Arrival, sights: Sequence[Sight], now_s: float) -> str | None:
        """The replica's id; None: hold it. ``sights`` are those that are up, never empty."""
        ...

    def began(self, arrival: Arrival, replica_id: str, now_s: float) -> None:
        """Its first token came."""
        ...

    def ended(self, arrival: Arrival, replica_id: str, now_s: float, *, ok: bool) -> None: ...
