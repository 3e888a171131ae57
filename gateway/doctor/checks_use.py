"""Checks of what the GPUs do now, who else uses them, and how they are counted."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from corral.gateway.doctor.facts import DoctorFacts, GpuUser
from corral.gateway.doctor.naming import GIB, listed, named, nvidia_gpus, size
from corral.gateway.doctor.verdict import Check, Finding, Level, check_of
from corral.model import Gpu, GpuVendor, Throttle

NEAR_SLOWDOWN_CELSIUS: Final = 5
FOREIGN_BYTES: Final = GIB // 2
"""What a desktop takes; more than this, and a model has less room."""

HIDING: Final = {
    "CUDA_VISIBLE_DEVICES": GpuVendor.NVIDIA,
    "ROCR_VISIBLE_DEVICES": GpuVendor.AMD,
    "HIP_VISIBLE_DEVICES": GpuVendor.AMD,
}

COOL: Final = "look after fans, dust and airflow, or lower the power limit (`sudo nvidia-smi -pl WATTS`)"
THROTTLES: Final = {
    Throttle.THERMAL: ("slows down because it is hot", COOL),
    Throttle.HARDWARE_THERMAL: ("is slowed down by its hardware because it is hot", COOL),
    Throttle.POWER_BRAKE: (
        "is slowed down by the power brake",
        "the power supply or the chassis asks for it: check both",
    ),
    Throttle.HARDWARE: ("is slowed down by its hardware", "check its power cables and cooling"),
}
"""A power cap is not among them: that is how a GPU under load looks."""


def ecc(facts: DoctorFacts) -> Check | None:
    """No GPU has had memory errors that could not be corrected."""
    whole = [gpu for gpu in nvidia_gpus(facts) if gpu.parent_uuid is None]
    if not whole:
        return None
    findings = [
        Finding(
            Level.PROBLEM,
            f"{named(facts, sample.uuid)}: {sample.uncorrected_ecc_errors} uncorrected memory errors since the driver "
            "was loaded",
            "stop what runs there and `sudo nvidia-smi -i INDEX --gpu-reset`; if they come back the GPU is failing",
        )
        for sample in facts.samples
        if sample.uncorrected_ecc_errors and sample.uuid in {gpu.uuid for gpu in whole}
    ]
    on = [gpu for gpu in whole if gpu.ecc]
    if off := [gpu for gpu in whole if gpu.ecc is False]:
        findings.append(Finding(Level.OK, f"off on {listed(facts, off)}: memory errors there go unnoticed"))
    counted = {sample.uuid for sample in facts.samples if sample.uncorrected_ecc_errors is not None}
    if silent := [gpu for gpu in on if gpu.uuid not in counted]:
        findings.append(Finding(Level.OK, f"on, but the errors of {listed(facts, silent)} are not known"))
    text = f"on on {listed(facts, on)}, no uncorrected errors" if on else "these GPUs have none, or do not tell"
    return check_of("ECC", findings, text)


def order(facts: DoctorFacts) -> Check | None:
    """A GPU's index means the same GPU everywhere."""
    whole = [gpu for gpu in nvidia_gpus(facts) if gpu.parent_uuid is None]
    if len(whole) < 2:
        return None
    if facts.environ.get("CUDA_DEVICE_ORDER", "").strip().upper() == "PCI_BUS_ID":
        return Check("GPU order", Level.OK, "CUDA counts as nvidia-smi does (CUDA_DEVICE_ORDER=PCI_BUS_ID)")
    if len({gpu.name for gpu in whole}) == 1:
        return Check("GPU order", Level.OK, "equal GPUs; Corral names them by UUID")
    numbers = facts.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    differs = "unequal GPUs: CUDA puts the fastest first, nvidia-smi and Corral's `gpus` count by PCI bus"
    if not any(part.strip().isdecimal() for part in numbers.split(",")):
        return Check("GPU order", Level.OK, f"{differs}; Corral uses UUIDs, scripts of yours should, too")
    return Check(
        "GPU order",
        Level.WARNING,
        f"CUDA_VISIBLE_DEVICES={numbers} on {differs}",
        "name them by UUID (`nvidia-smi -L`), or export CUDA_DEVICE_ORDER=PCI_BUS_ID",
    )


