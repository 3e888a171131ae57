"""The GPUs of a survey as a layout sees them: in order, with names, memory, speed and links."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from corral.gateway.layout.plan import Facts
from corral.model import Gpu, GpuLink, GpuSurvey, GpuVendor, LinkKind

FIT_RATIO = 0.8
"""Ollama takes a model for fitting when it needs no more than this share of the free memory (server/sched.go)."""

_KINDS = tuple(LinkKind)
UNKNOWN_LINK = len(_KINDS)
SLOW_LINK = _KINDS.index(LinkKind.SYSTEM)
"""From this rank on, a group is a makeshift."""


@dataclass(frozen=True, slots=True)
class LinkRank:
    """How well a group of GPUs is joined, by its worst pair: the smaller the better."""

    kind: int
    """Place in :class:`LinkKind`; :data:`UNKNOWN_LINK`: not known."""
    lanes: int
    """NVLinks of its worst pair; 0: none or not known."""

    @property
    def is_slow(self) -> bool:
        return self.kind >= SLOW_LINK

    @property
    def is_unknown(self) -> bool:
        return self.kind == UNKNOWN_LINK

    @property
    def words(self) -> str:
        if self.is_unknown:
            return "not known"
        lanes = f" x{self.lanes}" if self.lanes else ""
        return f"{_KINDS[self.kind].value}{lanes}"


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine's GPUs, and how much of each may be filled."""

    survey: GpuSurvey
    ram_bytes: int | None = None
    reserve_bytes: int = 0
    """Left free on every GPU."""
    _links: Mapping[frozenset[str], GpuLink] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_links", {frozenset((link.a, link.b)): link for link in self.survey.links})

    @classmethod
    def of(cls, facts: Facts, reserve_bytes: int) -> Machine:
        return cls(facts.survey, facts.ram_bytes, reserve_bytes)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """All of them, by index; a MIG device after its parent."""
        ranked = enumerate(self.survey.gpus)
        key = {gpu.uuid: (gpu.index, gpu.vendor is GpuVendor.AMD, bool(gpu.parent_uuid), at) for at, gpu in ranked}
        return tuple(sorted(self.survey.gpus, key=lambda gpu: key[gpu.uuid]))

    @property
    def has_both_vendors(self) -> bool:
        return len({gpu.vendor for gpu in self.survey.gpus}) > 1

    def parent(self, gpu: Gpu) -> Gpu | None:
        return next((other for other in self.survey.gpus if other.uuid == gpu.parent_uuid), None)

    def parts(self, gpu: Gpu) -> tuple[Gpu, ...]:
        """The MIG devices of a GPU that is split."""
        return tuple(other for other in self.gpus if other.parent_uuid == gpu.uuid)

    def short(self, gpu: Gpu) -> str:
        """``gpu0``, ``gpu0-mig1``; an AMD GPU beside NVIDIA ones, which count from 0 too: ``amd0``."""
        stem = "amd" if gpu.vendor is GpuVendor.AMD and self.has_both_vendors else "gpu"
        parent = self.parent(gpu)
        part = "" if parent is None else f"-mig{self.parts(parent).index(gpu)}"
        return f"{stem}{gpu.index}{part}"

    def label(self, gpu: Gpu) -> str:
        """``GPU 0``, as in a sentence."""
        parent = self.parent(gpu)
        if parent is not None:
            return f"MIG device {self.parts(parent).index(gpu)} of {self.label(parent)}"
        return f"{'AMD ' if self.short(gpu).startswith('amd') else ''}GPU {gpu.index}"

    def labels(self, gpus: Sequence[Gpu]) -> str:
        """``GPU 0``, ``GPUs 0, 1 and 3``."""
        names = [self.label(gpu) for gpu in gpus]
        stem = names[0].rpartition(" ")[0]
        if len(names) > 1 and all(name.rpartition(" ")[0] == stem for name in names):
            names = [f"{stem}s {gpus[0].index}", *(name.rpartition(" ")[2] for name in names[1:])]
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

    def replica_id(self, gpus: Sequence[Gpu]) -> str:
        """``gpu0``, ``gpu0-3`` for 0 to 3, ``gpu0_2_5`` where they do not follow each other."""
        ordered = [gpu for gpu in self.gpus if gpu in gpus]
        if len(ordered) == 1:
            return self.short(ordered[0])
        stem = self.short(ordered[0])[:3]
        at = [gpu.index for gpu in ordered]
        if at == list(range(at[0], at[0] + len(at))):
            return f"{stem}{at[0]}-{at[-1]}"
        return stem + "_".join(map(str, at))

    def memory(self, gpu: Gpu) -> int | None:
        """All of it, also what is to be left free; GPUs without memory of their own share the host's."""
        if gpu.memory_bytes is not None or not gpu.unified_memory or self.ram_bytes is None:
            return gpu.memory_bytes
        return self.ram_bytes // sum(1 for other in self.survey.gpus if other.unified_memory)

    def total(self, gpus: Iterable[Gpu]) -> int | None:
        known = [self.memory(gpu) for gpu in gpus]
        return None if None in known else sum(size for size in known if size is not None)

    def room(self, gpus: Sequence[Gpu]) -> int | None:
        """Bytes that a model may need on these GPUs and still fit by Ollama's rule; None: not known."""
        total = self.total(gpus)
        return None if total is None else max(0, int((total - self.reserve_bytes * len(gpus)) * FIT_RATIO))

    def bandwidth(self, gpu: Gpu) -> float | None:
        """Bytes a second; of a MIG device: its parent's, by its share of the memory."""
        parent = self.parent(gpu)
        if parent is None:
            return gpu.memory_bandwidth_bytes_s
        if parent.memory_bandwidth_bytes_s is None or not parent.memory_bytes or gpu.memory_bytes is None:
            return None
        return parent.memory_bandwidth_bytes_s * min(1.0, gpu.memory_bytes / parent.memory_bytes)

    def link(self, a: Gpu, b: Gpu) -> GpuLink | None:
        return self._links.get(frozenset((a.uuid, b.uuid)))

    def kinds(self, gpus: Sequence[Gpu]) -> tuple[int, ...]:
        """Of every pair among them, as :attr:`LinkRank.kind`, the worst first."""
        links = (self.link(a, b) for a, b in combinations(gpus, 2))
        return tuple(sorted((_kind(link) for link in links), reverse=True))

    def rank(self, gpus: Sequence[Gpu]) -> LinkRank:
        """How well they are joined; GPUs of which a pair's link is not known count as badly joined."""
        worst = LinkRank(0, 1 << 16)
        for a, b in combinations(gpus, 2):
            link = self.link(a, b)
            rank = LinkRank(_kind(link), 0 if link is None else link.lanes or 0)
            worst = max(worst, rank, key=lambda one: (one.kind, -one.lanes))
        return worst


def _kind(link: GpuLink | None) -> int:
    return UNKNOWN_LINK if link is None else _KINDS.index(link.kind)
