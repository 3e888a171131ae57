"""Facts of processes that run: Ollamas that Corral did not start, and those that hold memory of GPUs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from corral.gateway.doctor.facts import GpuUser, OtherOllama
from corral.gateway.run.processes import MARKER
from corral.model import GpuSample

_DEEPEST: Final = 32
_OLLAMA_PORT: Final = 11434


@dataclass(frozen=True)
class Process:
    """One process, as far as this user may look into it."""

    folder: Path

    @property
    def pid(self) -> int:
        return int(self.folder.name)

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        raw = _bytes(self.folder / "cmdline") or b""
        return tuple(part.decode("utf-8", "replace") for part in raw.split(b"\0")[:-1])

    @cached_property
    def environ(self) -> dict[str, str] | None:
        """None: somebody else's."""
        if (raw := _bytes(self.folder / "environ")) is None:
            return None
        pairs = (part.decode("utf-8", "replace").partition("=") for part in raw.split(b"\0") if part)
        return {name: value for name, _, value in pairs}

    @cached_property
    def name(self) -> str | None:
        raw = _bytes(self.folder / "comm")
        return None if raw is None else raw.decode("utf-8", "replace").strip()

    @property
    def parent(self) -> Process | None:
        fields = (_bytes(self.folder / "stat") or b"").rpartition(b")")[2].split()
        parent = int(fields[1]) if len(fields) > 1 else 0
        return Process(self.folder.with_name(str(parent))) if parent > 1 else None

    @property
    def user(self) -> str | None:
        try:
            uid = self.folder.stat().st_uid
        except OSError:
            return None
        return user_name(uid)

    @property
    def service(self) -> str | None:
        """Its systemd unit, where that is a service of the system."""
        for line in (_bytes(self.folder / "cgroup") or b"").decode("utf-8", "replace").splitlines():
            path = line.rpartition(":")[2]
            if path.startswith("/system.slice/") and path.endswith(".service"):
                return path.rpartition("/")[2]
        return None

    @property
    def is_ollama_server(self) -> bool:
        return len(self.arguments) > 1 and Path(self.arguments[0]).name == "ollama" and self.arguments[1] in _SERVE

    @property
    def is_corral(self) -> bool:
        head = self.arguments[:3]
        return any(Path(word).name == "corral" for word in head[:2]) or head[1:3] == ("-m", "corral")

    @cached_property
    def is_corrals(self) -> bool:
        """A Corral started it, or what it is a child of."""
        process: Process | None = self
        for _ in range(_DEEPEST):
            if process is None:
                return False
            if process.is_corral or MARKER in (process.environ or ()):
                return True
            process = process.parent
        return False


_SERVE: Final = ("serve", "start")


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def processes(root: Path) -> Iterator[Process]:
    return (Process(root / "proc" / name) for name in os.listdir(root / "proc") if name.isdigit())


def other_ollamas(root: Path, known_ports: Collection[int]) -> tuple[OtherOllama, ...]:
    """``known_ports``: of Ollamas on this machine that the configuration lists."""
    found = [process for process in processes(root) if process.is_ollama_server and not process.is_corrals]
    return tuple(_other(process) for process in found if _port(process) not in known_ports)


def ollama_ports(root: Path) -> tuple[int, ...]:
    """Of the Ollamas on this machine that Corral did not start, where their ports are known."""
    found = (_port(process) for process in processes(root) if process.is_ollama_server and not process.is_corrals)
    return tuple(sorted({port for port in found if port is not None}))


def _other(process: Process) -> OtherOllama:
    environ = process.environ
    if environ is None:
        return OtherOllama(process.pid, process.user, process.service)
    home = environ.get("HOME")
    store = environ.get("OLLAMA_MODELS") or (f"{home}/.ollama/models" if home else None)
    keeps = environ.get("OLLAMA_NOPRUNE", "").strip().lower() not in ("", "0", "false")
    return OtherOllama(process.pid, process.user, process.service, store, keeps)


def _port(process: Process) -> int | None:
    """Where it listens, by its environment; None: not known."""
    if process.environ is None:
        return None
    tail = process.environ.get("OLLAMA_HOST", "").rstrip("/").rpartition(":")[2]
    return int(tail) if tail.isdigit() else _OLLAMA_PORT


def gpu_users(root: Path, samples: Iterable[GpuSample]) -> tuple[GpuUser, ...] | None:
    """None: no GPU tells who uses it."""
    told = [sample for sample in samples if sample.processes is not None]
    if not told:
        return None
    users = []
    for sample in told:
        for user in sample.processes or ():
            process = Process(root / "proc" / str(user.pid))
            users.append(GpuUser(user.pid, sample.uuid, user.memory_bytes, process.name, process.is_corrals))
    return tuple(users)


def own_pids(users: Iterable[GpuUser]) -> frozenset[int]:
    """Of those that a Corral started."""
    return frozenset(user.pid for user in users if user.is_corrals)


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
