"""What Corral does with this machine: it reads the GPUs, plans the Ollamas, keeps them running, and tells the gateway.

The parts know nothing of each other: a loss that the board sees becomes the supervisor's affair here, and what becomes
of a replica's process here becomes a hold in the scheduler.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Final, Protocol

import aiohttp

from corral.errors import CorralError, OperatorError
from corral.gateway.config import Config
from corral.gateway.inmemory import InMemory
from corral.gateway.layout.choose import make_plan
from corral.gateway.layout.facts import gather
from corral.gateway.layout.free import free_bytes
from corral.gateway.layout.names import gpu_uuids
from corral.gateway.layout.plan import Plan, ReplicaPlan
from corral.gateway.run.census import Census
from corral.gateway.run.ledger import default_state_dir
from corral.gateway.run.supervisor import Supervisor
from corral.gateway.serve.gpus import GpuBoard
from corral.model import GpuState, Hold, LoadedModel, Order, ProcessState, ProcessStatus, Replica
from corral.probes.gpu import GpuSource
from corral.probes.reader import GpuReader

log: Final = logging.getLogger("corral.gateway")

SEEK_S: Final = 30.0
"""Between two looks for GPUs that could not be read."""
_FIRST_SAMPLES_S: Final = 1.0
_ASKED: Final = "asked for by the operator"
_GONE: Final = (ProcessState.STOPPED, ProcessState.FAILED)
"""States that end by themselves only if something else happens: nobody should wait for it."""


class OwnerFeed(Protocol):
    """The gateway's side. Called on the event loop."""

    def replicas_changed(self) -> None: ...

    def set_hold(self, replica_id: str, hold: Hold | None) -> None: ...

    def inflight(self, replica_id: str) -> int: ...


