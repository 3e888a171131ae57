"""GPU names of a configuration (index or UUID) to the GPUs of this machine, or an error that says what there is."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from corral.errors import ConfigError
from corral.gateway.layout.machine import Machine
from corral.model import Gpu, GpuSurvey

_LEAST_PREFIX = 8
"""Letters of a UUID that are enough where only one begins so, as for CUDA itself."""


def gpu_uuids(names: Iterable[str], survey: GpuSurvey, key: str = "gpus") -> tuple[str, ...]:
    """The UUIDs of the GPUs that ``key`` names by index or UUID. Raises :class:`ConfigError`."""
    machine = Machine(survey)
    return tuple(find_gpu(name, machine, key).uuid for name in names)


def find_gpu(name: str, machine: Machine, key: str) -> Gpu:
    """Raises :class:`ConfigError` for one that is not there, or that the name does not tell from another."""
    found = _matches(name, machine)
    if len(found) == 1:
        return found[0]
    if found:
        which = " or ".join(f"{gpu.name} ({gpu.uuid})" for gpu in found)
        raise ConfigError(f"{key}: GPU {name} may be {which}; name it by its UUID")
    raise ConfigError(f"{key}: there is no GPU {name} on this machine; {_known(name, machine)}")


def find_runnable(name: str, machine: Machine, key: str) -> Gpu:
    """As :func:`find_gpu`, and refuses a GPU that is split into MIG devices: by itself it runs nothing."""
    gpu = find_gpu(name, machine, key)
    if gpu.is_split:
        parts = ", ".join(part.uuid for part in machine.parts(gpu))
        what = f"name its devices instead: {parts}" if parts else "it has no MIG device: make one, or switch MIG off"
        raise ConfigError(f"{key}: GPU {name} is split by MIG and runs nothing by itself; {what}")
    return gpu


def _matches(name: str, machine: Machine) -> list[Gpu]:
    if name.isdecimal():
        return [gpu for gpu in machine.gpus if gpu.parent_uuid is None and gpu.index == int(name)]
    wanted = name.lower()
    exact = [gpu for gpu in machine.gpus if gpu.uuid.lower() == wanted]
    if exact or len(wanted) < _LEAST_PREFIX:
        return exact
    return [gpu for gpu in machine.gpus if gpu.uuid.lower().startswith(wanted)]


def _known(name: str, machine: Machine) -> str:
    if not machine.gpus:
        problems = "".join(f"; {problem}" for problem in machine.survey.problems)
        return f"none was found{problems}"
    nearest = get_close_matches(name, [gpu.uuid for gpu in machine.gpus], n=1) if not name.isdecimal() else []
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    listed = ", ".join(f"{_index(gpu)}{gpu.uuid} ({gpu.name})" for gpu in machine.gpus)
    return f"{hint}known: {listed}"


def _index(gpu: Gpu) -> str:
    return f"{gpu.index} " if gpu.parent_uuid is None and gpu.uuid != str(gpu.index) else ""
