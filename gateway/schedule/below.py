"""What is below a replica that is a Corral: the replicas there, by what it says and by what they were sent through it.

The scheduler sends to the Corral, which chooses for itself. It is thought to choose as the scheduler would, so each
request counts as being with the replica below that it would be best with, until its answer tells where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar, cast

from msgspec import structs

from corral.gateway.schedule.health import HealthRules
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.ticket import Lease, Ticket
from corral.model import GpuLoad, LeafLoad, LoadedModel, Replica, TreeLoad

T = TypeVar("T", bound=Ticket)

LOOP: Final = "its requests would come back here: it is this gateway, or has it below it"
DRAINING: Final = "it stops, and takes no new requests"


class Leaf(Member[T]):
    """One replica below a Corral. It is sent nothing by itself: it counts what is thought to be there."""

    def __init__(self, above: Member[T], load: LeafLoad, rules: HealthRules) -> None:
        super().__init__(_replica(above, load), rules, 0.0)
        self.above = above
        self.load = load
        self.others: dict[str, int] = {}
        """By model: requests there that came another way."""

    def take(self, load: LeafLoad, loaded: tuple[LoadedModel, ...], others: dict[str, int], taken_s: float) -> None:
        """What its Corral said of it, as of ``taken_s``."""
        if load != self.load:
            self.reconfigure(_replica(self.above, load))
        self.load, self.others = load, others
        self.memory.read(loaded, self.inflight, taken_s, taken_s)
        gpu = GpuLoad() if load.gpu is None else load.gpu
        self.gpu_read(structs.replace(gpu, foreign=gpu.foreign + sum(others.values())))

    def slots_of(self, model: str) -> int:
        return self.load.slots_by_model.get(model) or self.load.slots or 1

    def may_have(self, model: str, signature: str) -> bool:
        return self.memory.holds(model, signature)

    def has_room(self, model: str | None) -> bool:
        if model is None:
            return True
        return self.inflight.get(model, 0) + self.others.get(model, 0) < self.slots_of(model)


class Below(Generic[T]):
    """Everything below one Corral. Empty until it was read."""

    def __init__(self, above: Member[T], rules: HealthRules) -> None:
        self._above = above
        self._rules = rules
        self.leaves: dict[str, Leaf[T]] = {}
        self.usable: list[Leaf[T]] = []
        self.queue_s: dict[str, float] = {}
        """By model: what those take that wait in the Corral and came another way, until a new one would be sent."""
        self.refuses: str | None = None
        """Why it is sent nothing; None: it may be."""
        self.gateways: frozenset[str] = frozenset()
        """The runs of all Corrals there, itself among them."""
        self.read_at_s: float | None = None

    def read(self, tree: TreeLoad, own: str, taken_s: float, names: dict[str, str]) -> bool:
        """What it said, as of ``taken_s``; True: its replicas changed. ``own``: the run of this gateway, ``names``:
        what models' runners are called where that is not their name."""
        if self.read_at_s is not None and taken_s < self.read_at_s:
            return False
        self.read_at_s, self.gateways = taken_s, frozenset({tree.gateway, *tree.gateways})
        before = {id: (leaf.replica.weight, leaf.load.is_usable) for id, leaf in self.leaves.items()}
        refused, self.refuses = self.refuses, self._why_not(tree, own)
        loads = {load.id: load for load in tree.replicas}
        self.leaves = {id: self.leaves.get(id) or Leaf(self._above, load, self._rules) for id, load in loads.items()}
        for id, leaf in self.leaves.items():
            load = loads[id]
            others = {names.get(model, model): count for model, count in load.in_flight.items()}
            leaf.take(load, tuple(_loaded(each, names) for each in load.loaded), others, taken_s)
        self.usable = [leaf for leaf in self.leaves.values() if leaf.load.is_usable]
        self.queue_s = {names.get(model, model): seconds for model, seconds in tree.queue_s.items()}
        after = {id: (leaf.replica.weight, leaf.load.is_usable) for id, leaf in self.leaves.items()}
        return before != after or refused != self.refuses

    @staticmethod
    def _why_not(tree: TreeLoad, own: str) -> str | None:
        if own == tree.gateway or own in tree.gateways:
            return LOOP
        return DRAINING if tree.is_draining else None

    def forget(self) -> None:
        """Another process may answer from now on."""
        for leaf in self.leaves.values():
            leaf.await_reading()

    # ---- what is there for a model

    def holding(self, model: str, signature: str = "") -> list[Leaf[T]]:
        return [leaf for leaf in self.usable if leaf.memory.holds(model, signature)]

    def slots_of(self, model: str) -> int:
        """Of all that hold it; where none does, of the one that would."""
        there = [leaf.slots_of(model) for leaf in self.usable if model in leaf.memory.models]
        return sum(there) or max((leaf.slots_of(model) for leaf in self.usable), default=1)

    def has_room(self, model: str) -> bool:
        there = [leaf for leaf in self.usable if model in leaf.memory.models]
        if there:
            return any(leaf.has_room(model) for leaf in there)
        return self._above.inflight.get(model, 0) < self.slots_of(model)

    def candidates(self, model: str, signature: str) -> Sequence[Leaf[T]]:
        """Those among which it would choose for such a request."""
        there = self.holding(model, signature)
        return [leaf for leaf in there if leaf.has_room(model)] or there or self.usable

    @property
    def loaded(self) -> frozenset[str]:
        """What is in memory anywhere there."""
        return frozenset().union(*(leaf.memory.models for leaf in self.usable))

    @property
    def slots(self) -> int:
        """For one model, if all there had it."""
        loads = [leaf.load for leaf in self.usable]
        return sum(load.slots or max(load.slots_by_model.values(), default=1) for load in loads)

    @property
    def weight(self) -> float:
        return sum(leaf.load.weight for leaf in self.usable) or 1.0

    # ---- where requests are

    def went(self, lease: Lease, id: str, now_s: float) -> Leaf[T] | None:
        """An answer told where its request is. Returns the replica where that is another one than was thought."""
        leaf, there = lease.leaf, self.leaves.get(id)
        if leaf is None or there is None or leaf is there:
            return None
        thought = leaf.release(lease.ticket, now_s)
        found = there.lease(cast("T", lease.ticket), thought.key, thought.sent_at_s)
        found.ask = thought.ask
        if thought.predicted is not None:
            there.predicted(found, thought.predicted, now_s)
        lease.leaf = there
        return there


