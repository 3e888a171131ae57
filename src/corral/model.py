"""The nouns of Corral, one word per thing. Read this file first.

Rules of this file: values only (no I/O, no clock), frozen, and ``None`` always means *not known*, never zero. Those
that are made for every request are msgspec structs: a frozen dataclass costs ten times as much to make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    UNLOAD = "unload"
    """Only lets go of a model, which loads none: those that hold it in memory, no slot."""
    SHOW = "show"
    """Reads about one model: any replica that has it, no slot."""
    STORE = "store"
    """Changes a model store: goes to the store's leader, no slot."""
    BLOB = "blob"
    """Reads or adds one blob of a store: goes to the store's leader, no slot."""
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
    models: frozenset[str] | None = None
    """The only models it serves, normalised, and nobody who lists none serves these; None: it serves any other."""
    gpus: tuple[str, ...] = ()
    """uuids of the GPUs it runs on, as far as this machine knows them."""
    max_loaded: int | None = None
    """How many models it holds in memory at most (its OLLAMA_MAX_LOADED_MODELS); None: as many as fit."""
    pinned: frozenset[str] = frozenset()
    """Models that are to be in its memory always, normalised."""
    kept_off: frozenset[str] = frozenset()
    """Models that it is never asked to run, normalised."""
    store: str = "shared"
    """The name of the model store that it reads and writes: replicas with one name share one folder."""
    admin: tuple[str, int] | None = None
    """It is a Corral, with replicas of its own: host and port of its admin port; None: it is an Ollama."""
    found_by: str | None = None
    """What found it, for a person; None: it is in the configuration, or Corral runs it."""


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One line of a replica's ``/api/tags``."""

    name: str
    """Normalised, see :func:`normalise_model`."""
    digest: str
    remote: bool = False
    """A stub whose inference runs in Ollama's cloud (``remote_host`` is set)."""
    size_bytes: int | None = None
    """Of its files."""


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


class GpuVendor(Enum):
    """Whose driver answers for a GPU."""

    NVIDIA = "nvidia"
    AMD = "amd"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG device of a GPU, as found: what stays as long as its driver runs."""

    uuid: str
    """What ``*_VISIBLE_DEVICES`` takes: ``GPU-…`` or ``MIG-…``; for an AMD GPU without a unique id its index."""
    index: int
    """Its place in the driver's own order (PCI bus), which need not be CUDA's. A MIG device has its parent's."""
    vendor: GpuVendor
    name: str
    memory_bytes: int | None
    """All of it; None: not known, or shared with the host (:attr:`unified_memory`)."""
    pci_bus_id: str | None = None
    numa_node: int | None = None
    cpus: tuple[int, ...] = ()
    """The CPUs next to it; empty: not known."""
    unified_memory: bool = False
    """It has no memory of its own, or its driver counts the host's with it (integrated GPUs, Grace)."""
    memory_bandwidth_bytes_s: float | None = None
    """Peak; what decides decoding speed."""
    compute_capability: tuple[int, int] | None = None
    parent_uuid: str | None = None
    """Of a MIG device: the GPU it is a part of."""
    is_split: bool = False
    """It is divided into MIG devices, which are listed beside it; by itself it runs nothing."""
    persistence_mode: bool | None = None
    ecc: bool | None = None


class LinkKind(Enum):
    """How two GPUs reach each other, the fastest first."""

    NVLINK = "NVLink"
    SAME_BOARD = "same board"
    PCIE_SWITCH = "one PCIe switch"
    PCIE_SWITCHES = "several PCIe switches"
    HOST_BRIDGE = "PCIe host bridge"
    NUMA_NODE = "one NUMA node"
    SYSTEM = "across NUMA nodes"


@dataclass(frozen=True, slots=True)
class GpuLink:
    """The way between two GPUs; each pair stands once."""

    a: str
    """uuid, as :attr:`b`."""
    b: str
    kind: LinkKind
    lanes: int | None = None
    """Active NVLinks between the two."""
    peer_to_peer: bool | None = None
    """Whether one may read the other's memory; None: not known."""


