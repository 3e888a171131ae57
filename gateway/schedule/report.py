"""What a Corral above this one is told: each replica's load, without what it sent itself, for it knows that better."""

from __future__ import annotations

from collections import Counter
from typing import Any

from msgspec import structs

from corral.gateway.schedule.below import Leaf
from corral.gateway.schedule.dispatcher import Dispatcher
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.roster import Roster
from corral.gateway.schedule.ticket import Lease
from corral.model import GpuLoad, LeafLoad, LoadedModel, TreeLoad


def tree_load(
    roster: Roster[Any], dispatcher: Dispatcher[Any], run: str, asker: str, now_s: float, *, draining: bool
) -> TreeLoad:
    """``run``: of this gateway; ``asker``: of the one that asks."""
    members = list(roster.members.values())
    queued: Counter[str] = Counter()
    work_s: Counter[str] = Counter()
    for ticket in dispatcher.waiting:
        if ticket.request.via != asker and ticket.request.model is not None:
            queued[ticket.request.model] += 1
            work_s[ticket.request.model] += ticket.cost_s
    loads: list[LeafLoad] = []
    gateways: set[str] = set()
    for member in members:
        if member.below is None:
            loads.append(_load(member, member.id, member.is_usable and not member.shut, asker, dispatcher, now_s))
            continue
        gateways |= member.below.gateways
        for id, leaf in member.below.leaves.items():
            usable = member.is_usable and not member.shut and leaf.load.is_usable
            loads.append(_load(leaf, f"{member.id}/{id}", usable, asker, dispatcher, now_s))
    speed = sum(dispatcher.forecast.speed(unit) for unit in _usable(members)) or 1.0
    return TreeLoad(
        gateway=run,
        gateways=tuple(sorted(gateways)),
        is_draining=draining,
        queued=dict(queued),
        queue_s={model: seconds / speed for model, seconds in work_s.items()},
        replicas=tuple(loads),
    )


def _usable(members: list[Member[Any]]) -> list[Member[Any]]:
    found: list[Member[Any]] = []
    for member in members:
        if member.is_usable:
            found += [member] if member.below is None else member.below.usable
    return found


def _load(unit: Member[Any], id: str, usable: bool, asker: str, dispatcher: Dispatcher[Any], now_s: float) -> LeafLoad:
    others = [lease for lease in unit.leases.values() if lease.ticket.request.via != asker]
    in_flight = Counter(lease.key for lease in others if lease.key is not None)
    if isinstance(unit, Leaf):
        in_flight.update(unit.others)
    models = {*unit.memory.models, *in_flight}
    return LeafLoad(
        id=id,
        weight=unit.replica.weight,
        is_usable=usable,
        slots=unit.replica.slots,
        slots_by_model={model: unit.slots_of(model) for model in models},
        max_loaded=unit.replica.max_loaded,
        gpus=max(1, len(unit.replica.gpus)),
        in_flight=dict(in_flight),
        wait_s=_pending_s(others),
        load_s=unit.load_s,
        speed=dispatcher.forecast.speed(unit),
        loaded=tuple(
            LoadedModel(name, held.size_bytes or 0, held.size_bytes or 0, held.context_tokens)
            for name, held in unit.memory.models.items()
            if not unit.memory.is_changing(name)
        ),
        changing=None if unit.memory.swap is None else unit.memory.swap.model,
        gpu=_gpu(unit),
    )


def _gpu(unit: Member[Any]) -> GpuLoad | None:
    """What its GPUs say; of one below another Corral without the requests that count as ``in_flight`` already."""
    if unit.gpu is None or not isinstance(unit, Leaf):
        return unit.gpu
    return structs.replace(unit.gpu, foreign=max(0.0, unit.gpu.foreign - sum(unit.others.values())))


def _pending_s(leases: list[Lease]) -> float:
    """Until the prompts of these are worked off."""
    return sum(lease.predicted.prefill_s for lease in leases if not lease.committed and lease.predicted is not None)
