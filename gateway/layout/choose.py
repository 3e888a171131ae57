"""Decides the layout: which Ollamas run, on which GPUs, with what environment, and why."""

from __future__ import annotations

from collections.abc import Sequence

from corral.errors import ConfigError
from corral.gateway.config.schema import Config
from corral.gateway.layout.advice import store_advice
from corral.gateway.layout.auto import auto_seats
from corral.gateway.layout.context import Context, choose_context
from corral.gateway.layout.environment import DEVICES, HOST_CACHE_BYTES, Setting, environment, shares_of
from corral.gateway.layout.estimate import TYPICAL, auto_slots, find_model, gib, need_bytes
from corral.gateway.layout.machine import Machine
from corral.gateway.layout.place import NumaPlace, numa_place, relative_weights
from corral.gateway.layout.plan import Facts, Plan, ReplicaPlan, StoredModel
from corral.gateway.layout.seats import Remarks, Seat, listed_seats, usable_gpus
from corral.gateway.layout.version import ignores_mig, parts, takes_llama_args
from corral.model import Gpu

_PARALLEL = "OLLAMA_NUM_PARALLEL"
_CONTEXT = "OLLAMA_CONTEXT_LENGTH"
_MAX_LOADED = "OLLAMA_MAX_LOADED_MODELS"
_LOADED_PER_GPU = 3
"""Ollama's own: so many models it holds at most where nobody says otherwise, and on a CPU as many as on one GPU."""
_NOT_OWNED = "Corral runs no Ollama of its own: the configuration lists replicas and no gpus."


def make_plan(config: Config, facts: Facts) -> Plan:
    """The replicas to run. Raises :class:`ConfigError` where the file asks for what this machine does not have."""
    if not config.owns_replicas:
        return Plan((), (_NOT_OWNED,))
    machine = Machine.of(facts, config.memory_reserve_bytes)
    remarks = Remarks()
    remarks.notes += _program_notes(config, facts)
    if config.gpus is not None and config.gpus.groups:
        seats = listed_seats(config, machine, remarks)
        context = choose_context(config, machine, [seat.gpus for seat in seats])
    else:
        gpus = usable_gpus(machine, facts, Remarks())
        context = choose_context(config, machine, [(gpu,) for gpu in gpus])
        seats = auto_seats(config, facts, machine, context.length, remarks)
    _check_ids(config, seats)
    _check_splits(facts, seats)
    replicas = _Builder(config, facts, machine, context, tuple(seats), remarks).replicas()
    _note_models(config, replicas, remarks)
    _note_versions(facts, replicas, remarks)
    _note_env(config, seats, remarks)
    remarks.advice += [context.advice] if context.advice else []
    remarks.advice += store_advice(config, facts, machine, replicas)
    return Plan(replicas, tuple(remarks.notes), tuple(remarks.advice))


