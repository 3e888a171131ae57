"""Checks of everything around GPUs and Ollama: memory, limits, folders, containers, and Corral's own footing."""

from __future__ import annotations

from typing import Final

from corral.gateway.doctor.facts import DoctorFacts
from corral.gateway.doctor.naming import GIB, size
from corral.gateway.doctor.verdict import Check, Finding, Level, check_of
from corral.gateway.layout.version import parts, takes_llama_args

STREAMS: Final = 512
"""What a busy gateway should be able to carry at once."""
FILES_PER_STREAM: Final = 2
OTHER_FILES: Final = 128
FEW_TASKS: Final = 512
"""Less than this, and the threads of a few Ollamas (one per CPU and model, and more) do not fit."""
NO_STATE_BYTES: Final = GIB // 4
CACHE_SHARE: Final = 0.5
OLDEST_PYTHON: Final = (3, 11)
OLDEST_UVLOOP: Final = (0, 21)


def configuration(facts: DoctorFacts) -> Check:
    """The configuration can be used."""
    wanted = facts.wanted
    source = wanted.source or "defaults (no file)"
    if wanted.fault:
        return Check(
            "configuration",
            Level.PROBLEM,
            f"{wanted.fault}; what follows is said of the defaults",
            f"`corral check-config {wanted.source or 'FILE'}` says all of it",
        )
    if wanted.layout_fault:
        advice = "correct it; `corral plan` then shows what would run"
        return Check("configuration", Level.PROBLEM, f"{source}: {wanted.layout_fault}", advice)
    if not wanted.owns_replicas:
        return Check("configuration", Level.OK, f"{source}: Corral runs no Ollama of its own")
    return Check("configuration", Level.OK, source)


def container(facts: DoctorFacts) -> Check:
    """A container was given the GPUs of its host."""
    if facts.container is None:
        return Check("container", Level.OK, "whether this is one is not known")
    if not facts.container:
        return Check("container", Level.OK, "none")
    if any(gpu.vendor.value == "nvidia" for gpu in facts.layout.survey.gpus):
        return Check("container", Level.OK, f"{facts.container}, with GPUs of its host")
    if facts.nvidia_expected and facts.nvidia_devices is not None and not any(d.usable for d in facts.nvidia_devices):
        return Check(
            "container",
            Level.PROBLEM,
            f"{facts.container}, without the NVIDIA runtime: the host has a GPU, /dev/nvidia* is not here",
            "install nvidia-container-toolkit on the host and start the container with `--gpus all` "
            "(Compose: `deploy.resources.reservations.devices`; Podman: `--device nvidia.com/gpu=all`; "
            "Kubernetes: a limit on `nvidia.com/gpu`)",
        )
    return Check("container", Level.OK, facts.container)


def wsl(facts: DoctorFacts) -> Check | None:
    """What is different below Windows is said."""
    if not facts.wsl:
        return None
    return Check(
        "WSL",
        Level.OK,
        "Windows owns the GPUs: processes, clocks and persistence are not told, and the driver is updated in Windows",
    )


def prompt_caches(facts: DoctorFacts) -> Check | None:
    """The host memory that llama-server takes for prompt caches is there."""
    wanted = facts.wanted
    version = facts.layout.program.version if facts.layout.program else None
    if not wanted.owns_replicas or not takes_llama_args(version):
        return None
    total = _ram(facts)
    if wanted.layout_fault:
        return Check("prompt caches", Level.OK, "not known before the configuration is corrected")
    if wanted.host_cache_bytes is None or total is None:
        return Check("prompt caches", Level.WARNING, "whether the host's memory holds them is not known")
    text = (
        f"up to {size(wanted.host_cache_bytes)} of {size(total)} of host memory, one model on each replica "
        f"({wanted.replicas or 0})"
    )
    share = wanted.host_cache_bytes / total if total else 1.0
    if share <= CACHE_SHARE:
        return Check("prompt caches", Level.OK, text)
    level = Level.PROBLEM if share > 1 else Level.WARNING
    return Check(
        "prompt caches", level, text, "set `ollama.host_cache_bytes` lower; each further loaded model adds to it"
    )


def model_memory(facts: DoctorFacts) -> Check | None:
    """A model can be read through the host's memory."""
    memory = facts.memory
    if not facts.wanted.owns_replicas:
        return None
    total = _ram(facts)
    if total is None:
        return Check("memory", Level.OK, "not known")
    swap = "" if memory is None or memory.swap_bytes is None else f", {_swap(memory.swap_bytes)}"
    available = (
        "" if memory is None or memory.available_bytes is None else f", {size(memory.available_bytes)} available"
    )
    text = f"{size(total)}{available}{swap}"
    largest = max(facts.layout.models, key=lambda model: model.weights_bytes, default=None)
    if largest is not None and largest.weights_bytes > total:
        return Check(
            "memory",
            Level.WARNING,
            f"{text}: less than {largest.name} has weights ({size(largest.weights_bytes)})",
            "each load reads the disk again, and what does not fit the GPUs cannot run on the CPU; add memory",
        )
    return Check("memory", Level.OK, text)