@dataclass(frozen=True, slots=True)
class GpuSurvey:
    """What one look at the machine found; empty where there is no GPU."""

    gpus: tuple[Gpu, ...] = ()
    links: tuple[GpuLink, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    """The newest CUDA that the driver serves."""
    problems: tuple[str, ...] = ()
    """What could not be read, each in a sentence for a person."""


class Throttle(Enum):
    """Why a GPU runs slower than it could."""

    POWER_CAP = "power cap"
    THERMAL = "software thermal slowdown"
    HARDWARE = "hardware slowdown"
    HARDWARE_THERMAL = "hardware thermal slowdown"
    POWER_BRAKE = "power brake"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that uses a GPU."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One reading of one GPU. A sensor that it does not have is None."""

    uuid: str
    taken_at_s: float
    """When the reading *began*, on the gateway's monotonic clock."""
    utilisation_ratio: float | None = None
    """Share of the last moments in which anything ran on it."""
    memory_used_bytes: int | None = None
    """Without what the driver keeps for itself."""
    memory_total_bytes: int | None = None
    temperature_celsius: float | None = None
    slowdown_celsius: float | None = None
    """The temperature at which it slows itself down."""
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    """Since its driver was loaded."""
    sm_clock_hz: float | None = None
    max_sm_clock_hz: float | None = None
    throttles: frozenset[Throttle] | None = None
    """Empty: it runs at full speed. None: not known."""
    uncorrected_ecc_errors: int | None = None
    """Since its driver was loaded."""
    processes: tuple[GpuProcess, ...] | None = None


class GpuFault(Enum):
    """How a reading of a GPU failed."""

    LOST = "lost"
    """It fell off the bus, or needs a reset."""
    HUNG = "hung"
    """The driver does not return from the call."""
    FAILED = "failed"
    """The driver answered with another error."""


@dataclass(frozen=True, slots=True)
class GpuMiss:
    """A reading of one GPU that failed: what was known of it grows old, and is never taken for idle."""

    uuid: str
    at_s: float
    fault: GpuFault
    reason: str


@dataclass(frozen=True, slots=True)
class GpuXid:
    """An error that the driver reported of a GPU (NVIDIA's Xid codes)."""

    uuid: str
    at_s: float
    code: int


class ProcessState(Enum):
    """Where a replica that Corral runs stands."""

    STARTING = "starting"
    """Its process runs; it does not answer yet, or its models are being warmed up."""
    RUNNING = "running"
    BACKING_OFF = "backing off"
    """It ended by itself and is started again after a pause."""
    STOPPING = "stopping"
    """It gets no new requests; what it is doing may finish, then its processes end."""
    STOPPED = "stopped"
    """Nothing runs, on purpose: its GPU is lost, or the operator wants it so."""
    FAILED = "failed"
    """It ended too often: nothing runs until the operator restarts it."""


class RouteRequest(Struct, frozen=True):
    """What a policy may know of a request."""

    kind: RequestKind
    model: str | None
    """Normalised model name; None when the request names none (or none that could be read)."""
    signature: str = ""
    """The options that make Ollama reload the model (num_ctx, num_gpu, …), canonical; empty: none given."""
    body_bytes: int = 0
    tenant: str = ""
    """Who asks: a digest of the client's API key, or else its address."""
    text_bytes: int | None = None
    """Length of what the model will read (prompt or messages), without images; None: not known."""
    prefix: tuple[int, ...] = ()
    """Chained hashes of the text's blocks of 512 bytes: equal ones at the beginning are a shared prefix."""
    output_limit: int | None = None
    """The most tokens that the client wants (num_predict, max_tokens); None: it does not say."""
    rank: int = 1
    """Its class: 0 interactive, 1 normal, 2 batch. A lower one goes first."""
    alias: str | None = None
    """The name that the client used, where :attr:`model` is another name of the same weights."""
    store: str | None = None
    """Of a request that concerns one model store: which; None: the first one."""
    keep_alive_s: float | None = None
    """How long the model is to stay in memory after it: 0 not at all, infinity for ever; None: it does not say."""
    via: str = ""
    """The run of the Corral that it came through last; empty: it came from a client."""
    prefer: str = ""
    """Where that Corral thinks that it goes, ``gpu0`` or ``node1/gpu0``: there, if there is room."""

    @property
    def key(self) -> str:
        """What a replica has to hold in memory to answer it: its model, with the options that it is loaded with."""
        return f"{self.model} {self.signature}" if self.signature else self.model or ""

    @property
    def asked(self) -> str | None:
        """The model's name as the client knows it."""
        return self.alias or self.model


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a replica gets no new requests although the operator has not drained it: its process is not ready for any."""

    reason: str
    coming: bool
    """It will be back by itself: requests that only it can serve wait for it instead of being refused."""


class Health(Enum):
    """What was observed of a replica (the operator's *enabled* is a separate fact)."""

    UNKNOWN = "unknown"
    """Not yet probed since start; requests may be sent."""
    UP = "up"
    DOWN = "down"
    """Does not answer its probe: gets no request."""
    EJECTED = "ejected"
    """Answers its probe but fails requests: gets requests only where no other replica can."""


class Figures(Struct, frozen=True):
    """What the end of an answer told of its request; None: it did not tell."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    queued_s: float | None = None
    """Waiting for a slot inside the replica."""
    load_s: float | None = None
    """Until the model was in memory, which is hardly any time where it was already."""
    prefill_s: float | None = None
    """Working off those tokens of the prompt that were in no cache."""
    decode_s: float | None = None
    """Making the tokens after the first."""


class GpuLoad(Struct, frozen=True):
    """What the GPUs of one replica say of now; of several the worst. None: not known, or too old to say anything."""

    slowdown: float = 1.0
    """How many times as long everything takes because they throttle or are about to; 1: full speed."""
    foreign: float = 0.0
    """Work of others on them, counted as so many more requests in flight."""
    utilisation_ratio: float | None = None
    memory_ratio: float | None = None
    """In use, of all."""
    temperature_ratio: float | None = None
    """Of the temperature at which they slow down."""
    power_ratio: float | None = None
    """Of their limit."""
    memory_bytes: int | None = None
    """All their memory, together."""
    foreign_bytes: int | None = None
    """Memory that is in use, but not by the replica's models."""


class LeafLoad(Struct, frozen=True, kw_only=True):
    """How one replica of a Corral stands, as that tells the Corral above it."""

    id: str
    """``gpu0``; where that Corral has a Corral below it, ``node1/gpu0``."""
    weight: float = 1.0
    is_usable: bool = True
    """It may be sent requests."""
    slots: int | None = None
    """Requests that may be in flight per model; None: as ``slots_by_model`` says."""
    slots_by_model: dict[str, int] = {}
    """Of models in its memory or in use there, as configured or found out."""
    max_loaded: int | None = None
    gpus: int = 1
    in_flight: dict[str, int] = {}
    """Requests by model, without those that came from who asks."""
    wait_s: float = 0.0
    """Until the prompts of these are worked off, as predicted."""
    load_s: float = 0.0
    """Everything that is in flight there, in predicted seconds of its work."""
    speed: float = 1.0
    """How fast it was found to be, where a replica of weight 1 is 1."""
    loaded: tuple[LoadedModel, ...] = ()
    changing: str | None = None
    """The model that it is being had load."""
    gpu: GpuLoad | None = None


class TreeLoad(Struct, frozen=True, kw_only=True):
    """How a Corral stands, as it tells the Corral above it."""

    gateway: str
    """Its run: another one each time that it is started."""
    gateways: tuple[str, ...] = ()
    """The runs of the Corrals below it, at any depth."""
    is_draining: bool = False
    queued: dict[str, int] = {}
    """Requests that wait in it by model, without those that came from who asks."""
    queue_s: dict[str, float] = {}
    """What these take of all its replicas together, by model, as predicted."""
    replicas: tuple[LeafLoad, ...] = ()


class Prediction(Struct, frozen=True):
    """How long one request would take on one replica, by its parts, as far as that was learned."""

    wait_s: float
    """Until the prompts before it are worked off."""
    prefill_s: float
    """Its own prompt, without what is in the replica's cache."""
    decode_s: float
    """Its answer, beside those that are being made there."""
    others_s: float
    """What the requests there lose by it, added up."""
    saved_s: float
    """Prefill that the cache saves; not a part of the sum."""
    slowdown: float
    """All parts are longer by this factor: its GPUs throttle, or it has had too much to do for long."""
    cost_s: float
    """What is compared: the parts, each with the weight that it has for a client."""


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
    """Models in its memory (last ``/api/ps``, and what it was sent or had to load since); None: not known."""
    turn: float = 0.0
    """Its place in the rotation: grows by 1/weight with each request it is sent, so the lowest is next in turn."""
    gpu: GpuLoad | None = None
    """What its GPUs say; None: not known."""
    predicted: Prediction | None = None
    """None: too little was learned to predict all candidates alike, or the policy does not ask for it."""


class Decision(Struct, frozen=True):
    """A policy's answer."""

    replica_id: str
    reason: str
    """A few words for a person: header, metrics label and log; from a small fixed set per policy."""
    predicted: Prediction | None = None
    """What was predicted of the chosen one; filled in by the dispatcher."""


class Policy(Protocol):
    """Decides where one request goes. Pure: no I/O, no clock, no global state; randomness only from ``rng``."""

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        """Pick one of ``candidates`` (never empty; each has a free slot for the request)."""
        ...


class Choice(Struct, frozen=True):
    """One decision of the last ones, for a person who wants to know why."""

    at_s: float
    """On the gateway's monotonic clock."""
    model: str | None
    kind: RequestKind
    waited_s: float
    decision: Decision
    candidates: tuple[ReplicaView, ...]
    """As the policy saw them."""
    alias: str | None = None
    """What the client called the model, where that is another name."""
    id: str = ""
    """The request's, as its client knows it (``x-request-id``); empty: it is one of the gateway's own."""


class LearningPolicy(Policy, Protocol):
    """A policy that is told what became of the requests that it placed: the one exception to keeping nothing."""

    def learn(
        self, request: RouteRequest, choice: Choice, ttft_s: float, e2e_s: float, figures: Figures | None
    ) -> None:
        """A request was answered completely: ``choice`` is what the policy saw and said; times are from sending."""
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
    held: str | None
    """Why the supervisor lets it have no requests now; None: it may have them."""
    reason: str
    """Why it is in this health, in a few words."""
    inflight: int
    inflight_by_model: dict[str, int]
    version: str | None
    installed: tuple[str, ...] | None
    loaded: tuple[str, ...] | None
    sample_age_s: float | None
    models: tuple[str, ...] | None = None
    """The only models it serves; None: any that no other replica lists."""
    gpus: tuple[str, ...] = ()
    changing: str | None = None
    """What the gateway has it load or let go of now; None: nothing."""
    found_by: str | None = None
    """What found it; None: it is in the configuration, or Corral runs it."""
    below: tuple[str, ...] | None = None
    """Of one that is a Corral: the replicas below it; None: it is an Ollama, or that is not known."""
    loading: str | None = None
    """The model that it is to hold when that is done; None: no change is under way."""
    leaving: tuple[str, ...] = ()
    """The models that have to leave for it."""


class GpuCondition(Enum):
    """What is known of a GPU's readings now."""

    OK = "ok"
    UNKNOWN = "unknown"
    """Not read yet."""
    STALE = "stale"
    """The last reading is too old to say what it does now."""
    LOST = "lost"
    HUNG = "hung"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU as an operator sees it."""

    gpu: Gpu
    label: str
    """What it is called in metrics and tables: ``0``, and ``0-mig1`` for its second MIG device."""
    condition: GpuCondition
    reason: str
    sample: GpuSample | None
    """The last one, however old."""
    sample_age_s: float | None
    xid: int | None = None
    """The last error that its driver reported since the gateway's start."""
    xids: int = 0
    """How many there were."""


class Order(Enum):
    """What an operator may want of a replica that Corral runs."""

    RESTART = "restart"
    """After what it is doing; one that was given up or stopped, too."""
    STOP = "stop"
    """After what it is doing, until it is told to start: its GPU is free meanwhile."""
    START = "start"


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process that Corral runs for a replica."""

    id: str
    state: ProcessState
    reason: str
    pid: int | None
    port: int | None
    restarts: int
    since_s: float
    """When it came into this state, on the gateway's monotonic clock."""
    adopted: bool
    """An earlier gateway started it."""
    log: str
    """The file that takes what it prints."""
    next_start_s: float | None
    """When it is started again, on the gateway's monotonic clock; None: no start is due."""


class Need(Enum):
    """What a request waits for."""

    SLOT = "a free slot"
    LOAD = "its model in memory"
    LISTS = "the replicas' lists of models"
    CHANGE = "a change of its model in a store"
    REPLICA = "a replica that is coming"


class WaitingRequest(Struct, frozen=True):
    """One request that waits in the gateway."""

    number: int
    """Its place in the order of all arrivals; it keeps it when it is sent."""
    model: str | None
    """As its client calls it."""
    kind: RequestKind
    rank: int
    """Its class: 0 interactive, 1 normal, 2 batch."""
    waited_s: float
    position: int
    """Whose turn comes when, among those for the same model and options; 1 is next."""
    need: Need
    replicas: tuple[str, ...]
    """Where it would get that, as far as it is known."""


class RunningRequest(Struct, frozen=True):
    """One request that is with a replica."""

    number: int
    """As in :class:`WaitingRequest`."""
    model: str | None
    kind: RequestKind
    rank: int
    replica: str
    for_s: float
    """Since it was sent there."""
    waited_s: float
    """Before that."""
    answering: bool
    """Its answer has begun: it is not retried any more."""
    predicted_s: float | None
    """What it was thought to take from its sending on; None: nothing was predicted."""


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
    gpus: tuple[GpuState, ...] = ()
    processes: tuple[ProcessStatus, ...] = ()
    """Of the replicas that Corral runs itself."""
    advice: tuple[str, ...] = ()
    """What would serve better, as seen so far."""
    waiting: tuple[WaitingRequest, ...] = ()
    """Those that wait longest, in order of arrival."""
    running: tuple[RunningRequest, ...] = ()
    """Those that were sent first, in order of sending."""
    oldest_by_model: dict[str, float] = field(default_factory=dict)
    """How long the oldest of each of :attr:`queued_by_model` has waited."""


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