class _Builder:
    """From seats to replicas."""

    def __init__(
        self,
        config: Config,
        facts: Facts,
        machine: Machine,
        context: Context,
        seats: tuple[Seat, ...],
        remarks: Remarks,
    ) -> None:
        self._config = config
        self._facts = facts
        self._machine = machine
        self._context = context
        self._seats = seats
        self._remarks = remarks
        version = facts.program.version if facts.program else None
        self._takes_llama_args = takes_llama_args(version)
        self._version = version

    def replicas(self) -> tuple[ReplicaPlan, ...]:
        weights, note = relative_weights([seat.gpus for seat in self._seats], self._machine)
        if note and any(seat.weight is None for seat in self._seats):
            self._remarks.notes.append(note)
        return tuple(self._replica(seat, weight) for seat, weight in zip(self._seats, weights, strict=True))

    def _replica(self, seat: Seat, weight: float) -> ReplicaPlan:
        config = self._config
        slots, slots_why = self._slots(seat)
        shares, shares_why = self._shares(seat, slots)
        place = numa_place(seat.gpus, self._machine, self._facts.cpus) if config.ollama.bind_numa else NumaPlace()
        env = environment(
            Setting(
                gpus=seat.gpus,
                context_length=self._context.length,
                slots=slots,
                keep_alive=config.ollama.keep_alive,
                takes_llama_args=self._takes_llama_args,
                host_cache_bytes=self._host_cache(),
                max_loaded=seat.max_loaded or config.ollama.max_loaded,
                store=self._facts.store,
                reserve_bytes=config.memory_reserve_bytes,
                shares=shares,
                split=seat.split,
                no_proxy=self._facts.no_proxy,
                of_all=config.ollama.env,
                of_group=seat.env,
            )
        )
        weight_why = f"weight {weight:g}: its memory bandwidth beside the slowest's"
        if seat.weight is not None:
            weight, weight_why = seat.weight, f"weight {seat.weight:g}: {seat.key}.weight"
        slots, slots_why = self._said(seat, _PARALLEL, slots, "slots", slots_why)
        context, context_why = self._said(seat, _CONTEXT, self._context.length, "context", self._context.reason)
        max_loaded, loaded_why = self._max_loaded(seat)
        reasons = (*seat.reasons, context_why, slots_why, loaded_why, shares_why, weight_why if weight != 1 else "")
        return ReplicaPlan(
            id=seat.id,
            command=(self._facts.program.path if self._facts.program else config.ollama.binary, "serve"),
            env=env,
            gpus=seat.gpus,
            models=frozenset(seat.models) or None,
            slots=slots,
            max_loaded=max_loaded,
            pinned=frozenset(seat.pinned),
            kept_off=frozenset(seat.kept_off),
            store=seat.env.get("OLLAMA_MODELS", "shared"),
            context_length=context,
            weight=weight,
            cpus=place.cpus,
            numa_node=place.node,
            reasons=tuple(reason for reason in (*reasons, place.reason) if reason),
        )

    def _said(self, seat: Seat, name: str, value: int, what: str, why: str) -> tuple[int, str]:
        """A number and its reason in the end: the file's ``env`` may overrule it."""
        for env, key in ((seat.env, f"{seat.key}.env"), (self._config.ollama.env, "ollama.env")):
            if name in env:
                text = env[name].strip()
                is_number = text.isdecimal() and int(text) > 0
                return (int(text), f"{what} {int(text)}: {key}.{name}") if is_number else (value, why)
        return value, why

    def _max_loaded(self, seat: Seat) -> tuple[int, str]:
        said = seat.max_loaded or self._config.ollama.max_loaded
        if said is None:
            default = _LOADED_PER_GPU * max(1, len(seat.gpus))
            return self._said(seat, _MAX_LOADED, default, "models in memory at most", "")
        key = "ollama" if seat.max_loaded is None else seat.key
        why = f"models in memory at most {said}: {key}.max_loaded"
        return self._said(seat, _MAX_LOADED, said, "models in memory at most", why)

    def _models(self, seat: Seat) -> list[StoredModel]:
        found = [find_model(name, self._facts.models) for name in seat.sized_for]
        return [model for model in found if model is not None]

    def _slots(self, seat: Seat) -> tuple[int, str]:
        if seat.slots is not None:
            return seat.slots, f"slots {seat.slots}: {seat.key}.slots"
        if self._config.ollama.parallel is not None:
            return self._config.ollama.parallel, f"slots {self._config.ollama.parallel}: ollama.parallel"
        if not seat.gpus:
            return 1, "slots 1: several at a time slow each other down on a CPU"
        room = self._machine.room(seat.gpus)
        if room is None:
            return 1, "slots 1: its GPU memory is not known"
        models = self._models(seat)
        slots = auto_slots(models, self._context.length, len(seat.gpus), room)
        what = " and ".join(model.name for model in models) or "an 8B model"
        need = max(need_bytes(model, self._context.length, slots, len(seat.gpus)) for model in models or [TYPICAL])
        if need > room:
            return slots, f"slots {slots}: there is no room for more"
        return slots, f"slots {slots}: what {what} leaves room for ({gib(need)} of {gib(room)})"

    def _shares(self, seat: Seat, slots: int) -> tuple[tuple[int, ...], str]:
        """An explicit division switches off llama.cpp's own, which spills to the CPU what does not fit. So it is only
        made where llama.cpp's does nothing (rows, tensors), or where the group's models are known to fit."""
        free = [self._free(gpu) for gpu in seat.gpus]
        if len(seat.gpus) < 2 or None in free:
            return (), ""
        shares = shares_of([size for size in free if size is not None])
        if not shares:
            return (), ""
        shown = ", ".join(f"{self._machine.short(gpu)} {share}" for gpu, share in zip(seat.gpus, shares, strict=True))
        if not self._takes_llama_args:
            return (), "layers in proportion to free memory: Ollama before 0.30 divides them so itself"
        models = self._models(seat)
        room = self._machine.room(seat.gpus) or 0
        fits = (
            bool(seat.models)
            and len(models) == len(seat.models)
            and all(need_bytes(model, self._context.length, slots, len(seat.gpus)) <= room for model in models)
        )
        if seat.split is None and not fits:
            return (), "layers in proportion to free memory: llama.cpp divides them so itself when it loads a model"
        return shares, f"layers in proportion to free memory (MiB: {shown})"

    def _free(self, gpu: Gpu) -> int | None:
        free = self._facts.free_bytes.get(gpu.uuid, self._machine.memory(gpu))
        return None if free is None else max(0, free - self._config.memory_reserve_bytes)

    def _host_cache(self) -> int:
        """At most a quarter of the host's memory for all replicas, unless the file says how much."""
        if self._config.ollama.host_cache_bytes is not None:
            return self._config.ollama.host_cache_bytes
        ram = self._facts.ram_bytes
        return HOST_CACHE_BYTES if ram is None else min(HOST_CACHE_BYTES, ram // 4 // len(self._seats))


def _check_ids(config: Config, seats: Sequence[Seat]) -> None:
    taken = {replica.id: f"replicas[{index}]" for index, replica in enumerate(config.replicas)}
    for seat in seats:
        if seat.id in taken:
            raise ConfigError(f"{seat.key}: {seat.id!r} is already the id of {taken[seat.id]}; give one another id:")
        taken[seat.id] = seat.key


def _check_splits(facts: Facts, seats: Sequence[Seat]) -> None:
    version = facts.program.version if facts.program else None
    for seat in seats:
        if seat.split is not None and not takes_llama_args(version):
            raise ConfigError(
                f"{seat.key}.split: Ollama {version} divides by layer only; take 0.30 or newer, or remove it"
            )
        if seat.split is not None and len(seat.gpus) == 1:
            raise ConfigError(f"{seat.key}.split: there is one GPU in the group, so nothing to divide; remove it")


def _program_notes(config: Config, facts: Facts) -> list[str]:
    if facts.program is None:
        return [f"No program {config.ollama.binary!r} was found: install Ollama, or name it with ollama.binary."]
    if facts.program.version is None:
        return [f"{facts.program.path} does not say its version; it is taken for 0.30 or newer."]
    if parts(facts.program.version) is None:
        return [f"{facts.program.path} says version {facts.program.version}; it is taken for 0.30 or newer."]
    return []


def _note_models(config: Config, replicas: Sequence[ReplicaPlan], remarks: Remarks) -> None:
    """Say it where only listed models can be served at all."""
    open_to_any = any(replica.models is None for replica in replicas) or any(not one.models for one in config.replicas)
    if replicas and not open_to_any:
        names = sorted({name for replica in replicas for name in replica.models or ()})
        remarks.notes.append(f"Every replica lists its models: no other than {', '.join(names)} can be served.")


def _note_env(config: Config, seats: Sequence[Seat], remarks: Remarks) -> None:
    """Say it where the file's ``env`` puts an Ollama on other GPUs than the plan says."""
    envs = [("ollama.env", config.ollama.env), *((f"{seat.key}.env", seat.env) for seat in seats)]
    remarks.advice += [
        f"{key}.{name} overrules the GPUs that Corral chose, and what it plans and watches is for those: remove it "
        "and choose GPUs under gpus:."
        for key, env in envs
        for name in DEVICES
        if name in env
    ]


def _note_versions(facts: Facts, replicas: Sequence[ReplicaPlan], remarks: Remarks) -> None:
    version = facts.program.version if facts.program else None
    if ignores_mig(version) and any(gpu.parent_uuid for replica in replicas for gpu in replica.gpus):
        remarks.advice.append(f"Ollama {version} ignores MIG devices and runs on the CPU; take 0.16 or newer.")
