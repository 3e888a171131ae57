"""Checks of the GPUs and their drivers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from corral.gateway.doctor.facts import DoctorFacts
from corral.gateway.doctor.naming import index_of, listed, named, nvidia_gpus
from corral.gateway.doctor.verdict import Check, Finding, Level, check_of
from corral.gateway.layout.version import LLAMA_SERVER, parts
from corral.model import Gpu, GpuVendor, LinkKind

OLDEST_DRIVER: Final = 525
"""CUDA 12, without which no Ollama since 0.7 uses an NVIDIA GPU, begins here on Linux."""
WANTED_DRIVER: Final = 550
"""What Ollama's hardware page asks for."""
OLD_GPU_DRIVER: Final = 570
"""The same for compute capability 5.0 to 6.2."""
OLDEST_CAPABILITY: Final = (5, 0)
OLD_CAPABILITY: Final = (6, 2)

HANGS: Final = "does not answer"
"""Part of what a survey says of a driver that does not return."""
REVIVE: Final = "`dmesg | grep -iE 'xid|nvrm|amdgpu'` may say why; a reboot usually ends it"
UPDATE_DRIVER: Final = "update the NVIDIA driver with your distribution's package manager, then reboot"


def gpus(facts: DoctorFacts) -> Check:
    """GPUs were found, and every one of them can be read."""
    if facts.drivers_hang:
        return Check(
            "GPUs",
            Level.PROBLEM,
            "a GPU driver does not answer: it hangs",
            REVIVE,
        )
    if not facts.gpus_known:
        return Check("GPUs", Level.WARNING, "not known")
    found = facts.layout.survey.gpus
    if not found:
        return _no_gpu(facts)
    findings = [
        Finding(
            Level.PROBLEM,
            f"{named(facts, miss.uuid)} cannot be read: {miss.reason}",
            "`dmesg | grep -i xid` may say why; `sudo nvidia-smi -i INDEX --gpu-reset` or a reboot may mend it",
        )
        for miss in facts.misses
    ]
    if nvidia_gpus(facts) or not facts.nvidia_expected:  # else the check of NVML says them
        findings += [Finding(Level.PROBLEM, problem.rstrip(".")) for problem in facts.layout.survey.problems]
    return check_of("GPUs", findings, _kinds(gpu for gpu in found if gpu.parent_uuid is None))


def _no_gpu(facts: DoctorFacts) -> Check:
    if facts.pci is None and not facts.nvidia_expected:
        return Check("GPUs", Level.WARNING, "none answered; whether one is built in is not known")
    nvidia, amd = (facts.pci.nvidia, facts.pci.amd) if facts.pci else (0, 0)
    if facts.nvidia_expected:
        why = f"though the PCI bus lists {nvidia} of NVIDIA" if nvidia else "though NVIDIA's driver is here"
        return Check("GPUs", Level.PROBLEM, f"none usable, {why}", "the checks below say why")
    if amd:  # often the small one inside a processor, which nobody wants to run models on
        found = f"none usable, though the PCI bus lists {amd} of AMD"
        return Check("GPUs", Level.WARNING, found, "if it is to run models, install AMD's ROCm driver (amdgpu-install)")
    said = [
        Finding(
            Level.PROBLEM if HANGS in problem else Level.WARNING,
            problem.rstrip("."),
            REVIVE if HANGS in problem else None,
        )
        for problem in facts.layout.survey.problems
    ]
    return check_of("GPUs", said, "none in this machine: models would run on the CPU")


def nvml(facts: DoctorFacts) -> Check | None:
    """NVIDIA's library answers, where there is reason to expect an NVIDIA GPU."""
    if nvidia_gpus(facts):
        return Check("NVML", Level.OK, "reachable")
    if not facts.nvidia_expected or not facts.gpus_known:
        return None
    said = " ".join(facts.layout.survey.problems).rstrip(".")
    return Check("NVML", Level.PROBLEM, said or "it lists no NVIDIA GPU", _nvml_advice(facts, said.casefold()))