def _swap(swap_bytes: int) -> str:
    return f"{size(swap_bytes)} swap" if swap_bytes else "no swap"


def _ram(facts: DoctorFacts) -> int | None:
    if facts.memory is not None and facts.memory.total_bytes is not None:
        return facts.memory.total_bytes
    return facts.layout.ram_bytes


def limits(facts: DoctorFacts) -> Check:
    """Enough files and threads may be open at once."""
    found = facts.limits
    if found is None or not found.known:
        return Check("limits", Level.OK, "not known")
    findings = []
    needed = STREAMS * FILES_PER_STREAM + OTHER_FILES
    if found.open_files is not None and found.open_files < needed:
        streams = max(0, found.open_files - OTHER_FILES) // FILES_PER_STREAM
        findings.append(
            Finding(
                Level.WARNING,
                f"{found.open_files} open files: about {streams} streams at once",
                "`ulimit -Hn 65536` (systemd: LimitNOFILE=65536; Docker: --ulimit nofile=65536)",
            )
        )
    for what, count, how in (
        ("processes and threads of this user", found.processes, "`ulimit -u unlimited` (systemd: LimitNPROC=infinity)"),
        ("threads left in this control group", found.tasks, "systemd: TasksMax=infinity; Docker: --pids-limit -1"),
    ):
        if count is not None and count < FEW_TASKS:
            findings.append(Finding(Level.WARNING, f"{count} {what}: few for several Ollamas", how))
    files = "no limit on open files" if found.open_files is None else f"{found.open_files} open files"
    return check_of("limits", findings, f"{files} (about {_streams(found.open_files)} streams at once)")


def _streams(open_files: int | None) -> str:
    return "any number of" if open_files is None else str((open_files - OTHER_FILES) // FILES_PER_STREAM)


def state(facts: DoctorFacts) -> Check:
    """Corral can note what it starts, and keep the logs of its Ollamas."""
    folder = facts.state
    if folder is None:
        return Check("state", Level.WARNING, "its folder is not known")
    if not facts.wanted.owns_replicas:
        return Check("state", Level.OK, "not needed here: Corral runs no Ollama of its own")
    if folder.writable is False:
        verb = "written" if folder.exists else "made"
        return Check(
            "state",
            Level.PROBLEM,
            f"{folder.path} may not be {verb}: after a crash Corral could not find the Ollamas it started",
            "set `state_dir` to a folder of this user's",
        )
    if folder.writable is None:
        return Check("state", Level.WARNING, f"whether {folder.path} may be written is not known")
    if folder.free_bytes is not None and folder.free_bytes < NO_STATE_BYTES:
        advice = "make room, or set `state_dir` to another disk"
        return Check("state", Level.WARNING, f"{folder.path}: only {size(folder.free_bytes)} free for logs", advice)
    return Check("state", Level.OK, folder.path)


def software(facts: DoctorFacts) -> Check:
    """Corral's own Python is new enough."""
    found = facts.software
    if found is None:
        return Check("Python", Level.WARNING, "not known")
    python = ".".join(map(str, found.python))
    findings = []
    if found.python[:2] < OLDEST_PYTHON:
        findings.append(
            Finding(Level.PROBLEM, f"{python}: Corral needs 3.11 or newer", "install Corral with a newer one")
        )
    uvloop = parts(found.uvloop)
    again = "install Corral again with pip, in an environment of its own"
    if found.uvloop is None:
        findings.append(Finding(Level.PROBLEM, f"{python}, but uvloop cannot be imported", again))
    elif uvloop is not None and uvloop < OLDEST_UVLOOP:
        findings.append(Finding(Level.PROBLEM, f"uvloop {found.uvloop}: Corral needs 0.21 or newer", again))
    return check_of("Python", findings, f"{python}, uvloop {found.uvloop}")


def numa(facts: DoctorFacts) -> Check | None:
    """Memory stays where Corral has bound it."""
    if facts.numa_nodes is None or facts.numa_nodes < 2:
        return None
    text = f"{facts.numa_nodes} nodes"
    if facts.numa_balancing:
        text += "; the kernel moves memory between them (kernel.numa_balancing=1), which costs a little"
    return Check("NUMA", Level.OK, text)


def gathering(facts: DoctorFacts) -> Check | None:
    """Everything could be looked at."""
    if not facts.missing:
        return None
    return Check("not looked at", Level.WARNING, "; ".join(facts.missing), "run it again; `--debug` shows more")