def units(members: Iterable[Member[T]]) -> Iterator[Member[T]]:
    """Those that compute: of a Corral the replicas below it, as far as they are known."""
    for member in members:
        if member.below is not None and member.below.usable:
            yield from member.below.usable
        else:
            yield member


def unit_of(members: Mapping[str, Member[T]], id: str) -> Member[T] | None:
    """One that computes, ``node1/gpu0`` below a Corral; or a Corral itself."""
    name, _, path = id.partition("/")
    member = members.get(name)
    if member is None or not path:
        return member
    return None if member.below is None else member.below.leaves.get(path)


def leaf_lease(lease: Lease) -> tuple[Member[Any], Lease] | None:
    """Where the request counts below a Corral; None: its replica is none, or that is not known."""
    leaf = lease.leaf
    return None if leaf is None else (leaf, leaf.leases[lease.ticket])


def _replica(above: Member[T], load: LeafLoad) -> Replica:
    return Replica(
        id=f"{above.id}/{load.id}",
        host=above.replica.host,
        port=above.replica.port,
        weight=above.replica.weight * load.weight,
        slots=load.slots,
        gpus=tuple(str(number) for number in range(load.gpus)),
        max_loaded=load.max_loaded,
    )


def _loaded(model: LoadedModel, names: dict[str, str]) -> LoadedModel:
    name = names.get(model.name)
    return model if name is None else LoadedModel(name, model.size_bytes, model.size_vram_bytes, model.context_length)
