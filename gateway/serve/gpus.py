"""The GPUs as the gateway knows them: the last reading of each, how old it is, and who must hear of a loss.

A GPU that cannot be read is never taken for idle: its last reading grows old, and then it is shown as *stale*. Only a
GPU that its driver calls lost concerns the replicas on it. It is back when it was read well several times in a row:
a GPU that comes and goes must not make its replica start and stop with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from corral.gateway.serve.metrics import Metrics
from corral.model import Gpu, GpuCondition, GpuFault, GpuMiss, GpuSample, GpuState, GpuSurvey, GpuXid

GOOD_READINGS: Final = 3
"""So many in a row, and a GPU that was lost is back."""
STALE_INTERVALS: Final = 3.0
"""A reading older than so many intervals says nothing about now."""

_CONDITIONS: Final = {
    GpuFault.LOST: GpuCondition.LOST,
    GpuFault.HUNG: GpuCondition.HUNG,
    GpuFault.FAILED: GpuCondition.FAILED,
}


class GpuWatcher(Protocol):
    """Who has to act when a GPU goes or comes back."""

    def gpu_lost(self, uuid: str, reason: str) -> None: ...

    def gpu_back(self, uuid: str) -> None: ...

    def gpu_xid(self, uuid: str, code: int) -> None: ...

    def gpu_read(self, uuid: str, *, well: bool) -> None:
        """One more reading; not well: it failed."""
        ...


@dataclass(slots=True)
class _Entry:
    sample: GpuSample | None = None
    miss: GpuMiss | None = None
    xid: int | None = None
    xids: int = 0
    lost: bool = False
    good: int = 0


class GpuBoard:
    """The feed of the GPU reader; everything happens on the event loop."""

    def __init__(self, clock: Callable[[], float], interval_s: float, metrics: Metrics) -> None:
        self.survey = GpuSurvey()
        self.interval_s = interval_s
        self.watcher: GpuWatcher | None = None
        self.on_round: Callable[[], None] = lambda: None
        """Called when all were read, each well or not."""
        self.looked = asyncio.Event()
        """Each GPU was read or missed once."""
        self._clock = clock
        self._metrics = metrics
        self._labels: dict[str, str] = {}
        self._entries: dict[str, _Entry] = {}

    def use(self, survey: GpuSurvey) -> None:
        """Know these GPUs from now on; what was read of them stays."""
        self.survey = survey
        self._labels = gpu_labels(survey)
        self._entries = {gpu.uuid: self._entries.get(gpu.uuid, _Entry()) for gpu in survey.gpus}
        self._note_look()

    # -- the reader's feed

    def gpu_sampled(self, sample: GpuSample) -> None:
        entry = self._entries.setdefault(sample.uuid, _Entry())
        entry.sample, entry.miss = sample, None
        entry.good += 1
        self._note_look()
        self._tell(lambda watcher: watcher.gpu_read(sample.uuid, well=True))
        if entry.lost and entry.good >= GOOD_READINGS:
            entry.lost = False
            self._tell(lambda watcher: watcher.gpu_back(sample.uuid))

    def gpu_missed(self, miss: GpuMiss) -> None:
        entry = self._entries.setdefault(miss.uuid, _Entry())
        entry.miss, entry.good = miss, 0
        self._note_look()
        self._tell(lambda watcher: watcher.gpu_read(miss.uuid, well=False))
        if miss.fault is GpuFault.LOST and not entry.lost:
            entry.lost = True
            self._tell(lambda watcher: watcher.gpu_lost(miss.uuid, miss.reason))

    def gpu_reported(self, xid: GpuXid) -> None:
        """An error of a GPU that is split concerns the MIG devices on it too."""
        parts = [gpu.uuid for gpu in self.survey.gpus if gpu.parent_uuid == xid.uuid]
        for uuid in (xid.uuid, *parts):
            entry = self._entries.setdefault(uuid, _Entry())
            entry.xid, entry.xids = xid.code, entry.xids + 1
            self._tell(lambda watcher, uuid=uuid: watcher.gpu_xid(uuid, xid.code))  # type: ignore[misc]

    def gpus_read(self, seconds: float) -> None:
        self._metrics.gpu_rounds += 1
        self._metrics.gpu_seconds += seconds
        self.on_round()

    def _note_look(self) -> None:
        if all(entry.sample is not None or entry.miss is not None for entry in self._entries.values()):
            self.looked.set()

    def _tell(self, tell: Callable[[GpuWatcher], None]) -> None:
        if self.watcher is not None:
            tell(self.watcher)

    # -- what is known

    def lost(self) -> dict[str, str]:
        """Why, by uuid, of those that are lost."""
        return {state.gpu.uuid: state.reason for state in self.states() if self._entries[state.gpu.uuid].lost}

    def samples(self) -> tuple[GpuSample, ...]:
        """The fresh ones."""
        found = (self.fresh(gpu.uuid) for gpu in self.survey.gpus)
        return tuple(sample for sample in found if sample is not None)

    def fresh(self, uuid: str) -> GpuSample | None:
        """The GPU's reading, if it still says something about now."""
        state = self._state(uuid)
        return state.sample if state is not None and state.condition is GpuCondition.OK else None

    def states(self) -> tuple[GpuState, ...]:
        """All GPUs, in the survey's order."""
        return tuple(state for gpu in self.survey.gpus if (state := self._state(gpu.uuid)) is not None)

    def _state(self, uuid: str) -> GpuState | None:
        gpu = next((gpu for gpu in self.survey.gpus if gpu.uuid == uuid), None)
        if gpu is None:
            return None
        entry = self._entries[uuid]
        age_s = None if entry.sample is None else max(0.0, self._clock() - entry.sample.taken_at_s)
        condition, reason = self._condition(entry, age_s)
        return GpuState(gpu, self._labels[uuid], condition, reason, entry.sample, age_s, entry.xid, entry.xids)

    def _condition(self, entry: _Entry, age_s: float | None) -> tuple[GpuCondition, str]:
        if entry.miss is not None:
            return _CONDITIONS[entry.miss.fault], entry.miss.reason
        if entry.lost:
            return GpuCondition.LOST, f"answers again, {entry.good} times so far"
        if age_s is None:
            return GpuCondition.UNKNOWN, "not read yet"
        if age_s > STALE_INTERVALS * self.interval_s + 1.0:
            return GpuCondition.STALE, f"last read {age_s:.0f} s ago"
        return GpuCondition.OK, "is read"


def gpu_labels(survey: GpuSurvey) -> dict[str, str]:
    """What a GPU is called in metrics and tables, by uuid: ``0``, and ``0-mig1`` for its second MIG device."""
    labels: dict[str, str] = {}
    parts: dict[str, int] = {}
    for gpu in survey.gpus:
        if gpu.parent_uuid is None:
            labels[gpu.uuid] = str(gpu.index)
        else:
            number = parts.get(gpu.parent_uuid, 0)
            parts[gpu.parent_uuid] = number + 1
            labels[gpu.uuid] = f"{gpu.index}-mig{number}"
    if len(set(labels.values())) < len(labels):  # two vendors count from 0 each
        by_uuid: dict[str, Gpu] = {gpu.uuid: gpu for gpu in survey.gpus}
        labels = {uuid: f"{by_uuid[uuid].vendor.value}-{label}" for uuid, label in labels.items()}
    return labels
