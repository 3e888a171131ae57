"""How one emulator was asked to behave."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from corral.emulator.catalog import GpuSpec, ModelSpec
from corral.emulator.faults import Fault


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of ``corral emulate``, checked."""

    id: str
    gpu: GpuSpec
    models: tuple[ModelSpec, ...]
    host: str = "127.0.0.1"
    port: int = 0
    version: str = "0.32.15"
    parallel: int = 1
    speed: float = 1.0
    max_loaded: int = 3
    max_queue: int = 512
    keep_alive_s: float = 300.0
    context_length: int | None = None
    fixed_tok_s: float | None = None
    load_s: float | None = None
    """Seconds a load takes instead of what the model's size says; divided by ``speed`` too."""
    stall_ps: bool = False
    """``/api/ps`` waits while a model loads or unloads, as Ollama's does for moments."""
    store: Path | None = None
    gpu_files: tuple[Path, ...] = ()
    """The readings of the GPU, or of each GPU of a group."""
    runner_process: bool = False
    """Each loaded model has a process of its own, as Ollama's have."""
    gguf: Path | None = None
    threads: int = 2
    seed: int = 0
    noprune: bool = False
    """Blobs that are no longer named stay (``OLLAMA_NOPRUNE``)."""
    registry: Path | None = None
    """What was published to be pulled; None: a file in the store, or nothing that outlives the emulator."""
    pull_s: float | None = None
    """Seconds that the download of a model's weights takes instead of what their size says; divided by ``speed``."""
    account: str = "emulated"
    """Who is signed in to the cloud; empty: nobody."""
    no_cloud: bool = False
    """Models of the cloud are refused (``OLLAMA_NO_CLOUD``)."""
    faults: tuple[Fault, ...] = field(default_factory=tuple)

    @property
    def version_numbers(self) -> tuple[int, ...]:
        parts = self.version.partition("-")[0].split(".")
        return tuple(int(part) for part in parts if part.isdigit())

    @property
    def on_loopback(self) -> bool:
        return self.host.startswith("127.") or self.host in ("localhost", "::1")
