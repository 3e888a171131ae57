"""The machine in real time: its timers, the decode tickers, and what waits for them. All on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from corral.emulator.ask import Rejected
from corral.emulator.batch import Batch, Sequence, Sink
from corral.emulator.catalog import calibration
from corral.emulator.compute import Compute
from corral.emulator.effects import Effect, Gone, Granted, Refused, SlotTaken
from corral.emulator.gpu import Speed
from corral.emulator.machine import Machine
from corral.emulator.prefix import PrefixCache, common_prefix
from corral.emulator.runner import Job, Runner, RunnerState
from corral.emulator.text import stamp

_LEAST_DELAY_S = 0.001
"""Timers of the loop count in milliseconds: several steps may fall due at once."""
_MOST_LATE_S = 0.25
"""A ticker later than this (a busy CPU) does not try to catch up."""


class Output(Sink, Protocol):
    """A sink that can also be flushed and told that it will get no more."""

    def flush(self) -> None:
        """Everything of this firing was stepped."""
        ...

    def finished(self) -> None:
        """The last token was made."""
        ...

    def failed(self, message: str) -> None:
        """The runner died."""
        ...


class Ticker:
    """Steps one batch: one timer however many sequences there are."""

    def __init__(self, rig: Rig, batch: Batch, *, on_gpu: bool) -> None:
        self._rig = rig
        self.batch = batch
        self._on_gpu = on_gpu
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.outputs: dict[Output, Sequence] = {}

    def add(self, output: Output, prefill_tokens: int, context_tokens: int) -> Sequence:
        sequence = Sequence(output, prefill_tokens, context_tokens)
        self.outputs[output] = sequence
        self.batch.add(sequence)
        if self._timer is None:
            self._due_s = self._rig.now() + self._step_s()
            self._arm()
        return sequence

    def remove(self, output: Output) -> None:
        sequence = self.outputs.pop(output, None)
        if sequence is not None:
            self.batch.remove(sequence)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _step_s(self) -> float:
        stretch = self._rig.compute.stretch() if self._on_gpu else 1.0
        return self.batch.begin_step() * stretch

    def _arm(self) -> None:
        delay = (self._due_s - self._rig.now()) / self._rig.speed
        self._timer = self._rig.loop.call_later(max(delay, _LEAST_DELAY_S), self._fire)

    def _fire(self) -> None:
        now = self._rig.now()
        if now - self._due_s > _MOST_LATE_S * self._rig.speed:
            self._due_s = now
        moment = stamp(time.time_ns())
        touched: dict[Output, None] = {}
        while self._due_s <= now and len(self.batch):
            self._step(moment, touched)
            if len(self.batch):
                self._due_s += self._step_s()
        for output in touched:
            output.flush()
        self._timer = None
        if len(self.batch):
            self._arm()

    def _step(self, moment: bytes, touched: dict[Output, None]) -> None:
        made = self.batch.finish_step()
        self._rig.tokens += len(made)
        for sequence in made:
            output: Output = sequence.sink  # type: ignore[assignment]
            touched[output] = None
            if output.step(moment):
                self.remove(output)
                output.finished()


class Rig:
    """One emulated Ollama's scheduler and GPU, driven by the loop's clock times ``speed``."""

    def __init__(self, machine: Machine, speed: float, fixed_tok_s: float | None = None) -> None:
        self.machine = machine
        self.speed = speed
        self.loop = asyncio.get_running_loop()
        self.tokens = 0
        self.outside = 0
        """Streams whose tokens another engine makes."""
        self.on_runners: Callable[[Iterable[Runner]], None] | None = None
        """Told which models are in memory (loading, loaded or leaving) after everything that may change that."""
        self.compute: Compute[bytes] = Compute(machine.spec, common_prefix, fixed_tok_s)
        self._waiting: dict[int, asyncio.Future[Runner]] = {}
        self._tickers: dict[Runner, Ticker] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for_s: float | None = None
        cloud = calibration()["cloud"]
        self._cloud = Ticker(self, Batch(_cloud_speed(cloud["decode_tok_s"])), on_gpu=False)

    def now(self) -> float:
        """Seconds of the emulated machine."""
        return self.loop.time() * self.speed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.speed)

    # -- requests -------------------------------------------------------------------------------------------------

    async def runner(self, job: Job) -> Runner:
        """Wait until the model is loaded as asked; Rejected when there is no room to wait."""
        return await self._wait(job.id, self.machine.submit(job, self.now()))

    def is_loaded(self, job: Job) -> bool:
        """Whether its model is in memory as asked."""
        runner = self.machine.runners.get(job.key)
        return runner is not None and runner.state is RunnerState.LOADED and not runner.needs_reload(job)

    async def slot(self, job: Job) -> None:
        """Wait for one of the runner's slots."""
        future: asyncio.Future[Runner] = self.loop.create_future()
        self._waiting[job.id] = future
        self._carry_out(self.machine.want_slot(job.id))
        await future

    def done(self, job: Job, *, leak_slot: bool = False) -> None:
        """The request is over, whatever became of it."""
        future = self._waiting.pop(job.id, None)
        if future is not None:
            future.cancel()
        self._carry_out(self.machine.done(job.id, self.now(), leak_slot=leak_slot))

    def expire(self, key: str) -> None:
        self.machine.expire(key, self.now())
        self._carry_out([])

    def out_of_memory(self) -> None:
        self.machine.expire_all(self.now())
        self._carry_out([])

    def crash(self, runner: Runner, message: str) -> None:
        """The runner's process dies: each of its requests fails, the next one loads it again."""
        if self.machine.runners.get(runner.job.key) is not runner:
            return
        ticker = self._tickers.get(runner)
        outputs = list(ticker.outputs) if ticker is not None else []
        self._carry_out(self.machine.crash(runner.job.key, self.now(), message))
        for output in outputs:
            output.failed(message)

    # -- decoding -------------------------------------------------------------------------------------------------

    def ticker(self, runner: Runner | None) -> Ticker:
        """What steps this runner's sequences (None: the cloud's)."""
        if runner is None:
            return self._cloud
        ticker = self._tickers.get(runner)
        if ticker is None:
            ticker = self._tickers[runner] = Ticker(self, self.compute.batch(runner), on_gpu=True)
        return ticker

    def cache(self, runner: Runner) -> PrefixCache[bytes]:
        return self.compute.cache(runner)

    def active_streams(self) -> int:
        return self.outside + sum(len(ticker.batch) for ticker in [*self._tickers.values(), self._cloud])

    # -- effects --------------------------------------------------------------------------------------------------

    async def _wait(self, job_id: int, effects: Iterable[Effect]) -> Runner:
        future: asyncio.Future[Runner] = self.loop.create_future()
        self._waiting[job_id] = future
        self._carry_out(effects)
        return await future

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Granted(job_id, runner) | SlotTaken(job_id, runner):
                    self._resolve(job_id, runner)
                case Refused(job_id, status, message):
                    future = self._waiting.pop(job_id, None)
                    if future is not None and not future.done():
                        future.set_exception(Rejected(status, message))
                case Gone(runner):
                    self._forget(runner)
        if self.on_runners is not None:
            self.on_runners(self.machine.runners.values())
        self._arm()

    def _resolve(self, job_id: int, runner: Runner) -> None:
        future = self._waiting.pop(job_id, None)
        if future is not None and not future.done():
            future.set_result(runner)

    def _forget(self, runner: Runner) -> None:
        self.compute.forget(runner)
        ticker = self._tickers.pop(runner, None)
        if ticker is not None:
            ticker.stop()

    def _arm(self) -> None:
        due = self.machine.next_event_s()
        if due == self._armed_for_s and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_for_s = due
        if due is not None:
            delay = max(0.0, (due - self.now()) / self.speed)
            self._timer = self.loop.call_later(delay, self._advance)

    def _advance(self) -> None:
        self._timer = None
        self._carry_out(self.machine.advance(self.now()))


def _cloud_speed(tok_s: float) -> Speed:
    return Speed(
        step_s=1.0 / tok_s,
        context_token_s=0.0,
        prefill_tok_s=1e6,
        extra_s=(0.0, 0.0, 0.0),
        fixed_tok_s=tok_s,
    )
