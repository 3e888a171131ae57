"""Which variables of the environment mean something to Ollama or to Corral, so that a slip of the pen is noticed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from corral.gateway.config.environment import VARIABLES

PASSED_ON: Final = (
    "OLLAMA_LOAD_TIMEOUT",
    "OLLAMA_FLASH_ATTENTION",
    "OLLAMA_KV_CACHE_TYPE",
    "OLLAMA_GPU_OVERHEAD",
    "OLLAMA_SCHED_SPREAD",
    "OLLAMA_LLM_LIBRARY",
    "OLLAMA_VULKAN",
    "OLLAMA_IGPU_ENABLE",
    "OLLAMA_GO_TEMPLATE",
    "OLLAMA_NOPRUNE",
    "OLLAMA_MAX_TRANSFER_STREAMS",
    "OLLAMA_DEBUG",
    "OLLAMA_DEBUG_LOG_REQUESTS",
    "OLLAMA_NO_CLOUD",
    "OLLAMA_REMOTES",
    "OLLAMA_CLOUD_BASE_URL",
    "OLLAMA_AUTH",
    "OLLAMA_EXPERIMENT",
    "OLLAMA_API_KEY",
)
"""What Ollama's server reads, and Corral does not."""
CLIENTS_ONLY: Final = ("OLLAMA_NOHISTORY", "OLLAMA_EDITOR")
GONE: Final = (
    "OLLAMA_MULTIUSER_CACHE",
    "OLLAMA_NEW_ENGINE",
    "OLLAMA_INTEL_GPU",
    "OLLAMA_MAX_VRAM",
    "OLLAMA_RUNNERS_DIR",
    "OLLAMA_TMPDIR",
)
"""Older Ollamas read them, so they may be meant for one."""
OURS: Final = ("CORRAL_CONFIG", "CORRAL_ADMIN", "CORRAL_NVML_LIBRARY", "CORRAL_CUDA_LIBRARY")
WITHIN: Final = ("CORRAL_REPLICA", "CORRAL_STANDIN_NVML")
"""Nobody sets these by hand."""

_SERVICE_LINK: Final = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_\w+)?)")
"""What Kubernetes sets in every pod for a Service that is called ``ollama`` or ``corral``."""


def unknown_variables(names: Iterable[str]) -> list[str]:
    """A sentence for each variable that begins like one of Ollama's or Corral's, and is none."""
    known = {*(variable.name for variable in VARIABLES), *PASSED_ON, *CLIENTS_ONLY, *GONE, *OURS, *WITHIN}
    strange = [name for name in names if name.startswith(("OLLAMA_", "CORRAL_")) and name not in known]
    return [_unknown(name, known) for name in sorted(strange) if not _SERVICE_LINK.fullmatch(name)]


def _unknown(name: str, known: Iterable[str]) -> str:
    alike = [each for each in sorted(known) if each.startswith(name[:7])]
    nearest = get_close_matches(name, alike, n=1, cutoff=0.8)
    whose = "Corral knows no such variable" if name.startswith("CORRAL_") else "neither Ollama nor Corral knows it"
    return f"{name} is set, but {whose}{f'; did you mean {nearest[0]}?' if nearest else ''}"
