"""What is known before a layout is decided, and what is decided: the replicas to start, with the reason for each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from corral.model import Gpu, GpuSurvey


@dataclass(frozen=True, slots=True)
class OllamaProgram:
    """An ``ollama`` executable."""

    path: str
    version: str | None
    """As ``ollama --version`` says; None: it did not say."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model of the store, as its manifest and its GGUF header tell."""

    name: str
    """Normalised."""
    weights_bytes: int
    kv_bytes_per_token: int | None
    """With 16-bit keys and values; None: the header does not say."""
    context_length: int | None
    """The most it was trained for."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a layout depends on, read once."""

    survey: GpuSurvey = field(default_factory=GpuSurvey)
    program: OllamaProgram | None = None
    ram_bytes: int | None = None
    store: str | None = None
    """Where the models are; None: left to Ollama."""
    models: tuple[StoredModel, ...] = ()
    store_is_readable: bool = True
    """False: which models there are is not known, because this user may not look."""
    free_bytes: Mapping[str, int] = field(default_factory=dict)
    """Free memory by GPU uuid, of those that tell it."""
    cpus: tuple[int, ...] = ()
    """The CPUs this process may use; empty: not known."""
    no_proxy: str | None = None
    """What ``NO_PROXY`` must be for an Ollama to reach itself; None: no proxy is set."""
    visible: Mapping[str, str] = field(default_factory=dict)
    """The ``*_VISIBLE_DEVICES`` of the gateway's own environment."""


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """One Ollama to run."""

    id: str
    command: tuple[str, ...]
    """The program and its arguments."""
    env: Mapping[str, str]
    """What is set beside the gateway's own environment; the address is added at the start of the process."""
    gpus: tuple[Gpu, ...] = ()
    """Empty: it runs on the CPU."""
    models: frozenset[str] | None = None
    """See :attr:`corral.model.Replica.models`."""
    slots: int = 1
    max_loaded: int | None = None
    """See :attr:`corral.model.Replica.max_loaded`."""
    pinned: frozenset[str] = frozenset()
    kept_off: frozenset[str] = frozenset()
    store: str = "shared"
    """See :attr:`corral.model.Replica.store`."""
    context_length: int = 4096
    weight: float = 1.0
    cpus: tuple[int, ...] = ()
    """The CPUs it is kept on; empty: any."""
    numa_node: int | None = None
    """The node whose memory it is given first; None: any."""
    reasons: tuple[str, ...] = ()
    """Why it is so, each in a sentence for a person."""

    @property
    def signature(self) -> str:
        """Equal for plans that need no new process: the same program, environment and place."""
        parts = [self.id, *self.command, *(f"{name}={value}" for name, value in sorted(self.env.items()))]
        parts += [str(self.cpus), str(self.numa_node)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole layout."""

    replicas: tuple[ReplicaPlan, ...]
    notes: tuple[str, ...] = ()
    """What a person should know of the machine or the choice, a sentence each."""
    advice: tuple[str, ...] = ()
    """What would serve better, a sentence each."""
