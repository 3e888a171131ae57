"""Everything the doctor's checks look at. Whatever could not be gathered is None: not known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from corral.gateway.layout.plan import Facts
from corral.model import GpuMiss, GpuSample


@dataclass(frozen=True, slots=True)
class PciGpus:
    """GPUs as the PCI bus lists them, whether or not a driver serves them."""

    nvidia: int
    amd: int


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """A device file through which a driver is reached."""

    path: str
    usable: bool
    """This user may read and write it."""


@dataclass(frozen=True, slots=True)
class Program:
    """The file that is to be run as Ollama."""

    wanted: str
    """As configured: a path, or a name sought in ``PATH``."""
    path: str | None
    """Where it is; None: nowhere."""
    executable: bool = True
    version_fault: str | None = None
    """Why it did not tell its version."""


@dataclass(frozen=True, slots=True)
class OtherOllama:
    """An ``ollama serve`` that Corral did not start."""

    pid: int
    user: str | None
    service: str | None = None
    """Of the systemd unit it belongs to; None: none, or not known."""
    store: str | None = None
    """None: not known."""
    keeps_blobs: bool | None = None
    """It runs with ``OLLAMA_NOPRUNE``."""


@dataclass(frozen=True, slots=True)
class GpuUser:
    """A process that holds memory of a GPU."""

    pid: int
    uuid: str
    memory_bytes: int | None
    program: str | None
    """Its name; None: not visible from here (another container)."""
    is_corrals: bool = False


OLLAMA_PORT: Final = "Ollama's own port"
REPLICA_PORTS: Final = "ollama.first_port"
CORRAL: Final = "corral"
"""Who holds a port: a gateway."""


@dataclass(frozen=True, slots=True)
class Port:
    """An address that Corral wants, or that Ollama usually has."""

    purpose: str
    """The key of the configuration, or :data:`OLLAMA_PORT`."""
    where: str
    is_free: bool | None
    holder: str | None = None
    """:data:`CORRAL`, ``ollama VERSION`` or ``another program``; None: free, or not known."""
    fault: str | None = None
    """Why it cannot be listened on although nobody has it."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, and the file system it is on."""

    path: str
    exists: bool
    readable: bool | None = None
    writable: bool | None = None
    """May be written; of one that does not exist: may be made."""
    owner: str | None = None
    is_mine: bool | None = None
    open_to_all: bool | None = None
    """Every user of this machine may write to it."""
    free_bytes: int | None = None
    file_system: str | None = None


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """What lies in a model store."""

    files: int
    unreadable: int
    example: str | None = None
    """One of those that cannot be read."""
    partial_files: int = 0
    partial_bytes: int = 0
    """On disk, of downloads that stopped or still run."""
    newest_partial_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """The host's memory."""

    total_bytes: int | None
    """What may be used: less than is there where a control group limits it."""
    available_bytes: int | None = None
    swap_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel lets this user have; None: no limit, or not known (see :attr:`known`)."""

    known: bool
    open_files: int | None = None
    """The hard limit: Corral raises the soft one to it."""
    processes: int | None = None
    tasks: int | None = None
    """Threads that the control group still has room for."""


@dataclass(frozen=True, slots=True)
class Software:
    """What Corral itself runs on."""

    python: tuple[int, int, int]
    uvloop: str | None
    """None: not importable."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configuration asks of this machine."""

    source: str | None = None
    """The file it came from; None: defaults."""
    fault: str | None = None
    """Why it cannot be used: the rest is of the defaults then."""
    owns_replicas: bool = True
    replicas: int | None = None
    """Ollamas that Corral would run here."""
    groups: bool = False
    """One of them has several GPUs."""
    host_cache_bytes: int | None = None
    """Memory for the prompt caches of one model on every replica, as planned."""
    layout_fault: str | None = None
    """Why no layout can be made."""


@dataclass(frozen=True, slots=True)
class DoctorFacts:
    """The whole of it."""

    wanted: Wanted = Wanted()
    layout: Facts = field(default_factory=Facts)
    gpus_known: bool = True
    """The drivers were asked, and answered."""
    drivers_hang: bool = False
    """They were asked, and did not answer in time."""
    samples: tuple[GpuSample, ...] = ()
    misses: tuple[GpuMiss, ...] = ()
    pci: PciGpus | None = None
    nvidia_module: str | None = None
    """Version of NVIDIA's kernel module, which a container sees too."""
    nvidia_devices: tuple[DeviceFile, ...] | None = None
    amd_devices: tuple[DeviceFile, ...] | None = None
    gpu_users: tuple[GpuUser, ...] | None = None
    container: str | None = None
    """What kind this runs in; None: not known; empty: none."""
    wsl: bool | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    """The variables that matter to GPUs and Ollamas, and no others."""
    program: Program | None = None
    other_ollamas: tuple[OtherOllama, ...] | None = None
    ports: tuple[Port, ...] | None = None
    store: Folder | None = None
    store_files: StoreFiles | None = None
    state: Folder | None = None
    memory: Memory | None = None
    limits: Limits | None = None
    software: Software | None = None
    numa_nodes: int | None = None
    numa_balancing: bool | None = None
    missing: tuple[str, ...] = ()
    """What could not be gathered, with the reason."""

    @property
    def nvidia_expected(self) -> bool:
        """Something here says that there is an NVIDIA GPU, or its driver."""
        return bool(self.nvidia_module or self.nvidia_devices or (self.pci and self.pci.nvidia))
