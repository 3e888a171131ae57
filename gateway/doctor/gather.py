"""Gathers the doctor's facts. Nothing here raises or hangs: what fails or takes too long is left out and noted."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from corral.errors import ConfigError
from corral.gateway.config import Config
from corral.gateway.config.sources import Sources
from corral.gateway.doctor import addresses, disks, drivers, host, running
from corral.gateway.doctor.facts import DoctorFacts, Memory, Program, Wanted
from corral.gateway.doctor.parts import Part
from corral.gateway.layout.choose import make_plan
from corral.gateway.layout.facts import no_proxy
from corral.gateway.layout.free import free_bytes
from corral.gateway.layout.plan import Facts, OllamaProgram, Plan
from corral.gateway.layout.program import find_program
from corral.gateway.layout.store import find_store, stored_models
from corral.gateway.run.ledger import default_state_dir
from corral.model import GpuMiss, GpuSample, GpuSurvey
from corral.probes.gpu import NVML_LIBRARY

PART_S: Final = 5.0
"""For each part; all but a few run at the same time."""
DRIVERS_S: Final = drivers.SURVEY_S + 1
"""More than is given to the drivers themselves: the library has to be loaded too."""
PROGRAM_S: Final = 5.0
VARIABLES: Final = (
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
)
MIB: Final = 1 << 20


def gather(path: Path | None, environ: Mapping[str, str], root: Path = Path("/")) -> DoctorFacts:
    """``path``: the configuration; None: defaults. ``root``: where ``/proc``, ``/sys`` and ``/dev`` lie."""
    asked = Part("configuration", lambda: _configuration(path, environ), PART_S)
    source = None if path is None else str(path)
    config, wanted = asked.result() or (Config(), Wanted(source, fault=asked.fault))
    sought = Part("place of the store", lambda: find_store(config.ollama.models, environ), PART_S)
    store = sought.result()
    parts = {name: Part(what, work, PART_S) for name, (what, work) in _works(config, environ, root, store).items()}
    program = Part("ollama", lambda: _program(config.ollama.binary, environ), PROGRAM_S + 1)
    models = Part("models", lambda: () if store is None else stored_models(store), PART_S)
    gpus = Part("GPUs", lambda: drivers.look(environ.get(NVML_LIBRARY)), DRIVERS_S)
    survey, samples, misses = _read(gpus.result())
    users = Part("programs on the GPUs", lambda: running.gpu_users(root, samples), PART_S)
    named = program.result() or (None, None)
    memory = parts["memory"].result()
    layout = Facts(
        survey=survey,
        program=named[1],
        ram_bytes=memory.total_bytes if isinstance(memory, Memory) else None,
        store=None if store is None else str(store),
        models=models.result() or (),
        free_bytes=free_bytes(samples, running.own_pids(users.result() or ())),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        no_proxy=no_proxy(environ),
        visible={name: environ[name] for name in VARIABLES if name in environ},
    )
    plan = Part("layout", lambda: _planned(config, layout, wanted), PART_S)
    found = DoctorFacts(
        wanted=plan.result() or wanted,
        layout=layout,
        gpus_known=gpus.fault is None,
        drivers_hang=gpus.is_late,
        samples=samples,
        misses=misses,
        gpu_users=users.result(),
        environ={name: environ[name] for name in VARIABLES if name in environ},
        program=named[0],
    )
    others: dict[str, Any] = {name: part.result() for name, part in parts.items()}
    everything: list[Part[Any]] = [sought, gpus, program, models, users, plan, *parts.values()]
    missing = tuple(part.fault for part in everything if part.fault)
    return dataclasses.replace(found, missing=missing, **others)


def _works(
    config: Config, environ: Mapping[str, str], root: Path, store: Path | None
) -> dict[str, tuple[str, Callable[[], object]]]:
    """By the fact it gives: what is looked at, in words, and how. None of it needs another."""
    state = config.state_dir or default_state_dir(environ)
    known_ports = addresses.local_ports(config)
    works: dict[str, tuple[str, Callable[[], object]]] = {
        "pci": ("PCI bus", lambda: host.pci_gpus(root)),
        "nvidia_module": ("kernel module of NVIDIA", lambda: host.nvidia_module(root)),
        "nvidia_devices": ("/dev/nvidia*", lambda: host.nvidia_devices(root)),
        "amd_devices": ("/dev/kfd", lambda: host.amd_devices(root)),
        "container": ("container", lambda: host.container(root, environ)),
        "wsl": ("kernel release", lambda: host.is_wsl(root)),
        "other_ollamas": ("processes", lambda: running.other_ollamas(root, known_ports)),
        "ports": ("ports", lambda: addresses.ports(config)),
        "state": ("state folder", lambda: disks.folder(state)),
        "memory": ("memory", lambda: host.memory(root)),
        "limits": ("limits", lambda: host.limits(root, os.geteuid() == 0)),
        "software": ("Python", host.software),
        "numa_nodes": ("NUMA nodes", lambda: host.numa_nodes(root)),
        "numa_balancing": ("NUMA balancing", lambda: host.numa_balancing(root)),
    }
    if store is not None:
        works["store"] = ("store", lambda: disks.folder(store, disks.STORE_PARTS))
        works["store_files"] = ("files of the store", lambda: disks.store_files(store))
    return works


def _configuration(path: Path | None, environ: Mapping[str, str]) -> tuple[Config, Wanted]:
    source = None if path is None else str(path)
    try:
        config = Sources(path, environ).settle().config
    except ConfigError as error:
        head, *problems = (line.strip() for line in str(error).splitlines())
        return Config(), Wanted(source, fault=f"{head}, the first: {problems[0]}" if problems else head)
    return config, Wanted(source, owns_replicas=config.owns_replicas)


def _program(wanted: str, environ: Mapping[str, str]) -> tuple[Program, OllamaProgram | None]:
    found = find_program(wanted, environ, PROGRAM_S)
    if found is not None:
        return Program(wanted, found.path), found
    there = shutil.which(wanted, os.F_OK, environ.get("PATH", os.defpath))
    return Program(wanted, there, executable=False), None


def _read(known: drivers.Drivers | None) -> tuple[GpuSurvey, tuple[GpuSample, ...], tuple[GpuMiss, ...]]:
    if known is None:
        return GpuSurvey(), (), ()
    readings = known.read()
    samples = tuple(reading for reading in readings if isinstance(reading, GpuSample))
    return known.survey, samples, tuple(reading for reading in readings if isinstance(reading, GpuMiss))


def _planned(config: Config, layout: Facts, wanted: Wanted) -> Wanted:
    try:
        plan = make_plan(config, layout)
    except ConfigError as error:
        return dataclasses.replace(wanted, layout_fault=str(error).splitlines()[0])
    return dataclasses.replace(
        wanted,
        replicas=len(plan.replicas),
        groups=any(len(replica.gpus) > 1 for replica in plan.replicas),
        host_cache_bytes=_host_cache_bytes(plan),
    )


def _host_cache_bytes(plan: Plan) -> int | None:
    sizes = [replica.env.get("LLAMA_ARG_CACHE_RAM", "") for replica in plan.replicas]
    return sum(map(int, sizes)) * MIB if all(size.isdecimal() for size in sizes) else None
