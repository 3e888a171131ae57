"""The nouns of Corral, one word per thing. Read this file first.

Rules of this file: values only (no I/O, no clock), frozen, and ``None`` always means *not known*, never zero. Those
that are made for every request are msgspec structs: a frozen dataclass costs ten times as much to make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Protocol

from msgspec import Struct


class RequestKind(Enum):
    """What a request asks of a replica; it decides which capacity the request takes."""

    INFERENCE = "inference"
    """Runs a model: takes one slot of that model on one replica."""
    CLOUD = "cloud"
    """Runs a model in Ollama's cloud: takes no slot and no GPU."""
    SHOW = "show"
    """Reads about one model: any replica that has it, no slot."""
    STORE = "store"
    """Changes the model store: goes to the leader replica, one at a time."""
    BLOB = "blob"
    """Reads or adds one blob of the store: goes to the leader replica, no slot."""
    OTHER = "other"
    """Anything else, unknown paths too: any healthy replica, no slot."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One Ollama that serves requests."""

    id: str
    host: str
    port: int
    weight: float = 1.0
    slots: int | None = None
    """Requests that may be in flight *per model* (its OLLAMA_NUM_PARALLEL); None: not known."""


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One line of a replica's ``/api/tags``."""

    name: str
    """Normalised, see :func:`normalise_model`."""
    digest: str
    remote: bool = False
    """A stub whose inference runs in Ollama's cloud (``remote_host`` is set)."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One line of a replica's ``/api/ps``."""

    name: str
    size_bytes: int
    size_vram_bytes: int
    context_length: int | None


@dataclass(frozen=True, slots=True)
class OllamaSample:
    """One reading of one replica. A part that could not be read is None and leaves the last value standing."""

    replica_id: str
    taken_at_s: float
    """When the reading *began*, on the gateway's monotonic clock."""
    version: str | None
    installed: tuple[InstalledModel, ...] | None
    loaded: tuple[LoadedModel, ...] | None


class ProbeResult(Enum):
    """How one liveness probe (``GET /api/version``) of a replica ended."""

    ANSWERED = "answered"
    REFUSED = "connection refused"
    """Refused, reset or unreachable: nothing is there."""
    TIMED_OUT = "no answer in time"
    NONSENSE = "nonsense answer"
    """Something answered, but not as an Ollama does."""


class RouteRequest(Struct, frozen=True):
    """What a policy may know of a request."""

    kind: RequestKind
    model: str | None
    """Normalised model name; None when the request names none (or none that could be read)."""
    signature: str = ""
    """The options that make Ollama reload the model (num_ctx, num_gpu, …), canonical; empty: none given."""
    body_bytes: int = 0
    tenant: str = ""
    """Who asks: the client's address."""


class Health(Enum):
    """What was observed of a replica (the operator's *enabled* is a separate fact)."""

    UNKNOWN = "unknown"
    """Not yet probed since start; requests may be sent."""
    UP = "up"
    DOWN = "down"
    """Does not answer its probe: gets no request."""
    EJECTED = "ejected"
    """Answers its probe but fails requests: gets requests only where no other replica can."""


class ReplicaView(Struct, frozen=True):
    """What a policy may know of one replica now. Only replicas that may take the request are ever shown."""

    id: str
    weight: float
    slots: int
    """Slots per model (1 while not known)."""
    inflight: int
    """Requests of all models now in flight on this replica, as the gateway counts them: never stale."""
    inflight_model: int
    """Those of the request's own model."""
    loaded: frozenset[str] | None
    """Models resident in its memory (last ``/api/ps``, and those the gateway has in flight); None: not known."""
    turn: float = 0.0
    """Its place in the rotation: grows by 1/weight with each request it is sent, so the lowest is next in turn."""


class Decision(Struct, frozen=True):
    """A policy's answer."""

    replica_id: str
    reason: str
    """A few words for a person: header, metrics label and log; from a small fixed set per policy."""


class Policy(Protocol):
    """Decides where one request goes. Pure: no I/O, no clock, no global state; randomness only from ``rng``."""

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        """Pick one of ``candidates`` (never empty; each has a free slot for the request)."""
        ...


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica in a :class:`Snapshot`: what an operator sees."""

    id: str
    weight: float
    slots: int | None
    health: Health
    enabled: bool
    """False while the operator drains it."""
    reason: str
    """Why it is in this health, in a few words."""
    inflight: int
    inflight_by_model: dict[str, int]
    version: str | None
    installed: tuple[str, ...] | None
    loaded: tuple[str, ...] | None
    sample_age_s: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the scheduler knows at one instant."""

    taken_at_s: float
    policy: str
    replicas: tuple[ReplicaState, ...]
    queued: int
    queued_by_model: dict[str, int]
    oldest_wait_s: float | None
    inflight: int


_DEFAULT_HOST = "registry.ollama.ai/"
_DEFAULT_NAMESPACE = "library/"


def normalise_model(name: str) -> str:
    """The one spelling of a model's name: lower case, without default host and namespace, always with a tag.

    >>> normalise_model("Llama3.1"), normalise_model("registry.ollama.ai/library/llama3.1:latest")
    ('llama3.1:latest', 'llama3.1:latest')
    """
    plain = name.strip().lower().removeprefix("https://").removeprefix("http://")
    plain = plain.removeprefix(_DEFAULT_HOST).removeprefix(_DEFAULT_NAMESPACE)
    if plain.endswith(":local"):
        plain = plain.removesuffix(":local")
    head, slash, last = plain.rpartition("/")
    if last and ":" not in last:
        last += ":latest"
    return f"{head}{slash}{last}"


def is_cloud_model(name: str) -> bool:
    """Whether a *normalised* name names a model that runs in Ollama's cloud (``m:cloud``, ``m:120b-cloud``)."""
    tag = name.rpartition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")