class Owner:
    """Built by ``app.py``. Call :meth:`start` once and :meth:`close` at the end."""

    def __init__(
        self,
        feed: OwnerFeed,
        board: GpuBoard,
        sources: Sequence[GpuSource],
        session: aiohttp.ClientSession,
        environ: Mapping[str, str],
        clock: Callable[[], float],
        rng: Random,
        seek_s: float = SEEK_S,
    ) -> None:
        self._seek_s = seek_s
        self._feed = feed
        self._board = board
        self._reader = GpuReader(sources, board, clock, board.interval_s)
        self._session = session
        self._environ = environ
        self._clock = clock
        self._rng = rng
        self._supervisor: Supervisor | None = None
        self._plans: dict[str, ReplicaPlan] = {}
        self._external: tuple[Replica, ...] = ()
        self._discovered: tuple[Replica, ...] = ()
        """As they were found, whatever else has their names or addresses."""
        self._advice: tuple[str, ...] = ()
        """The plan's own."""
        self._free_bytes: dict[str, int] = {}
        self._in_memory = InMemory(board, clock, self._restart_running)
        self._later: asyncio.Task[None] | None = None
        self._seeking: asyncio.Task[None] | None = None
        self._config = Config()
        self._using = asyncio.Lock()
        board.watcher = self

    # -- begin, change, end

    async def start(self, config: Config) -> None:
        """Find the GPUs, and start what is planned for them. Raises OperatorError where the plan cannot be carried out.

        Where the layout needs nothing of the GPUs, a slow driver does not hold up the start.
        """
        if _needs_gpus(config):
            self._board.use(await self._reader.start())
            await self.use(config)
            self._seeking = asyncio.create_task(self._seek(), name="GPUs that could not be read")
        else:
            await self.use(config)
            self._later = asyncio.create_task(self._survey_later(), name="first look at the GPUs")

    async def reload(self, config: Config) -> None:
        """As :meth:`use`, where GPUs matter after a look for those that have come since."""
        if self._later is not None:
            await asyncio.wait([self._later])
        if _needs_gpus(config):
            self._board.use(await self._reader.look_again())
        await self.use(config)

    async def check(self, config: Config) -> None:
        """Raises OperatorError where :meth:`use` would; changes nothing."""
        self._resolve(config)
        if config.owns_replicas:
            await self._plan(config)

    async def use(self, config: Config) -> None:
        """Plan anew for ``config`` and change what runs to it. Raises OperatorError, and then nothing has changed."""
        async with self._using:
            await self._use(config)

    async def _use(self, config: Config) -> None:
        external = self._resolve(config)
        plan = await self._plan(config) if config.owns_replicas else Plan(())
        begun = self._supervise(config) if self._supervisor is None and plan.replicas else None
        self._config, self._external = config, external
        self._in_memory.reserve_bytes = config.memory_reserve_bytes
        self._in_memory.forget()
        self._board.interval_s = config.probes.gpu_interval_s
        self._reader.set_interval(config.probes.gpu_interval_s)
        self._plans = {replica.id: replica for replica in plan.replicas}
        if begun is not None:
            await self._begin(begun, plan)
        elif self._supervisor is not None:
            self._supervisor.set_rules(
                restart=config.restart,
                logs=config.replica_logs,
                warmup=config.warmup,
                first_port=config.ollama.first_port,
                drain_s=config.timeouts.drain_s,
            )
            self._supervisor.set_plans(plan.replicas)
        else:
            self._feed.replicas_changed()
        self._advice = plan.advice
        for text in plan.notes:
            log.info('plan note="%s"', text)
        for text in plan.advice:
            log.warning('advice text="%s"', text)

    async def close(self) -> None:
        """End every Ollama that runs for Corral, and the reading of the GPUs."""
        for task in filter(None, (self._later, self._seeking)):
            task.cancel()
            await asyncio.wait([task])
        if self._supervisor is not None:
            await self._supervisor.close()
        await self._reader.close()

    async def _seek(self) -> None:
        """Look again for GPUs as long as some cannot be read, and use those that are found: a driver may come late."""
        while True:
            await asyncio.sleep(self._seek_s)
            if not self._board.survey.problems:
                continue
            before = {gpu.uuid for gpu in self._board.survey.gpus}
            self._board.use(await self._reader.look_again())
            if {gpu.uuid for gpu in self._board.survey.gpus} == before:
                continue
            try:
                await self.use(self._config)
            except OperatorError as error:
                log.error('new_gpus_not_used error="%s"', str(error).replace("\n", "; "))

    async def _survey_later(self) -> None:
        self._board.use(await self._reader.start())

    async def _plan(self, config: Config) -> Plan:
        await self._first_samples()
        await self._measure_free()
        facts = await asyncio.to_thread(gather, config, self._board.survey, self._environ)
        facts = replace(facts, free_bytes=dict(self._free_bytes))
        if facts.program is None:
            raise OperatorError(_no_program(config))
        return make_plan(config, facts)

    async def _measure_free(self) -> None:
        """What is free of a GPU is measured once: later, what runs there by then would count as taken."""
        unknown = [sample for sample in self._board.samples() if sample.uuid not in self._free_bytes]
        if unknown:
            own = await Census().take("")
            self._free_bytes |= free_bytes(unknown, {process.id.pid for process in own})

    async def _first_samples(self) -> None:
        """Wait a moment for a reading of each GPU; one that is late is planned for without."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_SAMPLES_S):
                await self._board.looked.wait()

    def _resolve(self, config: Config) -> tuple[Replica, ...]:
        survey = self._board.survey
        return tuple(
            each.to_replica(gpu_uuids(each.gpus, survey, f"replicas[{index}].gpus"))
            for index, each in enumerate(config.replicas)
        )

    def _supervise(self, config: Config) -> Supervisor:
        """One that has taken its folder; OperatorError where it cannot."""
        return Supervisor(
            self,
            state_dir=config.state_dir or default_state_dir(self._environ),
            environ=self._environ,
            restart=config.restart,
            logs=config.replica_logs,
            warmup=config.warmup,
            first_port=config.ollama.first_port,
            drain_s=config.timeouts.drain_s,
            clock=self._clock,
            rng=self._rng,
            session=self._session,
        )

    async def _begin(self, supervisor: Supervisor, plan: Plan) -> None:
        self._supervisor = supervisor
        for uuid, reason in self._board.lost().items():
            supervisor.gpu_lost(uuid, reason)
        await supervisor.start(plan.replicas)

    # -- what others may know

    def replicas(self) -> tuple[Replica, ...]:
        """Those that Corral runs, those that somebody else runs, those that were found; not yet one of these that is
        named as an owned one that is about to go."""
        owned = () if self._supervisor is None else self._supervisor.replicas()
        taken = {replica.id for replica in owned}
        given = (*owned, *(replica for replica in self._external if replica.id not in taken))
        return (*given, *_beside(given, self._discovered))

    def set_discovered(self, replicas: tuple[Replica, ...]) -> None:
        """These were found now; of those that are there already by name or address the configuration has the say."""
        self._discovered = replicas
        self._feed.replicas_changed()

    def hold_discovered(self, replica_id: str, hold: Hold | None) -> None:
        """Hold one that was found, or (None) let it have requests again."""
        if any(replica.id == replica_id and replica.found_by is not None for replica in self.replicas()):
            self._feed.set_hold(replica_id, hold)

    def store_folders(self) -> dict[str, str | None]:
        """By id of the replicas that Corral runs: the folder of their models; None: Ollama itself chooses it."""
        return {id: plan.env.get("OLLAMA_MODELS") for id, plan in self._plans.items()}

    def processes(self) -> tuple[ProcessStatus, ...]:
        return () if self._supervisor is None else self._supervisor.statuses()

    def gpus(self) -> tuple[GpuState, ...]:
        return self._board.states()

    def advice(self) -> tuple[str, ...]:
        return (*self._advice, *self._in_memory.advice)

    # -- what the operator asks

    def restart_all(self) -> None:
        """One after the other. Raises CorralError where Corral runs none."""
        self._running().restart_all(_ASKED)

    def order(self, order: Order, replica_id: str) -> None:
        """Restart, stop or start the Ollama of one replica. Raises CorralError where Corral does not run it."""
        supervisor = self._running()
        act = {
            Order.RESTART: supervisor.restart,
            Order.STOP: supervisor.stop_replica,
            Order.START: supervisor.start_replica,
        }
        try:
            act[order](replica_id, _ASKED)
        except KeyError:
            if any(status.id == replica_id for status in self.processes()):
                raise CorralError(f"{replica_id} is about to end for good") from None
            raise CorralError(f"{replica_id} is not run by Corral; whoever runs it can {order.value} it") from None

    def _running(self) -> Supervisor:
        if self._supervisor is None or not self._supervisor.statuses():
            raise CorralError("Corral runs no Ollama of its own here")
        return self._supervisor

    # -- the supervisor's feed

    def replicas_changed(self) -> None:
        self._feed.replicas_changed()

    def hold(self, replica_id: str, reason: str) -> None:
        self._feed.set_hold(replica_id, Hold(reason, coming=self._state(replica_id) not in _GONE))

    def release(self, replica_id: str) -> None:
        self._feed.set_hold(replica_id, None)

    def inflight(self, replica_id: str) -> int:
        return self._feed.inflight(replica_id)

    def process_changed(self, status: ProcessStatus) -> None:
        if status.state is not ProcessState.RUNNING:
            self._feed.set_hold(status.id, Hold(f"{status.state.value}: {status.reason}", status.state not in _GONE))

    def _state(self, replica_id: str) -> ProcessState:
        states = {status.id: status.state for status in self.processes()}
        return states.get(replica_id, ProcessState.STARTING)

    # -- the board's watcher

    def gpu_lost(self, uuid: str, reason: str) -> None:
        if self._supervisor is not None:
            self._supervisor.gpu_lost(uuid, reason)

    def gpu_back(self, uuid: str) -> None:
        if self._supervisor is not None:
            self._supervisor.gpu_back(uuid)

    def gpu_xid(self, uuid: str, code: int) -> None:
        if self._supervisor is not None:
            self._supervisor.gpu_xid(uuid, code)

    def gpu_read(self, uuid: str, *, well: bool) -> None:
        if self._supervisor is not None:
            self._supervisor.gpu_read(uuid, well=well)

    # -- what is loaded

    def loaded(self, replica_id: str, models: Sequence[LoadedModel]) -> None:
        """A reading of a replica's ``/api/ps``."""
        plan = self._plans.get(replica_id)
        if plan is not None:
            self._in_memory.read(plan, models)

    def _restart_running(self, replica_id: str, why: str) -> bool:
        if self._supervisor is None or self._state(replica_id) is not ProcessState.RUNNING:
            return False
        self._supervisor.restart(replica_id, why)
        return True


def _beside(given: Sequence[Replica], found: Sequence[Replica]) -> list[Replica]:
    ids, places = {each.id for each in given}, {(each.host, each.port) for each in given}
    return [each for each in found if each.id not in ids and (each.host, each.port) not in places]


def _needs_gpus(config: Config) -> bool:
    return config.owns_replicas or any(replica.gpus for replica in config.replicas)


def _no_program(config: Config) -> str:
    binary = config.ollama.binary
    return (
        f"the program {binary!r} was not found, so no Ollama can be started\n"
        "  get it from https://ollama.com/download, or name it: ollama: {binary: /path/to/ollama}\n"
        "  Ollamas that run elsewhere are listed under replicas: (corral check-config --help)\n"
        "  without one, `corral demo` shows Corral with emulated replicas"
    )
