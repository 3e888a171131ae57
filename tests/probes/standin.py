"""What the tests of GPU probes share: the stand-in library, compiled once, and a machine for it in a folder."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import pytest

from corral.emulator.nvml import state
from corral.emulator.nvml.build import build
from corral.model import GpuFault
from corral.probes.gpu import GpuReadError, GpuSource
from corral.probes.nvml import NvmlSource


@functools.cache
def library() -> str:
    """One for all tests of this process."""
    folder = tempfile.mkdtemp(prefix="corral-nvml-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(build(Path(folder)))


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, layout: state.Machine) -> Path:
    """Make the library stand in for that machine; the folder of its state."""
    monkeypatch.setenv(state.VARIABLE, str(folder))
    state.write_machine(folder, *layout)
    return folder


def source(folder: Path) -> NvmlSource:
    """A source that sees no real GPU's folders."""
    return NvmlSource(library(), sysfs=folder / "sys")


def uuids(folder: Path, count: int) -> list[str]:
    return [state.uuid_of(folder, f"gpu{number}") for number in range(count)]


def fault_of(source: GpuSource, uuid: str, at_s: float = 0.0) -> GpuFault:
    """How the reading of that GPU fails."""
    with pytest.raises(GpuReadError) as caught:
        source.read(uuid, at_s)
    return caught.value.fault
