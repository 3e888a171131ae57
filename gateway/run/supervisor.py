"""Runs the planned Ollamas: starts them, keeps them running, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Final

import aiohttp

from corral.gateway.config.owned import ReplicaLogsConfig, RestartConfig, WarmupConfig
from corral.gateway.layout.plan import ReplicaPlan
from corral.gateway.run.heritage import keepable
from corral.gateway.run.keeper import CLEAR_S, Keeper
from corral.gateway.run.ledger import Ledger, StateDir
from corral.gateway.run.lifecycle import LifecycleRules
from corral.gateway.run.ports import Ports
from corral.gateway.run.rolling import Rolling
from corral.gateway.run.rotation import Rotation
from corral.gateway.run.surroundings import SupervisorFeed, Surroundings
from corral.gateway.run.xid import CRITICAL_XIDS, LOST_XIDS
from corral.model import ProcessStatus, Replica

log = logging.getLogger(__name__)

TICK_S: Final = 0.1
LOST_DRAIN_S: Final = 2.0
"""Requests on a GPU that is gone will not be answered."""
FAULT_DRAIN_S: Final = 10.0


class Supervisor:
    """All replicas that Corral runs. Call :meth:`start` once, then anything, and :meth:`close` at the end."""

    def __init__(
        self,
        feed: SupervisorFeed,
        *,
        state_dir: Path,
        environ: Mapping[str, str],
        restart: RestartConfig,
        logs: ReplicaLogsConfig,
        warmup: WarmupConfig,
        first_port: int,
        drain_s: float,
        clock: Callable[[], float],
        rng: Random,
        session: aiohttp.ClientSession,
    ) -> None:
        """Takes ``state_dir`` for itself until :meth:`close`; OperatorError where it cannot."""
        self._feed = feed
        self._clock = clock
        self._state = StateDir(state_dir)
        self._logs = Rotation(logs, lambda: map(self._state.log_of, self._keepers))
        self._around = Surroundings(
            feed=feed,
            state=self._state,
            ledger=Ledger(state_dir),
            ports=Ports(first_port),
            environ=environ,
            rules=_rules(restart, drain_s),
            warmup=warmup,
            clock=clock,
            rng=rng,
            session=session,
        )
        self._keepers: dict[str, Keeper] = {}
        self._lost: dict[str, str] = {}
        self._rolling = Rolling()
        self._opened = False
        self._tasks: list[asyncio.Task[None]] = []

    # -- what others may know

    def replicas(self) -> tuple[Replica, ...]:
        """Where they are, or will be: those in plan order, then those that are about to leave."""
        return tuple(self._around.replica(keeper.plan) for keeper in self._keepers.values())

    def statuses(self) -> tuple[ProcessStatus, ...]:
        """In the same order."""
        return tuple(keeper.status for keeper in self._keepers.values())

    @property
    def rolling(self) -> tuple[str, ...]:
        """Replicas of the rolling restart that are not through."""
        return self._rolling.left

    # -- begin and end

    async def start(self, plans: Sequence[ReplicaPlan]) -> None:
        """Keep what an earlier gateway left and still fits, end the rest of it, and start the others; does not wait
        until they serve."""
        around = self._around
        entries = around.ledger.read()
        found = await around.census.take(self._state.home)
        kept = await keepable(entries, found, {plan.id: plan for plan in plans}, around.session)
        for plan in plans:
            self._add(plan)
        for id, one in kept.items():
            around.ledger.note(one.entry)
            self._keepers[id].adopt(one.child, one.entry.port)
        self._choose_ports()
        self._tell_lost()
        spared = {one.entry.token for one in kept.values()}
        gone = [entry.id for entry in entries if entry.id not in kept]
        if all(process.token in spared for process in found):
            self._open(gone)
        else:
            self._tasks.append(asyncio.create_task(self._open_later(spared, gone), name="end old replicas"))
        self._tasks.append(asyncio.create_task(self._run(), name="supervisor"))
        self._tasks.append(asyncio.create_task(self._logs.run(), name="replica logs"))

    async def close(self) -> None:
        """End everything that was started, asked first and then by force; bounded. Requests are not waited for."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._rolling.clear()
        keepers = list(self._keepers.values())
        for keeper in keepers:
            keeper.leaving = True  # nobody starts it again
            keeper.do(keeper.record.stop(self._clock(), "the gateway stops", 0.0))
        await asyncio.gather(*(keeper.settle(CLEAR_S) for keeper in keepers))
        left = await self._end_all(())
        for keeper in keepers:
            keeper.tick()
        await asyncio.gather(*(keeper.settle(CLEAR_S) for keeper in keepers))
        if left:
            log.error('replicas_remain pids="%s" why="SIGKILL does not end them"', left)
        self._state.close()

    # -- what is wanted

    def set_plans(self, plans: Sequence[ReplicaPlan]) -> None:
        """From now on these: new ones are started, others ended, and changed ones restarted one at a time. One whose
        process needs no change goes on."""
        wanted = {plan.id: plan for plan in plans}
        changed = [plan.id for plan in plans if plan.id in self._keepers and self._keepers[plan.id].replan(plan)]
        for plan in plans:
            if plan.id not in self._keepers:
                self._add(plan)
        for id, keeper in self._keepers.items():
            if id not in wanted and not keeper.leaving:
                keeper.leave()
        self._keepers = {id: self._keepers[id] for id in (*wanted, *self._keepers)}
        self._choose_ports()
        self._tell_lost()
        if self._opened:
            self._start_new()
        self._rolling.add(changed, "its plan changed", for_plan=True)

    def set_rules(
        self,
        *,
        restart: RestartConfig,
        logs: ReplicaLogsConfig,
        warmup: WarmupConfig,
        first_port: int,
        drain_s: float,
    ) -> None:
        """Other limits from now on; what they are does not end a process."""
        around = self._around
        around.rules, around.warmup, around.ports.first_port = _rules(restart, drain_s), warmup, first_port
        for keeper in self._keepers.values():
            keeper.record.rules = around.rules
        self._logs.set_limits(logs)

    def restart(self, replica_id: str, why: str) -> None:
        """Anew, after what it is doing; also one that failed or was stopped. KeyError: no such replica."""
        keeper = self._planned(replica_id)
        keeper.do(keeper.record.restart(self._clock(), why))

    def restart_all(self, why: str) -> None:
        """All, one at a time, each when the one before serves again; one that fails ends it."""
        self._rolling.add([id for id, keeper in self._keepers.items() if not keeper.leaving], why)

    def stop_replica(self, replica_id: str, why: str) -> None:
        """End it, after what it is doing, until :meth:`start_replica`. KeyError: no such replica."""
        keeper = self._planned(replica_id)
        keeper.do(keeper.record.stop(self._clock(), why))

    def start_replica(self, replica_id: str, why: str) -> None:
        """Start one that was stopped or failed. KeyError: no such replica."""
        keeper = self._planned(replica_id)
        keeper.do(keeper.record.start(self._clock(), why))

    # -- GPUs

    def gpu_lost(self, uuid: str, reason: str) -> None:
        """Nothing runs on it until :meth:`gpu_back`."""
        self._lost[uuid] = reason
        self._tell_lost()

    def gpu_back(self, uuid: str) -> None:
        """It can be used again, whatever was wrong with it."""
        self._lost.pop(uuid, None)
        for keeper in self._on(uuid):
            keeper.do(keeper.record.gpu_fit(uuid, self._clock()))

    def gpu_read(self, uuid: str, *, well: bool = True) -> None:
        """One reading of it. After an Xid, its replicas are started again when it has been read well for a while."""
        for keeper in self._on(uuid):
            keeper.do(keeper.record.gpu_read(uuid, self._clock(), well=well))

    def gpu_xid(self, uuid: str, code: int) -> None:
        """Its driver reported an error; those that are one program's own fault stop nothing."""
        what = CRITICAL_XIDS.get(code)
        if what is None:
            return
        drain_s = LOST_DRAIN_S if code in LOST_XIDS else FAULT_DRAIN_S
        for keeper in self._on(uuid):
            log.warning('replica_gpu_fault replica=%s gpu=%s xid=%d what="%s"', keeper.id, uuid, code, what)
            keeper.do(keeper.record.gpu_faulted(uuid, self._clock(), f"Xid {code}: {what}", drain_s))

    # -- steps

    def _add(self, plan: ReplicaPlan) -> None:
        self._keepers[plan.id] = Keeper(plan, self._around)

    def _planned(self, replica_id: str) -> Keeper:
        keeper = self._keepers[replica_id]
        if keeper.leaving:
            raise KeyError(replica_id)
        return keeper

    def _on(self, uuid: str) -> list[Keeper]:
        return [keeper for keeper in self._keepers.values() if keeper.runs_on(uuid)]

    def _tell_lost(self) -> None:
        for uuid, reason in self._lost.items():
            for keeper in self._on(uuid):
                keeper.do(keeper.record.gpu_unfit(uuid, self._clock(), f"GPU lost: {reason}", LOST_DRAIN_S))

    def _choose_ports(self) -> None:
        """Known before they are used, so that the gateway can tell where a replica will be."""
        self._around.exclusive = frozenset().union(*(k.plan.models or () for k in self._keepers.values()))
        for id in self._keepers:
            if not self._around.ports.has(id):
                try:
                    self._around.ports.choose(id)
                except OSError as error:
                    log.warning('port_not_found replica=%s error="%s"', id, error)
        self._feed.replicas_changed()

    async def _open_later(self, spared: set[str], gone: list[str]) -> None:
        """Nothing is started while old processes hold GPUs and ports."""
        log.info('old_replicas_ending why="their plans changed, or they do not answer"')
        left = await self._end_all(spared)
        if left:
            log.error('old_replicas_remain pids="%s" why="SIGKILL does not end them"', left)
        self._open(gone)

    async def _end_all(self, spared: Collection[str]) -> list[int]:
        return await self._around.census.end(self._state.home, spared, self._around.rules.stop_s, CLEAR_S)

    def _open(self, gone: list[str]) -> None:
        self._opened = True
        for id in gone:
            self._around.ledger.forget(id)
        self._start_new()

    def _start_new(self) -> None:
        """Start those that never ran, but none on a GPU that one that leaves still uses: its models would not fit."""
        leaving = {gpu.uuid for keeper in self._keepers.values() if keeper.leaving for gpu in keeper.plan.gpus}
        for keeper in self._keepers.values():
            is_new = keeper.record.spawns == 0 and not keeper.leaving and not keeper.record.wanted
            if is_new and not any(keeper.runs_on(uuid) for uuid in leaving):
                keeper.do(keeper.record.start(self._clock(), "planned"))

    # -- time

    async def _run(self) -> None:
        trouble = ""
        while True:
            try:
                self._tick()
            except Exception as error:
                if repr(error) != trouble:
                    log.exception("supervisor_failed")
                trouble = repr(error)
            await asyncio.sleep(TICK_S)

    def _tick(self) -> None:
        for keeper in list(self._keepers.values()):
            keeper.tick()
            if keeper.leaving and keeper.is_idle:
                del self._keepers[keeper.id]
                self._around.ports.drop(keeper.id)
                self._feed.replicas_changed()
                self._feed.release(keeper.id)  # its name may be that of another now, which somebody else runs
        if self._opened:
            self._start_new()
        self._rolling.tick(self._keepers, self._clock())


def _rules(restart: RestartConfig, drain_s: float) -> LifecycleRules:
    return LifecycleRules(
        first_s=restart.first_s,
        max_s=restart.max_s,
        give_up_after=restart.give_up_after,
        window_s=restart.window_s,
        ready_s=restart.ready_s,
        stop_s=restart.stop_s,
        drain_s=drain_s,
    )
