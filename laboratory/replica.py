"""One Ollama in virtual time: the emulator's own scheduler, batches and prompt caches, without sockets and timers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count
from typing import NamedTuple

from corral.emulator.batch import Sequence
from corral.emulator.catalog import ModelSpec
from corral.emulator.compute import Compute
from corral.emulator.effects import Effect, Gone, Granted, Refused, SlotTaken
from corral.emulator.machine import Machine, MachineSpec
from corral.emulator.runner import Job, Runner, RunnerState, Signature
from corral.laboratory.prompt import Prompt, common_blocks, prompt_of
from corral.laboratory.stride import Stride
from corral.laboratory.types import Arrival, BoxReplica

_AUTOMATIC = Signature()


@dataclass(slots=True, eq=False)
class Work:
    """One request on one replica, with the times that the final message of its answer would tell."""

    arrival: Arrival | None
    """None: the model is only to be loaded."""
    job: Job
    sent_s: float
    granted_s: float | None = None
    """Its model was loaded."""
    slot_s: float | None = None
    """It got its slot: what lies between is time queued inside Ollama."""
    first_s: float | None = None
    end_s: float | None = None
    cached_tokens: int = 0
    runner: Runner | None = field(default=None, repr=False)
    sequence: Sequence | None = field(default=None, repr=False)
    prompt: Prompt | None = field(default=None, repr=False)
    slot: int = -1
    last_context: int = 0

    def step(self, stamp: bytes) -> bool:
        """One token was made, maybe after others that nobody had to hear of; True when it was the last."""
        return self.sequence is not None and self.sequence.context_tokens >= self.last_context


class What(Enum):
    """What became of a work."""

    FIRST_TOKEN = auto()
    ENDED = auto()
    REFUSED = auto()
    """Ollama answered 503: too many wait for a load."""


class Happening(NamedTuple):
    what: What
    work: Work


def _last_context(sequence: Sequence) -> int:
    work = sequence.sink
    assert isinstance(work, Work)
    return work.last_context


class VirtualReplica:
    """Call :meth:`advance` at ``next_s()``, and no other method later than that."""

    def __init__(self, box: BoxReplica, models: Iterable[ModelSpec]) -> None:
        self.box = box
        self.id = box.id
        self.is_alive = True
        self.models = {model.name: model for model in models}
        self.loads = 0
        self.unloads = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self._spec = MachineSpec(
            box.gpu,
            parallel=box.slots,
            max_loaded=box.max_loaded,
            context_length=box.context_length,
            disk_bytes_s=box.disk_bytes_s,
        )
        self._slowdown = 1.0
        self._busy_s = 0.0
        self._busy_since_s: float | None = None
        self._numbers = count(1)
        self._start()

    # -- what is asked of it --------------------------------------------------------------------------------------

    def submit(self, arrival: Arrival, now_s: float) -> tuple[Work, list[Happening]]:
        """A request arrived; it must be alive."""
        work = Work(arrival, Job(next(self._numbers), self.models[arrival.model], arrival.model, _AUTOMATIC), now_s)
        return work, self._take(work, now_s)

    def preload(self, model: str, now_s: float, keep_alive_s: float | None = None) -> tuple[Work, list[Happening]]:
        """A request without a prompt: ends once the model is in memory."""
        work = Work(None, Job(next(self._numbers), self.models[model], model, _AUTOMATIC, keep_alive_s), now_s)
        return work, self._take(work, now_s)

    def unload(self, model: str, now_s: float) -> None:
        """The model leaves as soon as no request uses it."""
        self._machine.expire(self.models[model].blob_digest, now_s)

    def abandon(self, work: Work, now_s: float) -> list[Happening]:
        """Its client hung up."""
        if self._works.get(work.job.id) is not work:
            return []
        if work.sequence is not None and work.runner is not None:
            self._strides[work.runner].leave(work.sequence, now_s)
            self._share(now_s)
        return self._done(work, now_s)

    def advance(self, now_s: float) -> list[Happening]:
        """The time is ``next_s()``."""
        happenings: list[Happening] = []
        due_s = self._machine.next_event_s()
        if due_s is not None and due_s <= now_s:
            self._carry_out(self._machine.advance(now_s), now_s, happenings)
        for stride in list(self._strides.values()):
            if stride.event_s is not None and stride.event_s <= now_s:
                self._fire(stride, now_s, happenings)
        return happenings

    def next_s(self) -> float | None:
        """When :meth:`advance` has something to do."""
        if not self.is_alive:
            return None
        times = [stride.event_s for stride in self._strides.values() if stride.event_s is not None]
        if (due_s := self._machine.next_event_s()) is not None:
            times.append(due_s)
        return min(times, default=None)

    # -- incidents ------------------------------------------------------------------------------------------------

    def throttle(self, ratio: float, now_s: float) -> None:
        """From now on it works at this ratio of its full speed."""
        self._slowdown = self._compute.slowdown = 1.0 / ratio
        self._share(now_s)

    def kill(self, now_s: float) -> list[Work]:
        """Its process dies: those that it was working on, in the order in which they came."""
        lost = list(self._works.values())
        self._count_busy(now_s, is_busy=False)
        self.loads += self._machine.loads
        self.unloads += self._machine.unloads
        self.is_alive = False
        self._start()
        return lost

    def restore(self) -> None:
        """Another process starts, with nothing in memory."""
        self.is_alive = True

    # -- readings -------------------------------------------------------------------------------------------------

    def listed(self, now_s: float) -> list[Runner]:
        """The lines of ``/api/ps``."""
        return self._machine.listed(now_s)

    def loaded(self) -> frozenset[str]:
        """The models that ``/api/ps`` names."""
        runners = self._machine.runners.values()
        return frozenset([runner.job.name for runner in runners if runner.state is RunnerState.LOADED])

    def total_loads(self) -> int:
        return self.loads + self._machine.loads

    def total_unloads(self) -> int:
        return self.unloads + self._machine.unloads

    @property
    def slowdown(self) -> float:
        """How many times as long everything takes on its GPU."""
        return self._slowdown

    def busy_s(self, now_s: float) -> float:
        """Seconds in which its GPU computed."""
        since_s = now_s if self._busy_since_s is None else self._busy_since_s
        return self._busy_s + now_s - since_s

    # -- inside ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._machine = Machine(self._spec)
        self._compute: Compute[Prompt] = Compute(self._spec, common_blocks)
        self._compute.slowdown = self._slowdown
        self._strides: dict[Runner, Stride] = {}
        self._works: dict[int, Work] = {}

    def _take(self, work: Work, now_s: float) -> list[Happening]:
        happenings: list[Happening] = []
        self._works[work.job.id] = work
        self._carry_out(self._machine.submit(work.job, now_s), now_s, happenings)
        return happenings

    def _carry_out(self, effects: Iterable[Effect], now_s: float, happenings: list[Happening]) -> None:
        for effect in effects:
            match effect:
                case Granted(job_id, runner):
                    self._granted(self._works[job_id], runner, now_s, happenings)
                case SlotTaken(job_id, runner):
                    self._begin(self._works[job_id], runner, now_s)
                case Refused(job_id):
                    happenings.append(Happening(What.REFUSED, self._works.pop(job_id)))
                case Gone(runner):
                    self._strides.pop(runner, None)
                    self._compute.forget(runner)

    def _granted(self, work: Work, runner: Runner, now_s: float, happenings: list[Happening]) -> None:
        work.granted_s, work.runner = now_s, runner
        if work.arrival is None:
            work.end_s = now_s
            happenings.append(Happening(What.ENDED, work))
            happenings += self._done(work, now_s)
        else:
            self._carry_out(self._machine.want_slot(work.job.id), now_s, happenings)

    def _begin(self, work: Work, runner: Runner, now_s: float) -> None:
        assert work.arrival is not None
        work.slot_s, work.prompt = now_s, prompt_of(work.arrival)
        work.slot, work.cached_tokens = self._compute.cache(runner).begin(work.prompt)
        tokens = work.prompt.tokens
        self.prompt_tokens += tokens
        self.cached_tokens += work.cached_tokens
        # the first token comes with the end of the prefill, before the context has grown
        work.last_context = tokens + max(1, work.arrival.output_tokens) - 1
        work.sequence = Sequence(work, tokens - work.cached_tokens, tokens)
        stride = self._strides.get(runner)
        if stride is None:
            batch = self._compute.batch(runner)
            stride = self._strides[runner] = Stride(batch, _last_context, self._compute.stretch())
        self._join(stride, work.sequence, now_s)

    def _join(self, stride: Stride, sequence: Sequence, now_s: float) -> None:
        """Whoever has work shares the GPU: also with one that gets its first sequence now."""
        if not len(stride.batch):
            stride.stretch(self._compute.slowdown * (self._compute.busy() + 1), now_s)
        stride.join(sequence, now_s)
        self._share(now_s)

    def _share(self, now_s: float) -> None:
        factor = self._compute.stretch()
        for stride in self._strides.values():
            stride.stretch(factor, now_s)
        self._count_busy(now_s, is_busy=self._compute.busy() > 0)

    def _fire(self, stride: Stride, now_s: float, happenings: list[Happening]) -> None:
        ended = []
        for sequence in stride.fire():
            work = sequence.sink
            assert isinstance(work, Work)
            if work.first_s is None:
                work.first_s = now_s
                happenings.append(Happening(What.FIRST_TOKEN, work))
            if work.step(b""):
                stride.batch.remove(sequence)
                ended.append(work)
        if ended and not len(stride.batch):
            self._share(now_s)
        # as in the emulator, the next step begins before those who waited for a slot hear that one is free
        stride.begin(now_s)
        for work in ended:
            work.end_s = now_s
            happenings.append(Happening(What.ENDED, work))
            happenings += self._done(work, now_s)

    def _done(self, work: Work, now_s: float) -> list[Happening]:
        del self._works[work.job.id]
        happenings: list[Happening] = []
        if work.prompt is not None and work.sequence is not None and work.runner is not None:
            said = 0 if work.first_s is None else work.sequence.context_tokens - work.prompt.tokens + 1
            self._compute.cache(work.runner).end(work.slot, work.prompt.answered(said))
        self._carry_out(self._machine.done(work.job.id, now_s), now_s, happenings)
        return happenings

    def _count_busy(self, now_s: float, *, is_busy: bool) -> None:
        if is_busy and self._busy_since_s is None:
            self._busy_since_s = now_s
        elif not is_busy and self._busy_since_s is not None:
            self._busy_s += now_s - self._busy_since_s
            self._busy_since_s = None
