"""Facts of the machine from ``/proc``, ``/sys`` and ``/dev``. ``root`` is where those lie."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from corral.gateway.doctor.facts import DeviceFile, Limits, Memory, PciGpus, Software
from corral.gateway.layout.facts import ram_bytes

_NVIDIA, _AMD = "0x10de", "0x1002"
_DISPLAY, _ACCELERATOR = "0x03", "0x12"
_MODULE: Final = re.compile(r"Kernel Module(?: +for \S+)? +(\d[\d.]*)")
_CONTAINERS: Final = ("docker", "kubepods", "containerd", "libpod", "lxc")


def pci_gpus(root: Path) -> PciGpus:
    """Raises OSError where the kernel does not say what buses there are."""
    counts = {_NVIDIA: 0, _AMD: 0}
    devices = root / "sys/bus/pci/devices"
    has_pci = any(bus.name == "pci" for bus in (root / "sys/bus").iterdir())
    for device in devices.iterdir() if has_pci else ():
        vendor, kind = _read(device / "vendor"), _read(device / "class") or ""
        if vendor in counts and (kind.startswith(_DISPLAY) or (vendor == _AMD and kind.startswith(_ACCELERATOR))):
            counts[vendor] += 1
    return PciGpus(nvidia=counts[_NVIDIA], amd=counts[_AMD])


def nvidia_module(root: Path) -> str | None:
    """The version of the kernel module, as the kernel that all containers share tells it."""
    match = _MODULE.search(_read(root / "proc/driver/nvidia/version") or "")
    return match[1] if match else _read(root / "sys/module/nvidia/version")


def nvidia_devices(root: Path) -> tuple[DeviceFile, ...]:
    names = sorted((root / "dev").glob("nvidia[0-9]*"))
    return tuple(
        _device(root, path) for path in [*names, root / "dev/nvidiactl", root / "dev/nvidia-uvm"] if path.exists()
    )


def amd_devices(root: Path) -> tuple[DeviceFile, ...]:
    nodes = sorted((root / "dev/dri").glob("renderD*"))
    ours = [node for node in nodes if _read(root / "sys/class/drm" / node.name / "device/vendor") == _AMD]
    return tuple(_device(root, path) for path in [root / "dev/kfd", *ours] if path.exists())


def _device(root: Path, path: Path) -> DeviceFile:
    return DeviceFile(f"/{path.relative_to(root)}", os.access(path, os.R_OK | os.W_OK))


def container(root: Path, environ: Mapping[str, str]) -> str:
    """What kind of container this is; empty: none that shows itself."""
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return "Kubernetes"
    if (root / ".dockerenv").exists():
        return "Docker"
    if (root / "run/.containerenv").exists():
        return "Podman"
    if environ.get("container"):
        return environ["container"]
    groups = _read(root / "proc/1/cgroup") or ""
    return next((name for name in _CONTAINERS if name in groups), "")


def is_wsl(root: Path) -> bool:
    return "microsoft" in (root / "proc/sys/kernel/osrelease").read_text().lower()


def memory(root: Path) -> Memory:
    lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    table = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    total, available = ram_bytes(root), table.get("MemAvailable")
    if total is not None and available is not None:
        available = min(available, total)
    return Memory(total, available, table.get("SwapTotal"))


def limits(root: Path, is_root: bool) -> Limits:
    """``is_root``: to root the limit of processes does not apply."""
    files, processes = resource.getrlimit(resource.RLIMIT_NOFILE)[1], resource.getrlimit(resource.RLIMIT_NPROC)[0]
    room = []
    for path in _groups(root):
        most, now = _read(path / "pids.max") or "", _read(path / "pids.current") or ""
        if most.isdigit() and now.isdigit():
            room.append(max(0, int(most) - int(now)))
    return Limits(
        known=True,
        open_files=None if files == resource.RLIM_INFINITY else files,
        processes=None if is_root or processes == resource.RLIM_INFINITY else processes,
        tasks=min(room, default=None),
    )


def _groups(root: Path) -> Iterator[Path]:
    """This process's control group and those around it: each may limit the number of threads."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, inside = (*line.split(":", 2), "", "")[:3]
        if controllers and "pids" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("pids" if controllers else "")
        parts = [part for part in inside.split("/") if part not in ("", "..")]
        yield from (top.joinpath(*parts[:count]) for count in range(len(parts) + 1))


def numa_nodes(root: Path) -> int | None:
    """None: the kernel knows no nodes."""
    return sum(1 for _ in (root / "sys/devices/system/node").glob("node[0-9]*")) or None


def numa_balancing(root: Path) -> bool | None:
    """Whether the kernel moves memory after the threads that use it; None: it cannot."""
    text = _read(root / "proc/sys/kernel/numa_balancing")
    return None if text is None else text != "0"


def software() -> Software:
    try:
        importlib.import_module("uvloop")
        uvloop = importlib.metadata.version("uvloop")
    except ImportError:  # a package that is not there is one too
        return Software(sys.version_info[:3], None)
    return Software(sys.version_info[:3], uvloop)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
