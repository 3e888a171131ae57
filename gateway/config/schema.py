"""The keys of ``corral.yaml``: types, units, ranges and defaults, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from corral.gateway.config.discovery import DiscoveryConfig
from corral.gateway.config.owned import (
    GpusConfig,
    KeptOff,
    OllamaConfig,
    Pinned,
    ReplicaLogsConfig,
    RestartConfig,
    StoreConfig,
    StoreName,
    WarmupConfig,
)
from corral.gateway.config.patterns import HOST_PATTERN, ID_PATTERN, ORIGIN_PATTERN
from corral.gateway.config.places import Address as Address
from corral.gateway.config.places import ReplicaUrl as ReplicaUrl
from corral.gateway.config.telling import AccessLogConfig, LoadReport, TracingConfig
from corral.model import Replica, normalise_model

Host = Annotated[str, Meta(pattern=HOST_PATTERN)]
Origin = Annotated[str, Meta(pattern=ORIGIN_PATTERN)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Interval = Annotated[float, Meta(ge=0.05, le=3_600)]
Context = Annotated[int, Meta(ge=4, le=1 << 24)]


class ReplicaConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Ollama that somebody else runs."""

    id: Annotated[
        str,
        Meta(pattern=ID_PATTERN, description="Its name in headers, metrics, logs and commands; unique."),
    ]
    url: Annotated[ReplicaUrl, Meta(description="Where it answers: `http://host:port`; unique.")]
    weight: Annotated[
        float,
        Meta(gt=0, le=1_000_000, description="How fast it is beside the others: twice the weight, twice the requests."),
    ] = 1.0
    slots: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=4096,
                description="Requests that may be in flight per model (its OLLAMA_NUM_PARALLEL); "
                "left out: 1 until learned.",
            ),
        ]
        | None
    ) = None
    models: Annotated[
        tuple[str, ...],
        Meta(description="It serves only these models, and no replica without such a list serves them."),
    ] = ()
    gpus: Annotated[
        tuple[str, ...],
        Meta(description="The GPUs of this machine that it runs on, by index or UUID: so their readings are its."),
    ] = ()
    max_loaded: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=4096,
                description="Models in its memory at most (its OLLAMA_MAX_LOADED_MODELS); left out: as many as fit.",
            ),
        ]
        | None
    ) = None
    pin: Pinned = ()
    keep_off: KeptOff = ()
    store: StoreName = "shared"
    admin: (
        Annotated[
            ReplicaUrl,
            Meta(
                description="It is a Corral: where its admin port answers, `http://host:port`, which tells the load of "
                "each replica below it; left out: an Ollama."
            ),
        ]
        | None
    ) = None

    def to_replica(self, gpu_uuids: tuple[str, ...] = ()) -> Replica:
        """``gpu_uuids``: what :attr:`gpus` stands for on this machine."""
        return Replica(
            id=self.id,
            host=self.url.host,
            port=self.url.port,
            weight=self.weight,
            slots=self.slots,
            models=frozenset(map(normalise_model, self.models)) or None,
            gpus=gpu_uuids,
            max_loaded=self.max_loaded,
            pinned=frozenset(map(normalise_model, self.pin)),
            kept_off=frozenset(map(normalise_model, self.keep_off)),
            store=self.store,
            admin=None if self.admin is None else (self.admin.host, self.admin.port),
        )


class PolicyConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which policy chooses the replica. Every further key is an option of that policy."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=200,
            description="A policy of Corral or of an installed package; with `path`, the class's name.",
        ),
    ] = "weighted-least-load"
    path: (
        Annotated[
            Path,
            Meta(description="A Python file that defines the policy, relative to the configuration file."),
        ]
        | None
    ) = None
    options: dict[str, Any] = field(default_factory=dict)


class QueueConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that wait in the gateway for a free slot."""

    max_requests: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Requests that may wait, beside the first for a model that is in no memory yet; "
            "one more is refused with 503.",
        ),
    ] = 512
    max_wait_s: Annotated[
        Seconds,
        Meta(
            description="How long a request may wait before it is refused with 503; while its model is being loaded it "
            "may wait on."
        ),
    ] = 300
    order: Annotated[
        Literal["fcfs", "wspt"],
        Meta(
            description="Who goes first of those of one class that wait for one model: `fcfs`, who came first; `wspt`, "
            "who is predicted to take the shortest, but the sooner the longer it waits."
        ),
    ] = "fcfs"
    fair: Annotated[
        bool, Meta(description="Tenants (by API key, else by address) take turns, by the GPU time that they used.")
    ] = True
    quantum_s: Annotated[
        Seconds, Meta(description="GPU time by which a tenant may be ahead of others before it goes after them.")
    ] = 20
    age_s: Annotated[
        Seconds, Meta(description="A request comes up by one class for each such time that it has waited.")
    ] = 30


class CanonicaliseConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of requests that are made equal, since Ollama loads a model anew where they differ."""

    num_ctx: Annotated[
        Context | dict[str, Context] | None,
        Meta(
            description="Every request gets this context length in place of its own: one for all models, or one for "
            "each model named; left out: requests keep their own."
        ),
    ] = None
    """The names are normalised."""


class PlacementConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which models the replicas hold in memory."""

    enabled: Annotated[
        bool,
        Meta(
            description="Corral has replicas load models and let go of them, and requests wait for one that does; "
            "`false`: it leaves that to each Ollama."
        ),
    ] = True
    canonicalise: CanonicaliseConfig = CanonicaliseConfig()


class EmbeddingsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests for embeddings."""

    split: Annotated[
        bool,
        Meta(
            description="Requests with many texts are worked off in parts by all replicas that have the model, where "
            "that is predicted to be sooner; `false`: each by one replica."
        ),
    ] = True


class ProbesConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often replicas are measured."""

    gpu_interval_s: Annotated[Interval, Meta(description="Time between two readings of the GPUs.")] = 2
    ollama_interval_s: Annotated[Interval, Meta(description="Time between two probes of each Ollama.")] = 1


class TimeoutsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the gateway waits for others. There is no limit on the first byte: a cold load takes minutes."""

    connect_s: Annotated[Seconds, Meta(description="A replica must accept a connection within this time.")] = 2
    head_s: Annotated[
        Seconds, Meta(description="A client must send a complete head, and keep its body flowing, within this time.")
    ] = 20
    drain_s: Annotated[
        float,
        Meta(ge=0, le=86_400, description="How long running streams may take to finish when the gateway stops."),
    ] = 300
    stall_s: Annotated[
        Seconds,
        Meta(description="A stream silent this long, on a replica that also fails its probes, is ended with an error."),
    ] = 30
    idle_s: Annotated[Seconds, Meta(description="An idle client connection is closed after this time.")] = 300


class LimitsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may send."""

    max_body_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 40, description="The largest request body; above: 413. Blob uploads have no limit.")
    ] = 64 << 20
    max_head_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 20, description="The largest request head (request line and headers); above: 431.")
    ] = 32 << 10


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration."""

    replicas: Annotated[
        tuple[ReplicaConfig, ...],
        Meta(description="Ollamas that somebody else runs; left out: Corral runs its own, see `gpus`."),
    ] = ()
    discovery: (
        Annotated[
            DiscoveryConfig,
            Meta(description="Where replicas are found that come and go, beside those that are listed."),
        ]
        | None
    ) = None
    stores: Annotated[
        dict[str, StoreConfig],
        Meta(description="Model stores of these Ollamas by name (`replicas[].store`), where there is more to say."),
    ] = field(default_factory=dict)
    gpus: (
        Annotated[
            GpusConfig,
            Meta(
                description="GPUs on which Corral runs Ollamas of its own: `auto`, `none` or a list of groups; "
                "left out: `auto`, but `none` where `replicas` are listed."
            ),
        ]
        | None
    ) = None
    large_models: Annotated[
        tuple[str, ...],
        Meta(description="Models too big for one GPU: `gpus: auto` makes the smallest group that holds each."),
    ] = ()
    memory_reserve_bytes: Annotated[
        int, Meta(ge=0, le=1 << 50, description="GPU memory that Ollama leaves free on every GPU.")
    ] = 0
    ollama: OllamaConfig = OllamaConfig()
    warmup: WarmupConfig = WarmupConfig()
    restart: RestartConfig = RestartConfig()
    replica_logs: ReplicaLogsConfig = ReplicaLogsConfig()
    state_dir: (
        Annotated[
            Path,
            Meta(
                description="Where Corral notes what it started, and the logs of its Ollamas; "
                "left out: `$XDG_STATE_HOME/corral` or `~/.local/state/corral`."
            ),
        ]
        | None
    ) = None
    listen: Annotated[
        Address, Meta(description="Where clients connect: Ollama's own API at the root. Port 0: any free port.")
    ] = Address("127.0.0.1", 11434)
    admin_listen: Annotated[
        Address, Meta(description="Where the admin routes answer (below). Port 0: any free port.")
    ] = Address("127.0.0.1", 11435)
    policy: PolicyConfig = PolicyConfig()
    queue: QueueConfig = QueueConfig()
    placement: PlacementConfig = PlacementConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    probes: ProbesConfig = ProbesConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    limits: LimitsConfig = LimitsConfig()
    origins: Annotated[
        tuple[Origin, ...],
        Meta(description="Browser origins allowed beside Ollama's own (as OLLAMA_ORIGINS); `*` stands for any part."),
    ] = ()
    hosts: Annotated[
        tuple[Host, ...],
        Meta(description="`Host` names allowed beside loopback and private addresses; no port."),
    ] = ()
    access_log: AccessLogConfig = AccessLogConfig()
    tracing: TracingConfig = TracingConfig()
    load_report: LoadReport = "off"
    measure_links: Annotated[
        bool,
        Meta(
            description="How long a small copy from one NVIDIA GPU to another takes is measured once, at the start; "
            "that takes a few hundred MB of each GPU's memory for a moment."
        ),
    ] = False

    @property
    def owns_replicas(self) -> bool:
        """Whether Corral is to run Ollamas of its own."""
        if self.gpus is None:
            return not self.replicas and self.discovery is None
        return self.gpus.auto or bool(self.gpus.groups)