def _nvml_advice(facts: DoctorFacts, said: str) -> str:
    devices = facts.nvidia_devices
    if facts.container and devices is not None and not any(device.usable for device in devices):
        return "this container was given no GPU: see the container check"
    if HANGS in said:
        return REVIVE
    if "different versions" in said or "mismatch" in said:
        return (
            "reboot; or stop all that uses the GPUs and run "
            "`sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia`"
        )
    if "permission" in said or (devices and not all(device.usable for device in devices)):
        return "let this user read and write /dev/nvidia* (usually: join the group `video`), then log in anew"
    if facts.nvidia_module is None:
        return "install NVIDIA's driver, or load it: `sudo modprobe nvidia` (not while nouveau is loaded)"
    if "cannot be loaded" in said or not said:
        return "install the libnvidia-ml.so.1 of the driver's own version (package libnvidia-compute or nvidia-utils)"
    return "`nvidia-smi` shows the same fault in the driver's own words; a reboot mends most of them"


def driver(facts: DoctorFacts) -> Check | None:
    """NVIDIA's driver is new enough for Ollama and for these GPUs."""
    if not (ours := nvidia_gpus(facts)):
        return None
    survey = facts.layout.survey
    number = _driver_number(survey.driver_version)
    if number is None:
        return Check("driver", Level.WARNING, "its version is not known")
    shown = f"{survey.driver_version}, CUDA {survey.cuda_version or 'not known'}"
    findings = []
    if number < OLDEST_DRIVER:
        findings.append(Finding(Level.PROBLEM, f"{shown}: without CUDA 12, Ollama uses the CPU", UPDATE_DRIVER))
    elif number < WANTED_DRIVER:
        findings.append(Finding(Level.WARNING, f"{shown}: new Ollamas ask for {WANTED_DRIVER} or newer", UPDATE_DRIVER))
    old = [gpu for gpu in ours if _between(gpu, OLDEST_CAPABILITY, OLD_CAPABILITY)]
    if old and OLDEST_DRIVER <= number < OLD_GPU_DRIVER:
        findings.append(_old_gpus(facts, old, shown))
    return check_of("driver", findings, shown)


def _old_gpus(facts: DoctorFacts, old: Sequence[Gpu], shown: str) -> Finding:
    version = parts(facts.layout.program.version if facts.layout.program else None)
    certain = version is not None and version >= LLAMA_SERVER
    return Finding(
        Level.PROBLEM if certain else Level.WARNING,
        f"{shown}: for {listed(facts, old)} (compute capability 5.0 to 6.2) Ollama asks for {OLD_GPU_DRIVER} or newer",
        UPDATE_DRIVER,
    )


def capability(facts: DoctorFacts) -> Check | None:
    """Ollama has code for these GPUs."""
    if not (ours := [gpu for gpu in nvidia_gpus(facts) if gpu.parent_uuid is None]):
        return None
    old = [gpu for gpu in ours if gpu.compute_capability and gpu.compute_capability < OLDEST_CAPABILITY]
    findings = [
        Finding(
            Level.PROBLEM,
            f"{listed(facts, old)} below 5.0: Ollama has no code for it and would use the CPU",
            "leave it out of `gpus`",
        )
    ]
    unknown = [gpu for gpu in ours if gpu.compute_capability is None]
    known = sorted({gpu.compute_capability for gpu in ours if gpu.compute_capability})
    text = ", ".join(f"{major}.{minor}" for major, minor in known)
    if unknown:
        text = ", ".join(filter(None, (text, f"not known of {listed(facts, unknown)}")))
    return check_of("capability", findings if old else [], text)


def persistence(facts: DoctorFacts) -> Check | None:
    """The driver stays loaded while nothing uses the GPU."""
    ours = [gpu for gpu in nvidia_gpus(facts) if gpu.parent_uuid is None and gpu.persistence_mode is not None]
    if not ours:
        return Check("persistence", Level.OK, "not known") if nvidia_gpus(facts) and not facts.wsl else None
    off = [gpu for gpu in ours if not gpu.persistence_mode]
    findings = [
        Finding(
            Level.WARNING,
            f"off on {listed(facts, off)}: after each pause its driver starts anew, which takes seconds",
            "`sudo nvidia-smi -pm 1`, or for good: `sudo systemctl enable --now nvidia-persistenced`",
        )
    ]
    return check_of("persistence", findings if off else [], "on")


