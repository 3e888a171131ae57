"""The smallest group of GPUs that holds a large model, the best joined first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from corral.gateway.layout.estimate import gib, need_bytes
from corral.gateway.layout.machine import LinkRank, Machine
from corral.gateway.layout.plan import StoredModel
from corral.model import Gpu

_ALL_UP_TO = 12
"""So many GPUs are tried in every combination; of more, only neighbours in the driver's order."""


@dataclass(frozen=True, slots=True)
class Group:
    """GPUs that together hold a model."""

    gpus: tuple[Gpu, ...]
    rank: LinkRank
    kinds: tuple[int, ...]
    """See :meth:`Machine.kinds`."""
    room_bytes: int


def smallest_group(model: StoredModel, free: Sequence[Gpu], machine: Machine, context: int, slots: int) -> Group | None:
    """The fewest GPUs of ``free`` that hold it; among equally many, those joined best (by their worst link, then the
    next worst, and so on: what NVLink joins stays together), then the fastest, then those it fits closest.

    A group with a slow or unknown link is only taken where no group without one holds the model, whatever its size.
    """
    makeshift: Group | None = None
    for size in range(2, len(free) + 1):
        found = [
            Group(gpus, machine.rank(gpus), machine.kinds(gpus), room)
            for gpus in _sets(free, size)
            if len({gpu.vendor for gpu in gpus}) == 1
            and (room := machine.room(gpus)) is not None
            and need_bytes(model, context, slots, size) <= room
        ]
        best = min(found, key=_order, default=None)
        if best is not None and not best.rank.is_slow:
            return best
        makeshift = makeshift or best
    return makeshift


def _order(group: Group) -> tuple[tuple[int, ...], int, float, int, tuple[int, ...]]:
    """What joins them, then the speed of the slowest, which all wait for, then what would lie idle."""
    slowest = min(gpu.memory_bandwidth_bytes_s or 0.0 for gpu in group.gpus)
    return group.kinds, -group.rank.lanes, -slowest, group.room_bytes, tuple(gpu.index for gpu in group.gpus)


def _sets(free: Sequence[Gpu], size: int) -> Iterator[tuple[Gpu, ...]]:
    if len(free) <= _ALL_UP_TO:
        return combinations(free, size)
    return (tuple(free[at : at + size]) for at in range(len(free) - size + 1))


def link_words(gpus: Sequence[Gpu], machine: Machine) -> str:
    """How a group is joined, in a sentence."""
    rank, names = machine.rank(gpus), machine.labels(gpus)
    if rank.is_unknown:
        return f"how {names} are joined is not known"
    if len(gpus) == 2:
        return f"{names} are joined by {rank.words}" if not rank.is_slow else f"{names} are joined {rank.words}, slowly"
    return f"{names}: the slowest link among them is {rank.words}"


def need_words(model: StoredModel, context: int, slots: int, gpus: Sequence[Gpu], machine: Machine) -> str:
    """Why a model needs these GPUs, in a sentence."""
    need = need_bytes(model, context, slots, len(gpus))
    room = machine.room(gpus) or 0
    kv = "" if model.kv_bytes_per_token is not None else ", keys and values guessed"
    return (
        f"{model.name} needs {gib(need)} (weights {gib(model.weights_bytes)}, context {context}{kv}); "
        f"{'these GPUs take' if len(gpus) > 1 else 'this GPU takes'} models of up to {gib(room)}"
    )
