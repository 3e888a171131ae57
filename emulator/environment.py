"""What Ollama's environment variables ask of the emulator that stands in for ``ollama serve``.

Beside Ollama's own variables it reads ``CORRAL_STANDIN_NVML`` (the machine with its GPUs), ``EMULATED_MODELS`` (a
comma list of models, ``NAME`` or ``NAME=SIZE_GB``), ``EMULATED_SPEED``, ``EMULATED_OLLAMA_VERSION`` and
``EMULATED_OPTIONS`` (further options of ``corral emulate``).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from corral.emulator.cloud import account_at
from corral.emulator.command import emulate
from corral.emulator.launch import settings_from
from corral.emulator.nvml.state import VARIABLE
from corral.emulator.settings import Settings
from corral.emulator.variables import address, is_on, value, version
from corral.emulator.visible import VisibleGpu, together, visible_gpus

_NUMBERS: Final = (
    ("OLLAMA_NUM_PARALLEL", "--parallel"),
    ("OLLAMA_CONTEXT_LENGTH", "--context-length"),
    ("OLLAMA_MAX_QUEUE", "--max-queue"),
)
_FLAGS: Final = (("OLLAMA_NOPRUNE", "--noprune"), ("OLLAMA_NO_CLOUD", "--no-cloud"))
_LOADED_PER_GPU: Final = 3


@dataclass(frozen=True, slots=True)
class Started:
    """An Ollama as its environment has it."""

    settings: Settings
    gpus: tuple[VisibleGpu, ...]
    """Empty: it runs on the CPU."""


def started_with(environment: Mapping[str, str]) -> Started:
    """Raises :class:`OperatorError` for what ``corral emulate`` would refuse."""
    host, port = address(environment)
    own = ["--listen", f"{host}:{port}", "--ollama-version", version(environment), "--runner-process"]
    own += ["--account", account_at(Path(environment.get("HOME", "/")))]
    line = own + _options(environment) + shlex.split(environment.get("EMULATED_OPTIONS", ""))
    settings = settings_from(emulate.make_context("ollama", line).params)
    machine = value(environment, VARIABLE)
    if machine is None:
        return Started(settings, ())
    gpus = tuple(visible_gpus(Path(machine), environment.get("CUDA_VISIBLE_DEVICES")))
    files = tuple(Path(machine) / f"{gpu.name}.live" for gpu in gpus)
    loaded = _number(environment, "OLLAMA_MAX_LOADED_MODELS") or _LOADED_PER_GPU * max(1, len(gpus))
    return Started(replace(settings, gpu=together(gpus), gpu_files=files, max_loaded=loaded), gpus)


def _options(environment: Mapping[str, str]) -> list[str]:
    options = [word for model in _models(environment) for word in ("--model", model)]
    for name, option in _NUMBERS:
        number = _number(environment, name)
        if number is not None:
            options += [option, str(number)]
    for name, option in (("OLLAMA_MODELS", "--store"), ("EMULATED_SPEED", "--speed")):
        text = value(environment, name)
        if text is not None:
            options += [option, text]
    options += [option for name, option in _FLAGS if is_on(environment, name)]
    keep_alive = value(environment, "OLLAMA_KEEP_ALIVE")
    return options if keep_alive is None else [*options, "--keep-alive", keep_alive]


def _models(environment: Mapping[str, str]) -> list[str]:
    return [model.strip() for model in (value(environment, "EMULATED_MODELS") or "").split(",") if model.strip()]


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """Above zero: Ollama takes 0 and what is no number for its default."""
    text = value(environment, name) or ""
    return int(text) if text.isdigit() and int(text) > 0 else None
