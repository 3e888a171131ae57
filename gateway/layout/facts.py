"""Gathers what a layout depends on: the program, the store and its models, the host's memory and CPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from corral.gateway.config.schema import Config
from corral.gateway.layout.plan import Facts
from corral.gateway.layout.program import find_program
from corral.gateway.layout.store import find_store, is_readable, stored_models
from corral.model import GpuSurvey

_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")
_VISIBLE: Final = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def gather(config: Config, survey: GpuSurvey, environ: Mapping[str, str]) -> Facts:
    """Reads files and runs ``ollama --version``: it may take seconds, so never call it on the event loop.

    How much of each GPU is free is not in it: see :mod:`corral.gateway.layout.free`.
    """
    store = find_store(config.ollama.models, environ)
    return Facts(
        survey=survey,
        program=find_program(config.ollama.binary, environ),
        ram_bytes=ram_bytes(),
        store=None if store is None else str(store),
        models=() if store is None else stored_models(store),
        store_is_readable=store is None or is_readable(store),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        no_proxy=no_proxy(environ),
        visible={name: environ[name] for name in _VISIBLE if name in environ},
    )


def no_proxy(environ: Mapping[str, str]) -> str | None:
    """``NO_PROXY`` with loopback in it where a proxy is set, else None: an Ollama calls itself on loopback."""
    lower = {name.lower(): value for name, value in environ.items()}
    if not any(lower.get(name) for name in _PROXIES):
        return None
    said = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
    hosts = [host.strip() for host in said.split(",") if host.strip()]
    return ",".join([*hosts, *(host for host in _LOOPBACK if host not in hosts)])


def ram_bytes(root: Path = Path("/")) -> int | None:
    """The host's memory, or what this process's control group may use of it where that is less."""
    known = [size for size in (_host_bytes(root), *_limits(root)) if size is not None]
    return min(known, default=None)


def _host_bytes(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _limits(root: Path) -> list[int | None]:
    """Of the group itself and of every group above it, for both versions of control groups."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        top, name = ("sys/fs/cgroup", "memory.max")
        if controllers:
            top, name = ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders = [root / top / Path(*parts[:depth]) for depth in range(len(parts) + 1)]
        found += [_limit(folder / name) for folder in folders]
    return found


def _limit(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() and int(text) < 1 << 60 else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
