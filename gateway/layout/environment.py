"""The environment of one replica's Ollama: what Corral sets, then what the file sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from corral.gateway.config.owned import Split
from corral.gateway.layout.estimate import MIB
from corral.model import Gpu, GpuVendor

DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Say which GPUs a process sees."""
HIDDEN = "-1"
"""No GPU has this index: as Ollama's own pages advise, it hides them all."""
FIT_TARGET_MIB = 1024
"""llama.cpp's own: what it leaves free on each GPU while it divides a model."""
HOST_CACHE_BYTES = 8 << 30
"""llama.cpp's own: the most each loaded model keeps of earlier prompts in the host's memory."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the environment of one replica depends on."""

    gpus: tuple[Gpu, ...]
    context_length: int
    slots: int
    keep_alive: str
    takes_llama_args: bool
    """llama.cpp's own variables reach the runner (Ollama 0.30 or newer)."""
    host_cache_bytes: int
    max_loaded: int | None = None
    """None: left to Ollama."""
    store: str | None = None
    reserve_bytes: int = 0
    shares: tuple[int, ...] = ()
    """How layers are divided over :attr:`gpus`; empty: left to Ollama."""
    split: Split | None = None
    no_proxy: str | None = None
    of_all: Mapping[str, str] = field(default_factory=dict)
    of_group: Mapping[str, str] = field(default_factory=dict)


def environment(setting: Setting) -> dict[str, str]:
    """Variables beside those the gateway itself has; the later win: Corral's, ``ollama.env``, the group's ``env``."""
    env = {
        **_devices(setting.gpus),
        "OLLAMA_VULKAN": "0",  # else the GPUs hidden above are found again through Vulkan
        "OLLAMA_NOPRUNE": "1",  # else replicas that share a store delete each other's downloads
        "OLLAMA_CONTEXT_LENGTH": str(setting.context_length),
        "OLLAMA_NUM_PARALLEL": str(setting.slots),
        "OLLAMA_KEEP_ALIVE": setting.keep_alive,
        **_memory(setting),
        **_division(setting),
    }
    if setting.max_loaded is not None:
        env["OLLAMA_MAX_LOADED_MODELS"] = str(setting.max_loaded)
    if setting.store is not None:
        env["OLLAMA_MODELS"] = setting.store
    if setting.no_proxy is not None:
        env |= {"NO_PROXY": setting.no_proxy, "no_proxy": setting.no_proxy}
    return env | dict(setting.of_all) | dict(setting.of_group)


def _devices(gpus: Sequence[Gpu]) -> dict[str, str]:
    """By UUID, because the driver's index need not be CUDA's; the other vendor's GPUs are hidden."""
    names = ",".join(gpu.uuid for gpu in gpus)
    if not gpus:
        env = {"CUDA_VISIBLE_DEVICES": HIDDEN, "ROCR_VISIBLE_DEVICES": HIDDEN}
    elif gpus[0].vendor is GpuVendor.NVIDIA:
        env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": names, "ROCR_VISIBLE_DEVICES": HIDDEN}
    else:
        # HIP obeys CUDA_VISIBLE_DEVICES too, unless its own variable is set: it counts within those that ROCR shows
        shown = ",".join(str(at) for at in range(len(gpus)))
        env = {"CUDA_VISIBLE_DEVICES": HIDDEN, "ROCR_VISIBLE_DEVICES": names, "HIP_VISIBLE_DEVICES": shown}
    if any(gpu.unified_memory for gpu in gpus):
        env["OLLAMA_IGPU_ENABLE"] = "1"
    return env


def _memory(setting: Setting) -> dict[str, str]:
    """What stays free on the GPUs, and how much of the host's memory old prompts may take."""
    if not setting.takes_llama_args:
        return {"OLLAMA_GPU_OVERHEAD": str(setting.reserve_bytes)} if setting.reserve_bytes and setting.gpus else {}
    env = {"LLAMA_ARG_CACHE_RAM": str(setting.host_cache_bytes // MIB)}
    if setting.reserve_bytes and setting.gpus:
        env["LLAMA_ARG_FIT_TARGET"] = str(max(FIT_TARGET_MIB, -(-setting.reserve_bytes // MIB)))
    return env


def _division(setting: Setting) -> dict[str, str]:
    """How a model is divided over several GPUs."""
    if len(setting.gpus) < 2:
        return {}
    env = {"OLLAMA_SCHED_SPREAD": "1"}
    if setting.takes_llama_args and setting.split is not None:
        env["LLAMA_ARG_SPLIT_MODE"] = setting.split
    if setting.takes_llama_args and setting.shares:
        env["LLAMA_ARG_TENSOR_SPLIT"] = ",".join(map(str, setting.shares))
    return env


def shares_of(free_bytes: Sequence[int]) -> tuple[int, ...]:
    """Whole MiB in proportion to the free memory; empty where all have the same within a twentieth."""
    shares = tuple(max(1, size // MIB) for size in free_bytes)
    return () if len(shares) < 2 or min(shares) >= 0.95 * max(shares) else shares
