"""The box that is simulated: the replicas of the configuration, on the GPUs that they have or are taken to have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from corral.emulator.catalog import GpuSpec, ModelSpec, gpu_named
from corral.errors import OperatorError
from corral.gateway.cli.messages import visible
from corral.gateway.config import Config
from corral.gateway.layout.plan import Facts, ReplicaPlan
from corral.laboratory.boxes import BASE, BOXES, SHARED_CONTEXT, BoxSpec, make_box, scaled_gpu
from corral.laboratory.sim.realgpus import gpu_meant
from corral.laboratory.types import Box, BoxReplica
from corral.model import Gpu, Replica

DEFAULT_BOX = "unequal-4"
SLOTS = 4
"""Where nobody says how many: what Ollama took by itself for long, and what Corral's own get where there is room."""
_ALL = "*"


@dataclass(slots=True)
class Seats:
    """Replicas with their GPUs, and what had to be assumed of them."""

    replicas: list[BoxReplica] = field(default_factory=list)
    gpus: dict[str, str] = field(default_factory=dict)
    """How each came by its GPU."""
    said: list[str] = field(default_factory=list)


def gpus_given(texts: Iterable[str]) -> dict[str, GpuSpec]:
    """Of ``ID=NAME``, or ``NAME`` for all. Raises OperatorError."""
    found: dict[str, GpuSpec] = {}
    for text in texts:
        replica_id, equals, name = text.partition("=")
        wanted = name if equals else text
        found[replica_id.strip() if equals else _ALL] = gpu_meant(wanted) or gpu_named(wanted)
    return found


def named_box(name: str, models: tuple[ModelSpec, ...]) -> tuple[Box, Seats]:
    """A box of the laboratory instead of the configuration's replicas. Raises OperatorError."""
    if name not in BOXES:
        raise OperatorError(f"--box {name}: unknown; known: {', '.join(BOXES)}")
    box = replace(make_box(BoxSpec(name)), models=models)
    if len(models) > 1:
        box = replace(box, replicas=tuple(replace(one, context_length=SHARED_CONTEXT) for one in box.replicas))
    seats = Seats(list(box.replicas), {one.id: one.gpu.name for one in box.replicas})
    seats.said.append(f"the box is {name} of the laboratory; the replicas of the configuration play no part")
    return box, seats


def needs_facts(config: Config, gpus: Mapping[str, GpuSpec]) -> bool:
    """Whether it matters which GPUs this machine has."""
    return config.owns_replicas or (_ALL not in gpus and any(one.gpus for one in config.replicas if one.id not in gpus))


def configured_box(
    config: Config, models: tuple[ModelSpec, ...], gpus: Mapping[str, GpuSpec], facts: Facts | None
) -> tuple[Box, Seats]:
    """The configuration's replicas, listed ones and Corral's own. Raises OperatorError."""
    seats = Seats()
    context = SHARED_CONTEXT if len(models) > 1 else None
    for one in config.replicas:
        _sit(seats, one.to_replica(), gpus, _read_gpus(one.gpus, facts), context)
    if config.owns_replicas and facts is not None:
        for plan in _plans(config, facts, seats):
            _sit(seats, _replica_of(plan), gpus, plan.gpus, plan.context_length)
    if config.discovery is not None:
        seats.said.append("replicas that are discovered at run time are not here: list them, or use --box")
    if not seats.replicas:
        box, other = named_box(DEFAULT_BOX, models)
        other.said = [*seats.said, f"no replica and no GPU is known here, so the box is the laboratory's {DEFAULT_BOX}"]
        return box, other
    unknown = sorted(gpus.keys() - {one.id for one in seats.replicas} - {_ALL})
    if unknown:
        known = ", ".join(one.id for one in seats.replicas)
        raise OperatorError(f"--gpu {unknown[0]}=…: there is no such replica; the replicas are {known}")
    if context is not None and config.replicas:
        seats.said.append(f"of several models each gets a context of {SHARED_CONTEXT} tokens in the replicas listed")
    box = Box("the configuration", tuple(seats.replicas), models)
    _check_served(box)
    return box, seats


