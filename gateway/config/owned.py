"""The keys that concern the Ollamas Corral runs itself: which GPUs, with what, and how they are kept alive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

from corral.gateway.config.patterns import ID_PATTERN, KEEP_ALIVE_PATTERN

Split = Literal["layer", "row", "tensor"]
Port = Annotated[int, Meta(ge=1024, le=65_000)]
Restarts = Annotated[float, Meta(gt=0, le=86_400)]
ModelName = Annotated[str, Meta(min_length=1, max_length=512)]
Pinned = Annotated[
    tuple[ModelName, ...],
    Meta(description="Models that are to be in its memory always; they are loaded when it is up."),
]
KeptOff = Annotated[
    tuple[ModelName, ...], Meta(description="Models that it is never asked to run, though they may be in its store.")
]
StoreName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="The model store that it uses: replicas with one name share one folder (OLLAMA_MODELS). What "
        "changes a store (pull, create, rm) is done once in each.",
    ),
]


class StoreConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model store of Ollamas that somebody else runs."""

    path: Annotated[
        Path,
        Meta(description="Its folder as this machine sees it (their OLLAMA_MODELS), so that its garbage can be found."),
    ]

    def __str__(self) -> str:
        return str(self.path)


OWNED: Final = "OLLAMA_HOST"
"""Set by Corral when the process starts: only then is the port known."""


class GroupConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The GPUs of one replica. In the file also just an index or a UUID, or a list of them."""

    gpus: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="Its GPUs, by index (as `nvidia-smi` counts) or UUID; MIG devices by UUID."),
    ]
    id: Annotated[str, Meta(pattern=ID_PATTERN, description="Its name; left out: after its GPUs, `gpu0-1`.")] | None = (
        None
    )
    models: Annotated[
        tuple[str, ...],
        Meta(description="It serves only these models, and no replica without such a list serves them."),
    ] = ()
    slots: (
        Annotated[int, Meta(ge=1, le=4096, description="Requests at a time per model; left out: `ollama.parallel`.")]
        | None
    ) = None
    weight: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=1_000_000,
                description="How fast it is beside the others; left out: by memory bandwidth where every GPU tells it.",
            ),
        ]
        | None
    ) = None
    split: (
        Annotated[
            Split,
            Meta(
                description="How a model is divided over its GPUs: `layer`, `row` or `tensor` "
                "(Ollama 0.30 or newer; `tensor` is experimental); left out: Ollama's own, by layer."
            ),
        ]
        | None
    ) = None
    max_loaded: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=4096,
                description="`OLLAMA_MAX_LOADED_MODELS`: models in its memory at most; left out: `ollama.max_loaded`.",
            ),
        ]
        | None
    ) = None
    pin: Pinned = ()
    keep_off: KeptOff = ()
    env: Annotated[dict[str, str], Meta(description="Environment of its Ollama, after everything else.")] = field(
        default_factory=dict
    )


class GpusConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``gpus:``: on which GPUs Corral starts Ollamas."""

    auto: bool
    """Every GPU its own replica, except where ``large_models`` need a group."""
    groups: tuple[GroupConfig, ...] = ()


class OllamaConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How Corral runs its Ollamas."""

    binary: Annotated[str, Meta(min_length=1, description="The program: a path, or a name sought in `PATH`.")] = (
        "ollama"
    )
    models: (
        Annotated[Path, Meta(description="The model store they share; left out: `OLLAMA_MODELS` or Ollama's own.")]
        | None
    ) = None
    parallel: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=4096,
                description="`OLLAMA_NUM_PARALLEL`: requests at a time per model; left out: 1, 2 or 4, by GPU memory.",
            ),
        ]
        | None
    ) = None
    max_loaded: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=4096,
                description="`OLLAMA_MAX_LOADED_MODELS`: models in the memory of each at most; left out: Ollama's own, "
                "three per GPU.",
            ),
        ]
        | None
    ) = None
    context_length: (
        Annotated[
            int,
            Meta(
                ge=256,
                le=1 << 24,
                description="`OLLAMA_CONTEXT_LENGTH`, the same for all; left out: what the smallest GPU would get.",
            ),
        ]
        | None
    ) = None
    keep_alive: Annotated[
        str,
        Meta(
            pattern=KEEP_ALIVE_PATTERN,
            description="`OLLAMA_KEEP_ALIVE`: how long an idle model stays in memory; `-1`: until its place is needed.",
        ),
    ] = "-1"
    host_cache_bytes: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=1 << 40,
                description="Host memory each loaded model may use for its prompt cache (Ollama 0.30 or newer); "
                "left out: 8 GiB, less where memory is short.",
            ),
        ]
        | None
    ) = None
    first_port: Annotated[Port, Meta(description="Their ports are sought from here upwards, on loopback.")] = 21001
    bind_numa: Annotated[
        bool, Meta(description="Keep each one on the CPUs and the memory next to its GPUs, where they are known.")
    ] = True
    env: Annotated[
        dict[str, str], Meta(description="Environment of every one of them, after what Corral itself sets.")
    ] = field(default_factory=dict)


class WarmupConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a replica does before it takes requests."""

    models: Annotated[tuple[str, ...], Meta(description="Models that are loaded before a replica takes requests.")] = ()
    seconds: Annotated[
        float,
        Meta(ge=0, le=3_600, description="How long, after that, short prompts run one after the other, in seconds."),
    ] = 0


class RestartConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often an Ollama that ends by itself is started again."""

    first_s: Annotated[Restarts, Meta(description="The pause before the first restart; it doubles each time.")] = 1
    max_s: Annotated[Restarts, Meta(description="The longest pause.")] = 60
    give_up_after: Annotated[
        int, Meta(ge=1, le=1000, description="So many ends within `window_s`, and it is left as failed.")
    ] = 5
    window_s: Annotated[Restarts, Meta(description="See `give_up_after`.")] = 600
    ready_s: Annotated[
        Restarts, Meta(description="An Ollama that does not answer this long after its start has failed to start.")
    ] = 60
    stop_s: Annotated[
        Restarts, Meta(description="Between the request to end and the end by force of all its processes.")
    ] = 10


class ReplicaLogsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The files that take what the Ollamas print."""

    max_bytes: Annotated[
        int, Meta(ge=4096, le=1 << 40, description="A log larger than this is rotated: `gpu0.log` to `gpu0.log.1`.")
    ] = 10 << 20
    files: Annotated[int, Meta(ge=1, le=100, description="Rotated logs kept per replica.")] = 3


def plain_env(value: Any) -> str | None:
    """An environment variable's value as written in YAML, as text; None where it has no plain meaning."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value) if isinstance(value, str | int | float) else None
