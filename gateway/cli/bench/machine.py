"""What was measured, on what: without it no figure means anything."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from corral import __version__
from corral.errors import OperatorError
from corral.gateway.cli.bench.client import Target, is_loopback

EMULATED = "emulated: no GPU computed, the figures are a model's"
_SHOWN = 6


def this_machine() -> dict[str, str]:
    """Where the clients ran."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "CPU": f"{_cpu_name()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        "memory": f"{gib:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Corral": f"{__version__} (the clients), Python {platform.python_version()}",
    }


def gpus_here() -> str:
    """The GPUs of this machine; it may take a second."""
    from corral.gateway.doctor.drivers import look
    from corral.probes.gpu import NVML_LIBRARY

    survey = look(os.environ.get(NVML_LIBRARY)).survey
    names = [f"{gpu.name}" for gpu in survey.gpus if not gpu.is_split]
    counted = [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]  # noqa: RUF001
    driver = f", driver {survey.driver_version}" if survey.driver_version else ""
    return f"{', '.join(counted)}{driver}" if counted else "none found"


def with_gpus(facts: dict[str, str], targets: Iterable[Target]) -> dict[str, str]:
    return {**facts, "GPUs": gpus_here()} if all(is_loopback(target.url) for target in targets) else facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


async def about(target: Target) -> dict[str, Any]:
    """The version that it tells, and whether it is an emulator. Raises OperatorError where nothing answers."""
    version = str((await target.page("/api/version")).get("version", "?"))[:100]
    try:
        await target.page("/emulator/stats")
    except OperatorError:
        return {"url": target.url, "version": version, "emulated": False}
    return {"url": target.url, "version": version, "emulated": True}


async def a_model(targets: Sequence[Target]) -> str:
    """One that all have, rather one in memory. Raises OperatorError."""
    installed = [_names(await target.page("/api/tags")) for target in targets]
    loaded = _names(await targets[0].page("/api/ps"))
    common = [name for name in [*loaded, *installed[0]] if all(name in names for names in installed)]
    chatty = [name for name in common if not any(word in name for word in ("embed", "minilm", "bge-", ":cloud"))]
    if not chatty:
        places = " and ".join(target.url for target in targets)
        raise OperatorError(f"no model to ask is installed at {places}: pull one, or name one with --model")
    return chatty[0]


def _names(page: dict[str, Any]) -> list[str]:
    models = page.get("models")
    if not isinstance(models, list):
        return []
    return [str(model["name"]) for model in models if isinstance(model, dict) and isinstance(model.get("name"), str)]