def _check_served(box: Box) -> None:
    """Requests that nobody may answer say nothing of a policy."""
    names = [model.name for model in box.models]
    unserved = [name for name in names if not any(box.serves(replica, name) for replica in box.replicas)]
    if unserved:
        raise OperatorError(
            f"no replica may serve {', '.join(map(visible, unserved))}: see `models` and `keep_off` of the replicas"
        )


def _plans(config: Config, facts: Facts, seats: Seats) -> Iterator[ReplicaPlan]:
    from corral.gateway.layout.choose import make_plan

    for plan in make_plan(config, facts).replicas:
        if plan.gpus:
            yield plan
        else:
            seats.said.append(
                f"replica {plan.id} would run on the CPU and is left out: no GPU was found on this machine"
            )


def _read_gpus(names: Sequence[str], facts: Facts | None) -> tuple[Gpu, ...]:
    """The GPUs that a replica says it runs on; none where this is another machine."""
    from corral.errors import ConfigError
    from corral.gateway.layout.names import gpu_uuids

    if facts is None or not names:
        return ()
    try:
        uuids = gpu_uuids(names, facts.survey)
    except ConfigError:
        return ()
    return tuple(gpu for gpu in facts.survey.gpus if gpu.uuid in uuids)


def _replica_of(plan: ReplicaPlan) -> Replica:
    return Replica(
        plan.id,
        "127.0.0.1",
        1,
        plan.weight,
        plan.slots,
        models=plan.models,
        max_loaded=plan.max_loaded,
        pinned=plan.pinned,
        kept_off=plan.kept_off,
    )


def _sit(seats: Seats, replica: Replica, gpus: Mapping[str, GpuSpec], own: Sequence[Gpu], context: int | None) -> None:
    given = gpus.get(replica.id) or gpus.get(_ALL)
    if given is not None:
        spec, why = given, f"{given.name}, as --gpu says"
    else:
        spec, why = _gpu_of(own, replica.weight)
    if replica.slots is None:
        seats.said.append(f"replica {replica.id} is taken to have {SLOTS} slots: the configuration does not say")
    if replica.admin is not None:
        seats.said.append(f"replica {replica.id} is a Corral and is taken for one Ollama on one GPU")
    seats.gpus[replica.id] = why
    seats.replicas.append(
        BoxReplica(
            replica.id,
            spec,
            replica.slots or SLOTS,
            replica.weight,
            replica.max_loaded or 3,
            context,
            models=replica.models,
            pinned=replica.pinned,
            kept_off=replica.kept_off,
        )
    )


def _gpu_of(own: Sequence[Gpu], weight: float) -> tuple[GpuSpec, str]:
    """By the names of the GPUs of this machine, else a usual one that is as fast as its weight says."""
    spec = gpu_meant(own[0].name, own[0].memory_bytes) if own else None
    if spec is not None:
        count = f"{len(own)} × " if len(own) > 1 else ""  # noqa: RUF001
        return _with_memory_of(own, spec), f"{count}{own[0].name}, as found on this machine, taken for {spec.name}"
    spec = scaled_gpu(gpu_named(BASE), weight) if weight != 1 else gpu_named(BASE)
    assumed = f"assumed: {spec.name}, by its weight" if weight != 1 else f"assumed: {spec.name}"
    if not own:
        return spec, assumed
    return _with_memory_of(own, spec), f"{assumed}, with the memory of {own[0].name}, whose speed is not known"


def _with_memory_of(own: Sequence[Gpu], spec: GpuSpec) -> GpuSpec:
    """Several GPUs of one replica hold a model together, one layer after the other: no faster than one."""
    return replace(spec, vram_bytes=sum(gpu.memory_bytes or spec.vram_bytes for gpu in own))
