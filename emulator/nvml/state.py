"""Writes the directory that the stand-in library reads: a machine with its GPUs, and what changes on it while it runs.

Each file is lines of ``key value``; ``standin.c`` says what they mean. Files are replaced whole, so that no reader
ever sees half of one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from corral.emulator.catalog import GpuSpec, calibration, gpu_named
from corral.emulator.nvml.boards import BOARDS

VARIABLE: Final = "CORRAL_STANDIN_NVML"
"""The environment variable that names the directory."""
LOST: Final = 15
XID_OFF_THE_BUS: Final = 79

Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class StandinMig:
    """A part of a GPU."""

    memory_bytes: int
    profile: str
    """For example ``3g.40gb``."""
    uuid: str | None = None


@dataclass(frozen=True, slots=True)
class StandinGpu:
    """One GPU of the machine."""

    model: str
    """A name of the emulator's catalog, for example ``RTX 4090 24GB``."""
    uuid: str | None = None
    """None: made up from its number and model."""
    numa: int | None = 0
    cpus: str | None = None
    """None: sixteen for each NUMA node."""
    migs: Sequence[StandinMig] = ()
    keys: Mapping[str, Value] = field(default_factory=dict)
    """Other values than the model's; None: it has no such sensor."""


@dataclass(frozen=True, slots=True)
class StandinLink:
    """What connects two GPUs, by number: nvlink, board, switch, switches, bridge, node or system."""

    a: int
    b: int
    kind: str
    lanes: int | None = None
    p2p: bool | None = None
    pcie: str | None = None
    """Of a pair with NVLink: how they would meet without it."""


Machine = tuple[tuple[StandinGpu, ...], tuple[StandinLink, ...]]


def write_machine(
    folder: Path,
    gpus: Sequence[StandinGpu],
    links: Sequence[StandinLink] = (),
    *,
    driver: str = "570.86.15",
    cuda: int = 12080,
) -> None:
    """Replace whatever machine ``folder`` described."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "machine", *folder.glob("gpu*"), folder / "links"):
        old.unlink(missing_ok=True)
    for number, gpu in enumerate(gpus):
        write_file(folder / f"gpu{number}", gpu_keys(number, gpu))
        for part, mig in enumerate(gpu.migs):
            write_file(folder / f"gpu{number}.mig{part}", _mig_keys(number, part, gpu, mig))
    _replace(folder / "links", "".join(f"{_link_line(link)}\n" for link in links))
    # last: before it is there the driver counts as not loaded
    write_file(folder / "machine", {"driver": driver, "cuda": cuda, "init_error": 0, "delay_us": 0})


def update(folder: Path, name: str, **values: Value) -> None:
    """Change values of ``machine``, ``gpu0``, ``gpu0.mig0`` …; None takes the key away."""
    path = folder / name
    write_file(path, read_file(path) | values)


def lose(folder: Path, number: int) -> None:
    """The GPU falls off the bus: the driver reports Xid 79, and every call on it fails."""
    report(folder, number, XID_OFF_THE_BUS)
    update(folder, f"gpu{number}", error=LOST)


def find(folder: Path, number: int) -> None:
    """The GPU is back."""
    update(folder, f"gpu{number}", error=None)


def report(folder: Path, number: int, xid: int) -> None:
    """The driver reports an error of the GPU."""
    name = f"gpu{number}"
    update(folder, name, xid=f"{read_file(folder / name).get('xid', '')} {xid}".strip())


def hang(folder: Path, number: int, *, hangs: bool = True) -> None:
    """Calls on the GPU do not return, until it hangs no more."""
    update(folder, f"gpu{number}", hang=int(hangs))


def uuid_of(folder: Path, name: str) -> str:
    return read_file(folder / name)["uuid"]


def read_file(path: Path) -> dict[str, str]:
    """What the file says; nothing where there is none."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {key: value for key, _, value in (line.partition(" ") for line in lines) if key}


def write_file(path: Path, values: Mapping[str, Value]) -> None:
    _replace(path, "".join(f"{key} {value}\n" for key, value in values.items() if value is not None))


def gpu_keys(number: int, gpu: StandinGpu) -> dict[str, Value]:
    """The lines of one GPU, idle."""
    spec, board = gpu_named(gpu.model), BOARDS[gpu_named(gpu.model).name]
    node = gpu.numa or 0
    keys: dict[str, Value] = {
        "name": board.name,
        "uuid": gpu.uuid or made_up_uuid("GPU", f"{number} {gpu.model}"),
        "pci_bus_id": f"00000000:{number + 1:02X}:00.0",
        "minor": number,
        "numa": gpu.numa,
        "cpus": gpu.cpus or f"{16 * node}-{16 * node + 15}",
        "capability": board.capability,
        "bus_width": board.bus_width_bits,
        "mem_clock_max": round(spec.bandwidth_bytes_s * 8 / board.bus_width_bits / 2 / 1e6),
        "max_sm_clock": board.max_sm_clock_mhz,
        "slowdown": board.slowdown_celsius,
        "shutdown": board.slowdown_celsius + 5,
        "persistence": 1,
        "mig_mode": int(bool(gpu.migs)) if board.capability in ("8.0", "9.0") else None,
    }
    if board.ecc:
        keys |= {"ecc_mode": 1, "ecc_errors": 0, "ecc_corrected": 0, "remapped": "0 0 0 0"}
    return keys | _idle(spec) | dict(gpu.keys)


def made_up_uuid(prefix: str, identity: str) -> str:
    """In NVIDIA's form, the same for the same identity."""
    digits = hashlib.sha256(identity.encode()).hexdigest()
    return f"{prefix}-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"


def _idle(spec: GpuSpec) -> dict[str, Value]:
    return {
        "memory_total": spec.vram_bytes,
        "memory_used": 0,
        "utilisation": 0,
        "temperature": round(calibration()["temperature"]["idle_C"]),
        "power_mw": round(spec.idle_watts * 1e3),
        "power_limit_mw": round(spec.tdp_watts * 1e3),
        "energy_mj": 0,
        "sm_clock": 210,
        "throttle": 1,
    }


def _mig_keys(number: int, part: int, gpu: StandinGpu, mig: StandinMig) -> dict[str, Value]:
    return {
        "name": f"{BOARDS[gpu_named(gpu.model).name].name} MIG {mig.profile}",
        "uuid": mig.uuid or made_up_uuid("MIG", f"{number} {part} {mig.profile}"),
        "memory_total": mig.memory_bytes,
        "memory_used": 0,
    }


def _link_line(link: StandinLink) -> str:
    lanes = "-" if link.lanes is None else str(link.lanes)
    p2p = "-" if link.p2p is None else str(int(link.p2p))
    return f"{link.a} {link.b} {link.kind} {lanes} {p2p} {link.pcie or '-'}"


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.write_text(text)
    new.replace(path)
