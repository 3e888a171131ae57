"""Which GPUs become a replica together, before anything of it is set: what the file lists, or one per GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from corral.errors import ConfigError
from corral.gateway.config.owned import GroupConfig, Split
from corral.gateway.config.schema import Config
from corral.gateway.layout.groups import link_words
from corral.gateway.layout.machine import Machine
from corral.gateway.layout.names import find_runnable
from corral.gateway.layout.plan import Facts
from corral.model import Gpu, GpuVendor, normalise_model


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of one replica."""

    id: str
    gpus: tuple[Gpu, ...]
    models: tuple[str, ...] = ()
    """The only ones it serves, normalised; empty: any."""
    sized_for: tuple[str, ...] = ()
    """Models it was made for, normalised."""
    slots: int | None = None
    max_loaded: int | None = None
    pinned: tuple[str, ...] = ()
    """Normalised, as :attr:`kept_off`."""
    kept_off: tuple[str, ...] = ()
    weight: float | None = None
    split: Split | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    key: str = "gpus"
    """Where the file says so."""
    reasons: tuple[str, ...] = ()


@dataclass(slots=True)
class Remarks:
    """Sentences for a person, gathered while a layout is decided."""

    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


def listed_seats(config: Config, machine: Machine, remarks: Remarks) -> list[Seat]:
    """The groups of ``gpus:``. Raises :class:`ConfigError`."""
    assert config.gpus is not None
    taken: dict[str, str] = {}
    seats = []
    for index, group in enumerate(config.gpus.groups):
        key = f"gpus[{index}]"
        gpus = tuple(find_runnable(name, machine, key) for name in group.gpus)
        for name, gpu in zip(group.gpus, gpus, strict=True):
            if gpu.uuid in taken:
                what = f"GPU {name} ({gpu.uuid}) is already in {taken[gpu.uuid]}"
                raise ConfigError(f"{key}: {what}; two Ollamas on one GPU take each other's memory")
            taken[gpu.uuid] = key
        _check_mix(gpus, key)
        seats.append(_listed_seat(group, gpus, key, machine, remarks))
    left = [gpu for gpu in machine.gpus if gpu.uuid not in taken and not gpu.is_split]
    if left:
        remarks.notes.append(f"{machine.labels(left)} {'is' if len(left) == 1 else 'are'} in no group and left alone.")
    return seats


def _check_mix(gpus: Sequence[Gpu], key: str) -> None:
    if len({gpu.vendor for gpu in gpus}) > 1:
        raise ConfigError(f"{key}: NVIDIA and AMD GPUs cannot share a model; make a group of each")
    if len(gpus) > 1 and any(gpu.parent_uuid for gpu in gpus):
        raise ConfigError(f"{key}: CUDA uses one MIG device at a time; give each a line of its own")


def _listed_seat(group: GroupConfig, gpus: tuple[Gpu, ...], key: str, machine: Machine, remarks: Remarks) -> Seat:
    reasons = [f"{key} of the configuration"]
    models = tuple(dict.fromkeys(map(normalise_model, group.models)))
    if len(gpus) > 1:
        reasons.append(link_words(gpus, machine))
        if machine.rank(gpus).is_slow and machine.survey.links:
            remarks.advice.append(
                f"{key}: {machine.labels(gpus)} are badly joined; layers that cross over wait for it."
            )
    return Seat(
        id=group.id or machine.replica_id(gpus),
        gpus=gpus,
        models=models,
        sized_for=models,
        slots=group.slots,
        max_loaded=group.max_loaded,
        pinned=tuple(map(normalise_model, group.pin)),
        kept_off=tuple(map(normalise_model, group.keep_off)),
        weight=group.weight,
        split=group.split,
        env=group.env,
        key=key,
        reasons=tuple(reasons),
    )


def usable_gpus(machine: Machine, facts: Facts, remarks: Remarks) -> list[Gpu]:
    """The GPUs that ``auto`` may take: not split, not hidden from the gateway, not integrated beside real ones."""
    gpus = []
    for gpu in machine.gpus:
        if gpu.is_split:
            parts = len(machine.parts(gpu))
            what = f"its {parts} MIG devices are used" if parts else "it has no MIG device, so nothing runs on it"
            remarks.notes.append(f"{machine.label(gpu)} is split by MIG: {what}.")
        else:
            gpus.append(gpu)
    gpus = _visible(gpus, machine, facts, remarks)
    discrete = [gpu for gpu in gpus if not gpu.unified_memory]
    skipped = [gpu for gpu in gpus if gpu.unified_memory] if discrete else []
    if skipped:
        remarks.notes.append(
            f"{machine.labels(skipped)} ({skipped[0].name}) shares the host's memory and is left out beside GPUs that "
            "have their own; list it under gpus: to use it."
        )
    return discrete or gpus


def _visible(gpus: list[Gpu], machine: Machine, facts: Facts, remarks: Remarks) -> list[Gpu]:
    """Without those that the gateway's own environment hides, as it would hide them from an Ollama."""
    hidden: list[Gpu] = []
    for vendor, names in (
        (GpuVendor.NVIDIA, ("CUDA_VISIBLE_DEVICES",)),
        (GpuVendor.AMD, ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")),
    ):
        variable = next((name for name in names if name in facts.visible), None)
        mine = [gpu for gpu in gpus if gpu.vendor is vendor]
        if variable is None or not mine:
            continue
        tokens = [token.strip() for token in facts.visible[variable].split(",")]
        out = [gpu for gpu in mine if not any(_is_meant(gpu, token) for token in tokens)]
        if out:
            hidden += out
            remarks.notes.append(
                f"{machine.labels(out)} left out: {variable} of Corral's own environment hides "
                f"{'it' if len(out) == 1 else 'them'}; unset {variable}, or list GPUs under gpus:."
            )
    return [gpu for gpu in gpus if gpu not in hidden]


def _is_meant(gpu: Gpu, token: str) -> bool:
    if token.isdecimal():
        return gpu.index == int(token)
    wanted = token.lower()
    ids = [gpu.uuid, gpu.parent_uuid or ""]
    return len(wanted) >= 5 and any(uuid.lower().startswith(wanted) for uuid in ids)
