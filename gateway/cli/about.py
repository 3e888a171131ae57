"""What ``corral info`` tells: versions, paths, ports and variables. Secrets are masked; nothing is changed."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import corral
from corral.errors import ConfigError, OperatorError
from corral.gateway.cli.admin_client import ask
from corral.gateway.config import Config
from corral.gateway.config.environment import VARIABLES
from corral.gateway.config.known_variables import CLIENTS_ONLY, GONE, OURS, PASSED_ON
from corral.gateway.config.masking import MASK, masked
from corral.gateway.config.sources import Settled, Sources
from corral.gateway.doctor import drivers, host
from corral.gateway.doctor.parts import Part
from corral.gateway.layout.program import find_program
from corral.gateway.layout.store import find_store
from corral.gateway.run.ledger import default_state_dir
from corral.probes.gpu import NVML_LIBRARY

SCHEMA: Final = 1
"""Grows when a key goes or changes its meaning."""
MACHINE: Final = (
    *("HOME", "XDG_STATE_HOME", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
    *("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "NO_COLOR"),
)
_PROXY_USER: Final = re.compile(r"^[^/\s]+(?=@)")
_OLLAMA_S: Final = 5.0
_PART_S: Final = 3.0
_EXTRAS: Final = ("top", "otel", "discovery", "engine", "bench")
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)[^;]*(?:;.*extra *== *[\"']([a-z]+)[\"'])?")


def about(path: Path | None, named_by: str, admin: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """``path``: the configuration, and ``named_by`` what named it; ``admin``: where a gateway may run. Nothing raises
    or hangs: what cannot be found out is None."""
    gpus = Part("GPUs", lambda: drivers.look(environ.get(NVML_LIBRARY)).survey, drivers.SURVEY_S + 1)
    container = Part("container", lambda: host.container(Path("/"), environ), _PART_S)
    settled, problem = _settled(path, environ)
    config = Config() if settled is None else settled.config
    binary = config.ollama.binary
    program = Part("ollama", lambda: find_program(binary, environ, _OLLAMA_S), _OLLAMA_S + 1)
    store = Part("store", lambda: find_store(config.ollama.models, environ), _PART_S)
    found, survey = program.result(), gpus.result()
    return {
        "schema": SCHEMA,
        "corral": _corral(container.result()),
        "libraries": _libraries(),
        "extras": _extras(),
        "ollama": {
            "program": None if found is None else found.path,
            "version": None if found is None else found.version,
            "models": _text(store.result()),
        },
        "gpus": {
            "driver": None if survey is None else survey.driver_version,
            "cuda": None if survey is None else survey.cuda_version,
            "found": None if survey is None else [gpu.name for gpu in survey.gpus],
            "problems": [gpus.fault] if survey is None else list(survey.problems),
        },
        "configuration": _configuration(path, named_by, settled, problem),
        "state": _state(config, environ),
        "gateway": _gateway(admin),
        "environment": _environment(environ),
    }


def _text(path: object) -> str | None:
    return None if path is None else str(path)


def _settled(path: Path | None, environ: Mapping[str, str]) -> tuple[Settled | None, str | None]:
    try:
        return Sources(path, environ).settle(), None
    except ConfigError as error:
        return None, str(masked("problem", " ".join(line.strip() for line in str(error).splitlines())))


def _corral(container: str | None) -> dict[str, Any]:
    return {
        "version": corral.__version__,
        "folder": str(Path(corral.__file__).parent),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "system": platform.platform(),
        "container": container,
        "user_id": os.geteuid(),
    }


def _libraries() -> dict[str, str | None]:
    return {name: _version(name) for name in sorted(_requirements().get("", ()), key=str.lower)}


def _extras() -> dict[str, dict[str, str | None]]:
    """By extra: its libraries and their versions; None: it is not installed."""
    wanted = _requirements()
    return {extra: {name: _version(name) for name in wanted[extra]} for extra in _EXTRAS if extra in wanted}


def _requirements() -> dict[str, list[str]]:
    """By extra, the core's under the empty name."""
    try:
        lines = metadata.requires("corral") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        parts = _REQUIREMENT.match(line)
        if parts is not None:
            found.setdefault(parts[2] or "", []).append(parts[1])
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _configuration(path: Path | None, named_by: str, settled: Settled | None, problem: str | None) -> dict[str, Any]:
    said: dict[str, Any] = {
        "file": None if path is None else str(path.absolute()),
        "named_by": named_by,
        "problem": problem,
    }
    if settled is None:
        return said
    config = settled.config
    return said | {
        "listen": str(config.listen),
        "admin_listen": str(config.admin_listen),
        "policy": config.policy.name,
        "replicas": None if config.owns_replicas else [f"{each.id} {each.url}" for each in config.replicas],
        "first_port": config.ollama.first_port if config.owns_replicas else None,
    }


def _state(config: Config, environ: Mapping[str, str]) -> dict[str, Any]:
    folder = config.state_dir or default_state_dir(environ)
    return {"folder": str(folder), "exists": os.path.isdir(folder), "logs": str(folder / "logs")}


def _gateway(admin: str) -> dict[str, Any]:
    said: dict[str, Any] = {"admin": masked("admin", admin), "version": None, "ready": None, "reason": None}
    try:
        page = ask(admin, "GET", "/snapshot")
    except OperatorError as error:
        return said | {"reason": str(masked("reason", str(error).splitlines()[0]))}
    return said | {key: page.get(key) for key in ("version", "ready", "reason")}


def _environment(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Those that Corral reads, whether set or not, and those that concern Ollama, where they are set."""
    read = (*OURS, *(variable.name for variable in VARIABLES), *MACHINE)
    others = [*PASSED_ON, *CLIENTS_ONLY, *GONE]
    others += [name for name in sorted(environ) if name.startswith(("OLLAMA_", "CORRAL_", "OTEL_"))]
    names = dict.fromkeys([*read, *(name for name in others if name in environ)])
    return {name: _shown(name, environ.get(name)) for name in names}


def _shown(name: str, value: str | None) -> str | None:
    if value is not None and "HEADERS" in name:  # as OpenTelemetry's, which carry keys
        return MASK
    if value is not None and name.endswith("_PROXY"):  # which may come without http://
        value = _PROXY_USER.sub(MASK, value)
    return None if value is None else str(masked(name, value))
