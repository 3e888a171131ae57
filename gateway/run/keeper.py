"""Keeps one replica: carries out what its record decides, and tells the record what happened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, Final

from msgspec import structs

from corral.gateway.layout.plan import ReplicaPlan
from corral.gateway.run.child import Birth, Child, spawn, why_not
from corral.gateway.run.ledger import LedgerEntry
from corral.gateway.run.lifecycle import ProcessRecord
from corral.gateway.run.logs import last_words, size
from corral.gateway.run.processes import boot_id
from corral.gateway.run.surroundings import Surroundings
from corral.gateway.run.transitions import Action, Hold, Kill, Release, Spawn, Terminate, WarmUp
from corral.gateway.run.warmup import warm_up
from corral.model import ProbeResult, ProcessState, ProcessStatus
from corral.probes.ollama import OllamaProbe

log = logging.getLogger(__name__)

CLEAR_S: Final = 5.0
"""A process that is still there this long after SIGKILL hangs in a driver."""
READY_EVERY_S: Final = 0.1
_READY_PROBE_S: Final = 2.0
_LIVE: Final = (ProcessState.STARTING, ProcessState.RUNNING)


class Keeper:
    """One replica and its process."""

    def __init__(self, plan: ReplicaPlan, around: Surroundings) -> None:
        self.plan = plan
        self.leaving = False
        """It is no longer planned, and goes when its process has ended."""
        self.record = ProcessRecord(around.rules, around.rng, around.clock())
        self._next_plan: ReplicaPlan | None = None
        self._around = around
        self._child: Child | None = None
        self._token = ""
        self._log_from = 0
        self._spawning: asyncio.Task[None] | None = None
        self._readying: asyncio.Task[None] | None = None
        self._clearing: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._told = self.record.state, self.record.reason
        self._grumbled: set[str] = set()
        around.feed.hold(plan.id, self.record.reason)

    # -- what is known of it

    @property
    def id(self) -> str:
        return self.plan.id

    @property
    def status(self) -> ProcessStatus:
        record, child = self.record, self._child
        return ProcessStatus(
            id=self.id,
            state=record.state,
            reason=record.reason,
            since_s=record.since_s,
            pid=None if child is None else child.id.pid,
            port=self._around.ports.of(self.id),
            restarts=max(0, record.spawns - 1),
            next_start_s=record.next_start_s,
            adopted=child is not None and child.adopted,
            log=str(self._around.state.log_of(self.id)),
        )

    @property
    def is_idle(self) -> bool:
        """Nothing of it runs or is about to."""
        return self.record.state is ProcessState.STOPPED and not (self._child or self._spawning or self._clearing)

    @property
    def awaits_plan(self) -> bool:
        """Its process was started from an older plan than it has now."""
        return self._next_plan is not None

    def runs_on(self, uuid: str) -> bool:
        """Whether it uses that GPU, or a part of it."""
        return any(uuid in (gpu.uuid, gpu.parent_uuid) for gpu in self.plan.gpus)

    # -- what it is to do

    def adopt(self, child: Child, port: int) -> None:
        self._child, self._token = child, child.token
        self._around.ports.keep(self.id, port)
        self._log_from = size(self._around.state.log_of(self.id))
        log.info("replica_adopted replica=%s pid=%d port=%d", self.id, child.id.pid, port)
        self.do(self.record.adopted(self._around.clock()))

    def replan(self, plan: ReplicaPlan) -> bool:
        """Take over a new plan. Returns whether its process must be restarted for it, which is left to the caller."""
        back, self.leaving = self.leaving, False
        if plan.signature == self.plan.signature:
            self.plan, self._next_plan = plan, None
        else:
            self._next_plan = plan
            if self.record.state in _LIVE:
                return True
            if self.record.state is not ProcessState.STOPPING:
                self._take_next_plan()
                back = back or self.record.wanted
        if back:
            self.do(self.record.start(self._around.clock(), "planned anew"))
        return False

    def leave(self) -> None:
        """It is no longer planned: end it, after what it is doing."""
        self.leaving = True
        self.do(self.record.stop(self._around.clock(), "no longer planned"))

    async def settle(self, limit_s: float) -> None:
        """Wait for what is under way."""
        self._cancel_readying()
        tasks = [task for task in (self._spawning, self._clearing, *self._stopping) if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=limit_s)

    def tick(self) -> None:
        """Look whether its process still lives, and do what is due."""
        self._look()
        inflight = self._around.feed.inflight(self.id) if self.record.state is ProcessState.STOPPING else 0
        self.do(self.record.tick(self._around.clock(), inflight))

    def do(self, actions: Iterable[Action]) -> None:
        """Carry out what the record decided."""
        for action in actions:
            match action:
                case Hold(reason):
                    self._around.feed.hold(self.id, reason)
                case Release():
                    self._around.feed.release(self.id)
                case Spawn():
                    self._spawning = self._task(self._spawn())
                case WarmUp():
                    pass  # the task that found it ready goes on to it
                case Terminate() | Kill():
                    self._end(action)
        self._tell()

    # -- its process

    def _look(self) -> None:
        child = self._child
        how = None if child is None else child.ended()
        if child is None or how is None:
            return
        self._child = None
        self._cancel_readying()
        self._report_end(child, how)
        self._clearing = self._task(self._clear(how))
        if self.record.state is not ProcessState.STOPPING:
            self.do(self.record.ended(self._around.clock(), how))

    def _report_end(self, child: Child, how: str) -> None:
        if self.record.state not in _LIVE:
            log.info('replica_ended replica=%s pid=%d code="%s"', self.id, child.id.pid, how)
            return
        env = {**self._around.environ, **self.plan.env}
        said = last_words(self._around.state.log_of(self.id), env, self._log_from)
        log.warning('replica_exited replica=%s pid=%d code="%s" said="%s"', self.id, child.id.pid, how, said)

    async def _clear(self, how: str) -> None:
        """End what its leader left behind: the runners of its models."""
        left = await self._around.census.clear(self._token, CLEAR_S)
        if left:
            log.error('replica_remains replica=%s pids="%s" why="SIGKILL does not end them"', self.id, left)
        else:
            self._around.ledger.forget(self.id)
        self._clearing = None
        if self.record.state is ProcessState.STOPPING and self._spawning is None:
            self._take_next_plan()
            self.do(self.record.ended(self._around.clock(), how))

    def _end(self, action: Terminate | Kill) -> None:
        self._cancel_readying()
        if self._child is None and self._spawning is None and self._clearing is None:
            self._take_next_plan()
            self.do(self.record.ended(self._around.clock(), "was not running"))
            return
        task = self._task(self._end_soon(action))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _end_soon(self, action: Terminate | Kill) -> None:
        if self._spawning is not None:
            await asyncio.wait([self._spawning])
        if self._child is None:
            return
        if isinstance(action, Terminate):
            await self._child.terminate(self._around.census)
            return
        log.warning('replica_killed replica=%s pid=%d why="%s"', self.id, self._child.id.pid, self.record.reason)
        await self._around.census.clear(self._token, CLEAR_S)

    async def _spawn(self) -> None:
        around = self._around
        try:
            self._take_next_plan()
            await self._be_clear()
            child = await self._start() if self.record.state is ProcessState.STARTING else None
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            # The machine's fault or the configuration's, and never a reason for the gateway to end.
            self._spawning = None
            around.ledger.forget(self.id)
            why = f"cannot be started: {why_not(error)}"
            log.warning('replica_not_started replica=%s error="%s"', self.id, why)
            self.do(self.record.ended(around.clock(), why))
            return
        self._child, self._spawning = child, None
        if child is None:
            self.do(self.record.ended(around.clock(), "was stopped before it was started"))
            return
        for problem in set(child.problems) - self._grumbled:
            self._grumbled.add(problem)
            log.warning('replica_hampered replica=%s problem="%s"', self.id, problem)
        log.info("replica_started replica=%s pid=%d port=%d", self.id, child.id.pid, around.ports.of(self.id))
        if self.record.state is ProcessState.STARTING:
            self._readying = self._task(self._become_ready())
        self._tell(always=True)

    async def _be_clear(self) -> None:
        """Nothing of an earlier start may be left: it holds the GPU's memory."""
        if self._clearing is not None:
            await asyncio.wait([self._clearing])
        left = await self._around.census.clear(self._token, CLEAR_S) if self._token else []
        if left:
            raise OSError(f"its earlier processes {left} cannot be ended")

    async def _start(self) -> Child:
        around, plan = self._around, self.plan
        before = around.ports.of(self.id)
        port = around.ports.choose(self.id)
        if port != before:
            around.feed.replicas_changed()
        self._token = around.state.new_token()
        path = around.state.log_of(self.id)
        self._log_from = size(path)
        entry = LedgerEntry(id=self.id, token=self._token, signature=plan.signature, port=port, boot=boot_id())
        around.ledger.note(entry)
        child = await spawn(Birth(plan, port, self._token, around.environ, path))
        around.ledger.note(structs.replace(entry, pid=child.id.pid, start_ticks=child.id.start_ticks))
        return child

    async def _become_ready(self) -> None:
        probe = OllamaProbe(self._around.session, self._around.replica(self.plan))
        while True:
            result, _ = await probe.liveness(_READY_PROBE_S)
            if result is ProbeResult.ANSWERED:
                break
            await asyncio.sleep(READY_EVERY_S)
        self._look()
        if self._child is None or self.record.state is not ProcessState.STARTING:
            return  # what answered is another program, on the port that this one did not get; or it is to end
        self.do(self.record.answered(self._around.clock()))
        around = self._around
        models = around.warmup_models(self.plan)
        port, seconds = around.ports.of(self.id), around.warmup.seconds
        try:
            await warm_up(around.session, self.id, port, models, seconds, around.clock)
        except Exception:  # cold it serves, too; kept out for ever it would not
            log.exception("warm_up_failed replica=%s", self.id)
        self._readying = None
        self.do(self.record.warm(around.clock()))

    # -- small steps

    def _take_next_plan(self) -> None:
        if self._next_plan is not None:
            self.plan, self._next_plan = self._next_plan, None
            self.record.keep_gpus(self.runs_on)
            self._around.feed.replicas_changed()

    def _cancel_readying(self) -> None:
        task, self._readying = self._readying, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"replica {self.id}")
        task.add_done_callback(_log_failure)
        return task

    def _tell(self, *, always: bool = False) -> None:
        now = self.record.state, self.record.reason
        if now == self._told and not always:
            return
        self._told = now
        self._around.feed.process_changed(self.status)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("replica_task_failed task=%r", task.get_name(), exc_info=task.exception())
