"""One loaded model of the emulated Ollama: its memory, its references, its slots and when it expires."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from corral.emulator.catalog import ModelSpec

FOREVER_S = math.inf


@dataclass(frozen=True, slots=True)
class Signature:
    """What makes Ollama load a model anew; None is "automatic"."""

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int | None = None
    draft_num_predict: int | None = None
    shift: bool | None = None
    adapters: tuple[str, ...] = ()
    """The digests of what is loaded beside the weights."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request that needs a model."""

    id: int
    model: ModelSpec
    name: str
    """The name the request came under, with a tag."""
    signature: Signature = Signature()
    keep_alive_s: float | None = None
    """None: leave the runner's as it is."""
    digest: str = ""
    """Of the manifest that the name stood for when it came."""

    @property
    def key(self) -> str:
        """A runner is found by the weights' blob: two names of one blob share it."""
        return self.model.blob_digest


class RunnerState(Enum):
    """Life of a runner: LOADING → LOADED → UNLOADING → gone (a crash or an aborted load goes there at once)."""

    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


@dataclass(slots=True, eq=False)
class Runner:
    """A model in memory. Mutable, owned by the machine."""

    job: Job
    """The request that had it loaded: gives its name in ``/api/ps``."""
    context_tokens: int
    context_automatic: bool
    slots: int
    bytes_total: int
    bytes_vram: int
    session_s: float
    state: RunnerState
    until_s: float
    """When LOADING or UNLOADING ends."""
    refs: set[int] = field(default_factory=set)
    active: set[int] = field(default_factory=set)
    """Jobs that hold a slot; a leaked slot stays here."""
    waiting: deque[int] = field(default_factory=deque)
    expires_at_s: float | None = None
    """None until it was idle for the first time; then of the *last* time it became idle."""

    @property
    def model(self) -> ModelSpec:
        return self.job.model

    @property
    def gpu_ratio(self) -> float:
        return self.bytes_vram / self.bytes_total if self.bytes_total else 1.0

    def take_slots(self) -> list[int]:
        """First come, first served: the waiting jobs that get a slot now."""
        taken = []
        while self.waiting and len(self.active) < self.slots:
            job_id = self.waiting.popleft()
            self.active.add(job_id)
            taken.append(job_id)
        return taken

    def needs_reload(self, job: Job) -> bool:
        """Whether the job's options differ from those it was loaded with."""
        old, new = self.job.signature, job.signature
        if _others(old) != _others(new):
            return True
        if new.num_ctx is None:
            return not self.context_automatic
        return clamp_context(new.num_ctx, self.model) != self.context_tokens

    def shown_expiry_s(self, now: float) -> float:
        """What ``/api/ps`` says: slides until the runner was idle once, then stays at the last idle time's."""
        return now + self.session_s if self.expires_at_s is None else self.expires_at_s


def clamp_context(num_ctx: int, model: ModelSpec) -> int:
    """At least 4 tokens, at most what the model was trained for."""
    return max(4, min(num_ctx, model.context_length))


def _others(signature: Signature) -> tuple[object, ...]:
    num_gpu = None if signature.num_gpu == -1 else signature.num_gpu
    # shift on is Ollama's default, so saying so is not a difference
    shift = None if signature.shift else signature.shift
    return (
        signature.num_batch,
        num_gpu,
        signature.main_gpu,
        signature.use_mmap,
        signature.num_thread,
        signature.draft_num_predict,
        shift,
        signature.adapters,
    )
