"""The scheduler of one Ollama without a clock: what happened goes in with its time, what follows comes out."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from corral.emulator import gpu
from corral.emulator.catalog import GpuSpec, calibration
from corral.emulator.effects import Effect, Gone, Granted, Refused, SlotTaken
from corral.emulator.runner import FOREVER_S, Job, Runner, RunnerState, clamp_context

BUSY = "server busy, please try again.  maximum pending requests exceeded"
_ONE_SLOT_FAMILIES = frozenset(
    {"mllama", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe", "nemotron_h"}
)


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One Ollama process and its GPU."""

    gpu: GpuSpec
    version: tuple[int, ...] = (0, 32, 15)
    parallel: int = 1
    max_loaded: int = 3
    max_queue: int = 512
    keep_alive_s: float = 300.0
    context_length: int | None = None
    """None: by the GPU's memory, as Ollama picks it."""
    load_s: float | None = None
    """None: by the model's size."""
    disk_bytes_s: float | None = None
    """How fast models are read; None: from the page cache."""

    @property
    def legacy(self) -> bool:
        """Before Ollama served models through llama-server."""
        return self.version < (0, 30)


class Machine:
    """One pending request at a time, one runner per model, idle runners leave first."""

    def __init__(self, spec: MachineSpec) -> None:
        self.spec = spec
        self.runners: dict[str, Runner] = {}
        self.loads = 0
        self.unloads = 0
        self.max_active: dict[str, int] = {}
        """By model: the most requests that ever held a slot at once."""
        self._pending: deque[Job] = deque()
        self._head: Job | None = None
        self._granted: dict[int, Runner] = {}
        self._recovered_at_s = 0.0

    # -- events ---------------------------------------------------------------------------------------------------

    def submit(self, job: Job, now: float) -> list[Effect]:
        """A request arrived. A model that is loaded as asked bypasses the queue and its bound."""
        runner = self.runners.get(job.key)
        if runner is not None and runner.state is RunnerState.LOADED and not runner.needs_reload(job):
            return [self._grant(job, runner)]
        waits_for_load = self.spec.legacy and runner is not None and runner.state is RunnerState.LOADING
        if not waits_for_load and len(self._pending) >= self.spec.max_queue:
            return [Refused(job.id, 503, BUSY)]
        self._pending.append(job)
        return self._pump(now)

    def want_slot(self, job_id: int) -> list[Effect]:
        """The granted job is ready to run: it gets a slot now or, first come first served, later."""
        runner = self._granted[job_id]
        runner.waiting.append(job_id)
        return self._slots(runner)

    def done(self, job_id: int, now: float, *, leak_slot: bool = False) -> list[Effect]:
        """The request ended, was cancelled or lost its client: in whatever state it was."""
        runner = self._granted.pop(job_id, None)
        if runner is None:
            return self._cancel_pending(job_id, now)
        if job_id in runner.waiting:
            runner.waiting.remove(job_id)
        if leak_slot:
            runner.active.add(-job_id)
        runner.active.discard(job_id)
        runner.refs.discard(job_id)
        effects = self._slots(runner)
        if not runner.refs and self.runners.get(runner.job.key) is runner:
            runner.expires_at_s = now + runner.session_s
            self._unload_if_due(runner, now)
        return effects + self._pump(now)

    def expire(self, key: str, now: float) -> None:
        """The model shall leave as soon as no request uses it (``keep_alive: 0`` without a prompt)."""
        runner = self.runners.get(key)
        if runner is not None and runner.state is RunnerState.LOADED:
            runner.session_s = 0.0
            runner.expires_at_s = now
            self._unload_if_due(runner, now)

    def expire_all(self, now: float) -> None:
        """Out of memory while running: everything loaded leaves."""
        for runner in list(self.runners.values()):
            self.expire(runner.job.key, now)

    def crash(self, key: str, now: float, message: str) -> list[Effect]:
        """The runner's process died: its memory is free at once, who waited for a slot meets a dead process.

        Each of its requests must still be ended by ``done``. A load that dies fails the request that began it.
        """
        runner = self.runners.pop(key, None)
        if runner is None:
            return []
        if runner.state is RunnerState.LOADING and self._head is not None:
            job_id, self._head = self._head.id, None
            return [Gone(runner), Refused(job_id, 500, message), *self._pump(now)]
        refused = [Refused(job_id, 500, message) for job_id in runner.waiting]
        runner.waiting.clear()
        return [Gone(runner), *refused, *self._pump(now)]

    def advance(self, now: float) -> list[Effect]:
        """Time passed."""
        effects: list[Effect] = []
        for runner in list(self.runners.values()):
            if runner.state is RunnerState.LOADING and runner.until_s <= now:
                runner.state = RunnerState.LOADED
            elif runner.state is RunnerState.UNLOADING and runner.until_s <= now:
                del self.runners[runner.job.key]
                self.unloads += 1
                self._recovered_at_s = now + gpu.recovery_s()
                effects.append(Gone(runner))
            else:
                self._unload_if_due(runner, now)
        return effects + self._pump(now)

    def next_event_s(self) -> float | None:
        """When ``advance`` has something to do next."""
        times = [self._recovered_at_s] if self._head is not None and self._recovered_at_s else []
        for runner in self.runners.values():
            if runner.state is not RunnerState.LOADED:
                times.append(runner.until_s)
            elif not runner.refs and runner.expires_at_s is not None and runner.expires_at_s != FOREVER_S:
                times.append(runner.expires_at_s)
        return min(times, default=None)

    # -- readings -------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return len(self._pending) + (self._head is not None)

    @property
    def loading(self) -> bool:
        return any(runner.state is not RunnerState.LOADED for runner in self.runners.values())

    def used_bytes(self) -> int:
        return gpu.reserved_bytes() + sum(runner.bytes_vram for runner in self.runners.values())

    def listed(self, now: float) -> list[Runner]:
        """What ``/api/ps`` shows, latest expiry first. A loading model is listed only by the older engine."""
        shown = {RunnerState.LOADED, RunnerState.LOADING} if self.spec.legacy else {RunnerState.LOADED}
        found = [runner for runner in self.runners.values() if runner.state in shown]
        return sorted(found, key=lambda runner: -runner.shown_expiry_s(now))

    # -- the pending loop -----------------------------------------------------------------------------------------

    def _pump(self, now: float) -> list[Effect]:
        """Serve pending requests strictly in order; stop at the first that must wait."""
        effects: list[Effect] = []
        while True:
            if self._head is None:
                if not self._pending:
                    return effects
                self._head = self._pending.popleft()
            granted = self._serve(self._head, now)
            if granted is None:
                return effects
            effects.append(granted)
            self._head = None

    def _serve(self, job: Job, now: float) -> Effect | None:
        if self._recovered_at_s <= now:
            self._recovered_at_s = 0.0
        runner = self.runners.get(job.key)
        if runner is not None and runner.state is not RunnerState.LOADED:
            return None
        if runner is not None and not runner.needs_reload(job):
            return self._grant(job, runner)
        if runner is not None:
            self._evict(runner, now)
            return None
        leaving = any(other.state is RunnerState.UNLOADING for other in self.runners.values())
        if self._recovered_at_s or leaving:
            return None
        if len(self.runners) >= self.spec.max_loaded:
            self._evict(self._victim(), now)
            return None
        planned = self._plan(job, now)
        if planned is None:
            self._evict(self._victim(), now)
            return None
        self.runners[job.key] = planned
        self.loads += 1
        return None

    def _grant(self, job: Job, runner: Runner) -> Granted:
        runner.refs.add(job.id)
        if job.keep_alive_s is not None:
            runner.session_s = job.keep_alive_s
        self._granted[job.id] = runner
        return Granted(job.id, runner)

    def _victim(self) -> Runner:
        """Shortest keep-alive first, then by path; an idle one before a busy one."""
        order = sorted(self.runners.values(), key=lambda runner: (runner.session_s, runner.job.key))
        return next((runner for runner in order if not runner.refs), order[0])

    def _evict(self, runner: Runner, now: float) -> None:
        if runner.state is RunnerState.LOADED:
            runner.session_s = 0.0
            runner.expires_at_s = now
            self._unload_if_due(runner, now)

    def _unload_if_due(self, runner: Runner, now: float) -> None:
        due = runner.expires_at_s is not None and runner.expires_at_s <= now
        if runner.state is RunnerState.LOADED and not runner.refs and due:
            runner.state = RunnerState.UNLOADING
            runner.until_s = now + gpu.unload_s()

    def _plan(self, job: Job, now: float) -> Runner | None:
        """The runner to load now, or None while another has to leave first."""
        model, spec = job.model, self.spec
        slots = 1 if model.embedding_only or model.family in _ONE_SLOT_FAMILIES else spec.parallel
        context = self._context(job)
        automatic = job.signature.num_ctx is None
        free = spec.gpu.vram_bytes - self.used_bytes()
        # without a GPU it is the host's memory, which is never short here
        room = free * calibration()["vram"]["fit_ratio"] if spec.gpu.vram_bytes else math.inf
        while gpu.predicted_bytes(model, context, slots) > room:
            if self.runners:
                return None
            smaller = gpu.smaller_context(context) if automatic and spec.context_length is None else None
            if smaller is None:
                break
            context = smaller
        total = gpu.resident_bytes(model, context, slots)
        on_gpu = 0 if job.signature.num_gpu == 0 else min(total, max(0, free))
        load_s = gpu.load_s(model, spec.disk_bytes_s) if spec.load_s is None else spec.load_s
        session_s = spec.keep_alive_s if job.keep_alive_s is None else job.keep_alive_s
        return Runner(
            job, context, automatic, slots, total, on_gpu, session_s, RunnerState.LOADING, until_s=now + load_s
        )

    def _context(self, job: Job) -> int:
        wanted = job.signature.num_ctx or self.spec.context_length
        return clamp_context(wanted or gpu.default_context(self.spec.gpu, self.spec.version), job.model)

    def _cancel_pending(self, job_id: int, now: float) -> list[Effect]:
        """A pending request is skipped; the load that it began is aborted, and others waiting start it again."""
        if self._head is not None and self._head.id == job_id:
            runner = self.runners.get(self._head.key)
            if runner is not None and runner.state is RunnerState.LOADING:
                del self.runners[self._head.key]
            self._head = None
            return self._pump(now)
        self._pending = deque(job for job in self._pending if job.id != job_id)
        return []

    def _slots(self, runner: Runner) -> list[Effect]:
        taken = runner.take_slots()
        name = runner.job.name
        self.max_active[name] = max(self.max_active.get(name, 0), len(runner.active))
        return [SlotTaken(job_id, runner) for job_id in taken]