def mig(facts: DoctorFacts) -> Check | None:
    """A GPU that is split has MIG devices to run on."""
    ours = nvidia_gpus(facts)
    split = [gpu for gpu in ours if gpu.is_split]
    if not split:
        return Check("MIG", Level.OK, "no GPU is split") if ours else None
    parents = {gpu.parent_uuid for gpu in ours}
    empty = [gpu for gpu in split if gpu.uuid not in parents]
    findings = [
        Finding(
            Level.PROBLEM,
            f"{listed(facts, empty)} split, but without MIG devices: nothing can run there",
            "make some (`sudo nvidia-smi mig -cgi PROFILE -C`; `nvidia-smi mig -lgip` lists the profiles) "
            "or turn MIG off (`sudo nvidia-smi -i INDEX -mig 0`)",
        )
    ]
    devices = sum(gpu.parent_uuid is not None for gpu in ours)
    return check_of("MIG", findings if empty else [], f"{devices} MIG devices on {listed(facts, split)}")


def links(facts: DoctorFacts) -> Check | None:
    """NVLinks are complete and used."""
    whole = [gpu for gpu in nvidia_gpus(facts) if gpu.parent_uuid is None]
    if len(whole) < 2:
        return None
    pairs = [link for link in facts.layout.survey.links if link.kind is LinkKind.NVLINK]
    findings = _unequal_lanes(facts, whole)
    refused = [f"{named(facts, link.a)} and {named(facts, link.b)}" for link in pairs if link.peer_to_peer is False]
    if refused:
        findings.append(
            Finding(
                Level.WARNING,
                f"NVLink between {', '.join(refused)} is there but the driver does not let them use it",
                "`nvidia-smi topo -p2p r` gives the reason; often the IOMMU or a virtual machine",
            )
        )
    joined = [f"{index_of(facts, link.a)}-{index_of(facts, link.b)}" for link in pairs]
    text = f"{len(joined)} pair{'' if len(joined) == 1 else 's'}"
    text += f": {', '.join(joined)}" if len(joined) <= 6 else ""
    return check_of("NVLink", findings, text if joined else "none between these GPUs")


def _unequal_lanes(facts: DoctorFacts, whole: Sequence[Gpu]) -> list[Finding]:
    """Equal GPUs with NVLinks have equally many, however they are joined; one with fewer has lost some."""
    lanes: defaultdict[str, int] = defaultdict(int)
    for link in facts.layout.survey.links:
        if link.kind is LinkKind.NVLINK:
            if link.lanes is None:
                return []
            lanes[link.a] += link.lanes
            lanes[link.b] += link.lanes
    findings = []
    for name in dict.fromkeys(gpu.name for gpu in whole):
        equal = [gpu for gpu in whole if gpu.name == name and gpu.uuid in lanes]
        most = max((lanes[gpu.uuid] for gpu in equal), default=0)
        if fewer := [gpu for gpu in equal if lanes[gpu.uuid] < most]:
            counts = ", ".join(f"GPU {gpu.index}: {lanes[gpu.uuid]}" for gpu in fewer)
            findings.append(
                Finding(
                    Level.WARNING,
                    f"fewer active NVLinks than on GPUs of the same kind ({counts}; others: {most})",
                    "`nvidia-smi nvlink --status` shows which are down; reseat the bridge, or reset the GPU",
                )
            )
    return findings


def amd_access(facts: DoctorFacts) -> Check | None:
    """This user may use the AMD GPUs."""
    devices = facts.amd_devices
    if devices is None or not any(gpu.vendor is GpuVendor.AMD for gpu in facts.layout.survey.gpus):
        return None
    if not any(device.path == "/dev/kfd" for device in devices):
        advice = "install AMD's ROCm driver (amdgpu-install); in a container: --device /dev/kfd --device /dev/dri"
        return Check("AMD access", Level.PROBLEM, "/dev/kfd is missing: Ollama would use the CPU", advice)
    closed = [device.path for device in devices if not device.usable]
    if closed:
        advice = "`sudo usermod -aG render,video $USER` and log in anew; in a container: --group-add for both groups"
        return Check("AMD access", Level.PROBLEM, f"this user may not use {', '.join(closed)}", advice)
    return Check("AMD access", Level.OK, "this user may use /dev/kfd and the render nodes")


def _driver_number(version: str | None) -> int | None:
    """``570`` of ``570.86.15``."""
    head = (version or "").partition(".")[0]
    return int(head) if head.isascii() and head.isdigit() else None


def _between(gpu: Gpu, low: tuple[int, int], high: tuple[int, int]) -> bool:
    return gpu.compute_capability is not None and low <= gpu.compute_capability <= high


def _kinds(gpus: Iterable[Gpu]) -> str:
    """``2 x RTX 4090, 1 x RTX 3060``."""
    counts: dict[str, int] = {}
    for gpu in gpus:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    return ", ".join(f"{count} x {name}" for name, count in counts.items())
