"""``gpus: auto``: one replica per GPU, and the smallest group for each model that is too big for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from corral.gateway.config.schema import Config
from corral.gateway.layout.estimate import find_model, fitting_context, gib, need_bytes
from corral.gateway.layout.groups import Group, link_words, need_words, smallest_group
from corral.gateway.layout.machine import Machine
from corral.gateway.layout.plan import Facts, StoredModel
from corral.gateway.layout.seats import Remarks, Seat, usable_gpus
from corral.model import Gpu, normalise_model


def auto_seats(config: Config, facts: Facts, machine: Machine, context: int, remarks: Remarks) -> list[Seat]:
    """Every usable GPU in one seat; without any, a seat on the CPU."""
    gpus = usable_gpus(machine, facts, remarks)
    if not gpus:
        return [Seat("cpu", (), reasons=(_no_gpu(machine),))]
    maker = _Maker(config, machine, context, gpus, remarks)
    for model in sorted(_sized(config, facts, remarks), key=lambda model: -model.weights_bytes):
        maker.place(model)
    return maker.finish()


def _no_gpu(machine: Machine) -> str:
    if machine.gpus:
        return "no GPU of this machine may be used (see the notes): it runs on the CPU"
    return "no GPU was found: it runs on the CPU"


def _sized(config: Config, facts: Facts, remarks: Remarks) -> list[StoredModel]:
    models = []
    for name in dict.fromkeys(map(normalise_model, config.large_models)):
        model = find_model(name, facts.models)
        if model is None:
            remarks.advice.append(
                f"large_models: {name} is not in the store and its size is not known: pull it and start again, or list "
                f"its group by hand, for instance gpus: [{{gpus: [0, 1], models: [{name}]}}]."
            )
        else:
            models.append(model)
    return models


class _Maker:
    """Places large models one by one, the largest first; what is left becomes one replica per GPU."""

    def __init__(self, config: Config, machine: Machine, context: int, gpus: Sequence[Gpu], remarks: Remarks) -> None:
        self._machine = machine
        self._context = context
        self._slots = config.ollama.parallel or 1
        self._free = list(gpus)
        self._all = tuple(gpus)
        self._remarks = remarks
        self._seats: list[Seat] = []
        self._others_serve_any = any(not replica.models for replica in config.replicas)

    def place(self, model: StoredModel) -> None:
        holders = [gpu for gpu in self._all if self._fits(model, (gpu,))]
        if len(holders) == len(self._all):
            need = need_bytes(model, self._context, self._slots, 1)
            self._remarks.notes.append(f"{model.name} needs {gib(need)} and fits every GPU: it gets no group.")
            return
        for index, seat in enumerate(self._seats):
            if self._fits(model, seat.gpus):
                self._seats[index] = self._shared(seat, model)
                return
        single = min(
            (gpu for gpu in holders if gpu in self._free), key=lambda gpu: self._machine.memory(gpu) or 0, default=None
        )
        if single is not None:
            self._take(model, (single,), "a GPU of its own, because the smaller ones do not hold it")
            return
        whole = [gpu for gpu in self._free if gpu.parent_uuid is None]
        group = smallest_group(model, whole, self._machine, self._context, self._slots)
        if group is None:
            self._give_up(model, whole)
        else:
            self._take(model, group.gpus, *_why(group, self._machine))

    def finish(self) -> list[Seat]:
        for gpu in self._free:
            why = "one replica per GPU (the default)" if gpu.parent_uuid is None else "one replica per MIG device"
            self._seats.append(Seat(self._machine.short(gpu), (gpu,), reasons=(why,)))
        if not self._free and not self._others_serve_any:
            self._open_last()
        place = {gpu.uuid: at for at, gpu in enumerate(self._all)}
        return sorted(self._seats, key=lambda seat: min(place[gpu.uuid] for gpu in seat.gpus))

    def _fits(self, model: StoredModel, gpus: tuple[Gpu, ...]) -> bool:
        room = self._machine.room(gpus)
        return room is not None and need_bytes(model, self._context, self._slots, len(gpus)) <= room

    def _take(self, model: StoredModel, gpus: tuple[Gpu, ...], *why: str) -> None:
        self._free = [gpu for gpu in self._free if gpu not in gpus]
        reasons = (*why, need_words(model, self._context, self._slots, gpus, self._machine))
        seat = Seat(self._machine.replica_id(gpus), gpus, (model.name,), (model.name,), reasons=reasons)
        self._seats.append(replace(seat, key="large_models"))

    def _shared(self, seat: Seat, model: StoredModel) -> Seat:
        words = need_words(model, self._context, self._slots, seat.gpus, self._machine)
        return replace(
            seat,
            models=(*seat.models, model.name),
            sized_for=(*seat.sized_for, model.name),
            reasons=(*seat.reasons, f"{words}, so it shares the group: Ollama swaps them"),
        )

    def _open_last(self) -> None:
        """Some replica must serve the models that are not large: the last group, made for the smallest of them."""
        why = "no GPU is left for other models, so it serves any model"
        self._seats[-1] = replace(self._seats[-1], models=(), reasons=(*self._seats[-1].reasons, why))

    def _give_up(self, model: StoredModel, whole: Sequence[Gpu]) -> None:
        need = need_bytes(model, self._context, self._slots, max(1, len(whole)))
        room = self._machine.room(whole)
        have = f"the {len(whole)} GPUs left take models of up to {gib(room)}" if whole and room else "no group is left"
        context = None if not room else fitting_context(model, self._slots, len(whole), room)
        way = f"with ollama.context_length: {context} it would fit" if context else "it spills to the CPU"
        self._remarks.advice.append(
            f"large_models: {model.name} needs {gib(need)} with context {self._context}, but {have}: it gets no group; "
            f"{way}, or list a group by hand."
        )


def _why(group: Group, machine: Machine) -> tuple[str, ...]:
    poor = "; no better joined group holds the model" if group.rank.is_slow else ""
    return f"the smallest group that holds it: {len(group.gpus)} GPUs", link_words(group.gpus, machine) + poor