def hidden(facts: DoctorFacts) -> Check | None:
    """No variable of this environment hides GPUs."""
    gpus = [gpu for gpu in facts.layout.survey.gpus if not gpu.is_split]
    if not gpus or not facts.wanted.owns_replicas:
        return None
    findings = []
    for name, vendor in HIDING.items():
        if name not in facts.environ:
            continue
        value = facts.environ[name].strip()
        out = [gpu for gpu in gpus if gpu.vendor is vendor and not _is_named(gpu, value)]
        if out:
            findings.append(
                Finding(
                    Level.WARNING,
                    f"{name}={value} hides {listed(facts, out)}, from Corral too unless `gpus` lists them",
                    "unset it, and name the GPUs that Corral shall use under `gpus` in the configuration",
                )
            )
    return check_of("visible GPUs", findings, "no variable hides any")


def _is_named(gpu: Gpu, value: str) -> bool:
    words = [word.strip().lower() for word in value.split(",")]
    ids = [uuid.lower() for uuid in (gpu.uuid, gpu.parent_uuid) if uuid]
    return str(gpu.index) in words or any(len(word) > 4 and uuid.startswith(word) for word in words for uuid in ids)


def slowed(facts: DoctorFacts) -> Check | None:
    """No GPU is hot or slowed down now."""
    if not facts.layout.survey.gpus or not (facts.samples or facts.misses):
        return None
    gpus = facts.layout.survey.gpus
    findings = []
    whole = {gpu.uuid for gpu in gpus if gpu.parent_uuid is None}
    for sample in (sample for sample in facts.samples if sample.uuid in whole):
        name = named(facts, sample.uuid)
        reasons = [reason for reason in THROTTLES if reason in (sample.throttles or ())]
        findings += [Finding(Level.WARNING, f"{name} {THROTTLES[r][0]}", THROTTLES[r][1]) for r in reasons]
        heat, limit = sample.temperature_celsius, sample.slowdown_celsius
        if not reasons and heat is not None and limit is not None and heat >= limit - NEAR_SLOWDOWN_CELSIUS:
            findings.append(Finding(Level.WARNING, f"{name} has {heat:.0f} C and slows down at {limit:.0f} C", COOL))
    hottest = max((s.temperature_celsius for s in facts.samples if s.temperature_celsius is not None), default=None)
    silent = {sample.uuid for sample in facts.samples if sample.throttles is None}
    unknown = [gpu for gpu in gpus if gpu.uuid in whole & silent]
    text = "temperature not known" if hottest is None else f"{hottest:.0f} C at most"
    are = "is" if len(unknown) == 1 else "are"
    text += f"; whether {listed(facts, unknown)} {are} slowed is not known" if unknown else ", none slowed"
    return check_of("heat, power", findings, text)


def foreign(facts: DoctorFacts) -> Check | None:
    """No other program holds much memory of a GPU."""
    gpus = facts.layout.survey.gpus
    if not gpus:
        return None
    if facts.gpu_users is None:
        return Check("other users", Level.OK, "which programs use the GPUs is not known")
    by_gpu: defaultdict[str, list[GpuUser]] = defaultdict(list)
    for user in facts.gpu_users:
        if not user.is_corrals:
            by_gpu[user.uuid].append(user)
    findings = []
    for uuid, users in by_gpu.items():
        held = sum(user.memory_bytes or 0 for user in users)
        known = all(user.memory_bytes is not None for user in users)
        names = ", ".join(f"{user.program or 'not visible from here'} (pid {user.pid})" for user in users[:3])
        names += f" and {len(users) - 3} more" if len(users) > 3 else ""
        much = size(held) if known else f"{size(held)} or more" if held else "an unknown amount"
        level = Level.WARNING if held >= FOREIGN_BYTES else Level.OK
        advice = (
            "end it, or leave that GPU out of `gpus`: models get only what is free" if level is not Level.OK else None
        )
        findings.append(Finding(level, f"{named(facts, uuid)}: {much} held by {names}", advice))
    return check_of("other users", findings, "no other program uses the GPUs")
