"""The gateway as one object: what every client connection shares, and what happens as time passes."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Final

from corral import __version__
from corral.gateway.carrier import Carrier
from corral.gateway.config import Config
from corral.gateway.ended import Ended, Listener
from corral.gateway.gpufeed import GpuFeed
from corral.gateway.owner import Owner
from corral.gateway.serve.lag import LoopLag
from corral.gateway.serve.metrics import Metrics
from corral.gateway.serve.orca import LoadReport
from corral.gateway.serve.pages import Pages
from corral.gateway.serve.poller import Poller
from corral.gateway.store.stores import Stores
from corral.gateway.trace import Tracer
from corral.gateway.wire.answering import Answering
from corral.gateway.wire.browser import BrowserRules
from corral.gateway.wire.client import ClientConnection, State
from corral.gateway.wire.exchange import Exchange
from corral.gateway.wire.pool import Pool
from corral.gateway.wire.routes import Duty
from corral.gateway.wire.upload import Upload
from corral.model import Choice, Health, Hold, OllamaSample, Order, ProbeResult, ReplicaState, Snapshot, TreeLoad

log: Final = logging.getLogger("corral.gateway")

_TICK_S: Final = 0.25
_WATCH_S: Final = 0.04
_SWEEP_TICKS: Final = 20
"""Ticks between two looks at idle connections."""
_ON_ITS_WAY_S: Final = 0.25
"""So long after a connection was opened, or its last answer ended, a request may be on its way."""
_SETTLE_S: Final = 0.01


Answerer = Callable[[Answering, "Upload | None"], "Coroutine[object, object, None] | None"]
"""Makes an answer; the upload is there where the request's body is streamed. None: an exchange is to get it."""


class Gateway:
    """Shared by all client connections. Built by ``app.py``, which also gives it its poller and listeners."""

    def __init__(
        self, config: Config, carrier: Carrier, metrics: Metrics, pool: Pool, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.carrier = carrier
        self.metrics = metrics
        self.pool = pool
        self.outbox = pool.outbox
        pool.report_bug = self.report_bug
        carrier.report_bug = self.report_bug
        self.loop = loop
        self.clock: Callable[[], float] = loop.time
        self.connections: set[ClientConnection] = set()
        self.slow: set[ClientConnection] = set()
        """Connections with a deadline: half a head, half a body, or a lingering close."""
        self.watch: set[ClientConnection] = set()
        """Connections that are not read from now: whether they ended has to be asked."""
        self.draining = False
        self.poller: Poller | None = None
        self.owner: Owner | None = None
        self.gpus: GpuFeed | None = None
        self.stores: Stores | None = None
        self.on_listed: Callable[[], None] = lambda: None
        """A replica's list of models was read."""
        self.on_replicas_changed: Callable[[], None] = lambda: None
        """Takes over the owner's replicas."""
        self.answerers: dict[Duty, Answerer] = {Duty.PAGE: Pages(self).answer}
        self.listeners: list[Listener] = [metrics.request_done]
        metrics.held = self._held_open
        self.tracer: Tracer | None = None
        """Gives requests their traces; None: no request is traced."""
        self.load_report: LoadReport | None = None
        """Tells in answers how busy the gateway is; None: nobody is told."""
        self.wall: Callable[[], float] = time.time
        """The time of day, for people."""
        self.looked = asyncio.Event()
        """Every replica was probed once: what is said of them from here on is known."""
        self.version = __version__
        self._tasks: set[asyncio.Task[None]] = set()
        self.secret = os.urandom(16)
        """Keys the digests of clients' API keys: other gateways, and this one when it starts again, make others."""
        self.run_id = os.urandom(4).hex().encode()
        """Of this process: what tells a Corral above from others, and requests that come back from new ones."""
        self._requests = 0
        self._ticks = 0
        self._silent_s: dict[Exchange, tuple[int, float]] = {}
        self._reads_seen: dict[str, int] = {}
        self._policy_error: str | None = None
        self._waited_for = {replica.id for replica in config.replicas}
        if not self._waited_for:
            self.looked.set()
        self.use(config, on_loopback=True)

    def use(self, config: Config, *, on_loopback: bool) -> None:
        """Take the values of ``config`` that apply at once."""
        self.limits = config.limits
        self.timeouts = config.timeouts
        self.pool.connect_s = config.timeouts.connect_s
        self.num_ctx = config.placement.canonicalise.num_ctx
        self.splits_embeddings = config.embeddings.split
        self.rules = BrowserRules(on_loopback=on_loopback, hosts=config.hosts, origins=config.origins)

    def new_request_id(self) -> bytes:
        self._requests += 1
        return b"%b-%x" % (self.run_id, self._requests)

    def _held_open(self) -> dict[str, int]:
        return {
            "client connections": len(self.connections),
            "idle replica connections": self.pool.idle,
            "busy replica connections": len(self.pool.active),
            "tasks": len(asyncio.all_tasks(self.loop)),
        }

    # -- control (the admin port's side)

    def snapshot(self) -> Snapshot:
        scheduler, now_s = self.carrier.scheduler, self.clock()
        return replace(self.summary(), waiting=scheduler.waiting(now_s), running=scheduler.running(now_s))

    def summary(self) -> Snapshot:
        """The snapshot without its lists of requests, which take as long as all the rest."""
        snapshot = self.carrier.scheduler.snapshot(self.clock())
        owner = self.owner
        advice = () if self.poller is None else self.poller.advice
        if owner is None:
            return replace(snapshot, advice=advice)
        return replace(snapshot, gpus=owner.gpus(), processes=owner.processes(), advice=(*owner.advice(), *advice))

    def explain(self) -> tuple[Choice, ...]:
        """The last decisions, the latest last."""
        return self.carrier.scheduler.explain()

    def ready(self) -> tuple[bool, str]:
        """Whether a request could be served now, and why not."""
        if self.draining:
            return False, "draining"
        replicas = self.carrier.scheduler.snapshot(self.clock()).replicas
        enabled = [replica for replica in replicas if replica.enabled]
        if any(replica.health in (Health.UP, Health.EJECTED) for replica in enabled if replica.held is None):
            return True, "ready"
        held = [f"{replica.id} is {replica.held}" for replica in enabled if replica.held is not None]
        return False, "; ".join(("no replica is up and enabled", *held[:1]))

    def set_enabled(self, replica_id: str, enabled: bool) -> None:
        """Drain (False) or resume a replica. Raises CorralError for an unknown id."""
        self.carrier.apply(self.carrier.scheduler.set_enabled(replica_id, enabled, self.clock()))
        log.info("replica_%s replica=%s", "resumed" if enabled else "drained", replica_id)

    def order(self, order: Order, replica_id: str) -> None:
        """Restart, stop or start an Ollama that Corral runs. Raises CorralError where it cannot."""
        if self.owner is not None:
            self.owner.order(order, replica_id)
            log.info("%s_asked replica=%s", order.value, replica_id)

    def restart_all(self) -> None:
        """All Ollamas that Corral runs, one after the other. Raises CorralError where there are none."""
        if self.owner is not None:
            self.owner.restart_all()
            log.info("restart_asked replica=all")

    # -- the owner's feed

    def replicas_changed(self) -> None:
        self.on_replicas_changed()

    def set_hold(self, replica_id: str, hold: Hold | None) -> None:
        """Hold a replica while its process is not ready; when it is, look at it at once: it is another process."""
        self.carrier.apply(self.carrier.scheduler.set_hold(replica_id, hold, self.clock()))
        if hold is None and self.poller is not None:
            self.poller.anew(replica_id)

    def inflight(self, replica_id: str) -> int:
        return self.carrier.scheduler.inflight_on(replica_id)

    # -- answers that tasks make

    def start_answer(self, answering: Answering, upload: Upload | None) -> asyncio.Task[None] | None:
        """Have a task make the answer, if it is one that a task makes; None: it is a replica's, by an exchange."""
        duty = answering.route.duty
        answerer = None if duty is None else self.answerers.get(duty)
        work = None if answerer is None else answerer(answering, upload)
        return None if work is None else self.spawn(self._answer(answering, work))

    async def _answer(self, answering: Answering, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Exception as error:  # the boundary of this task: its client must not wait for ever
            self.report_bug(answering.route.label, error)
            answering.error(500, "internal error of the gateway")

    def spawn(self, coroutine: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.report_bug("task", error)

    def report_bug(self, where: str, error: Exception) -> None:
        """Something that must not happen did; one line, without what the client sent."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        log.error("bug where=%s error=%s at=%s", where, type(error).__name__, place)

    def over(self, ended: Ended) -> None:
        """A request is over: everybody who tells of requests hears of it."""
        for listener in self.listeners:
            try:
                listener(ended)
            except Exception as error:  # whoever only watches must not harm the request
                self.report_bug("listener", error)

    # -- the poller's feed

    def probed(self, replica_id: str, result: ProbeResult) -> None:
        scheduler = self.carrier.scheduler
        if result is not ProbeResult.ANSWERED:
            self._note_progress(replica_id)
        self.carrier.apply(scheduler.probed(replica_id, result, self.clock()))
        if not self.looked.is_set():
            self._waited_for.discard(replica_id)
            if not self._waited_for:
                self.looked.set()

    def sampled(self, sample: OllamaSample) -> None:
        if sample.installed is not None:
            self.metrics.know_models(model.name for model in sample.installed)
        self.carrier.apply(self.carrier.scheduler.sampled(sample, self.clock()))
        if sample.installed is not None:
            self.on_listed()
        if self.gpus is not None:
            self.gpus.sampled(sample)
        if sample.loaded is not None and self.owner is not None:
            self.owner.loaded(sample.replica_id, sample.loaded)

    def tree_read(self, replica_id: str, tree: TreeLoad, taken_s: float) -> None:
        """A replica that is a Corral said how those below it stand."""
        scheduler, run = self.carrier.scheduler, self.run_id.decode()
        self.carrier.apply(scheduler.tree_read(replica_id, tree, run, taken_s, self.clock()))

    def tree_load(self, asker: str) -> TreeLoad:
        """What a Corral above this one is told."""
        run, now_s = self.run_id.decode(), self.clock()
        return self.carrier.scheduler.tree_load(run, asker, now_s, draining=self.draining)

    def probe_seconds(self, replica_id: str, part: str, seconds: float, ok: bool) -> None:
        self.metrics.probe(replica_id, part, seconds, ok)

    def _note_progress(self, replica_id: str) -> None:
        """Bytes that flowed since the last look: a replica too busy for its probe is not a dead one."""
        reads = sum(
            connection.reads
            for connection in self.pool.active
            if connection.exchange is not None and _replica_of(connection.exchange) == replica_id
        )
        if reads > self._reads_seen.get(replica_id, 0):
            self.carrier.scheduler.progress(replica_id, self.clock())
        self._reads_seen[replica_id] = reads

    # -- time

    def keep_time(self) -> None:
        """Begin to look at deadlines and at clients, again and again."""
        self.spawn(self._every(_TICK_S, self.tick))
        self.spawn(self._every(_WATCH_S, self._end_those_who_left))
        self.spawn(LoopLag(self.metrics).run())

    async def _every(self, period_s: float, look: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(period_s)
            try:
                look()
            except Exception as error:  # time must go on, or nobody is ever timed out again
                self.report_bug("time", error)

    def _end_those_who_left(self) -> None:
        """Ask whether the clients that are not read from are still there: nothing else would tell."""
        for client in [client for client in self.watch if client.has_left()]:
            client.abort()

    def tick(self) -> None:
        """Every quarter of a second: deadlines of waiting requests, slow clients and stalled streams."""
        self.outbox.flush()
        now_s = self.clock()
        self._ticks += 1
        self.carrier.apply(self.carrier.scheduler.tick(now_s))
        for client in [client for client in self.slow if client.deadline_s <= now_s]:
            client.too_slow()
        if self._ticks % 4 == 0:
            self._break_stalled(now_s)
            self._report_policy()
        if self._ticks % _SWEEP_TICKS == 0:
            self.pool.sweep(now_s)
            self._close_idle(now_s - self.timeouts.idle_s)

    def _report_policy(self) -> None:
        error = self.carrier.scheduler.policy_error
        if error is not None and error != self._policy_error:
            log.error('policy_failed consequence="requests go to any replica" error="%s"', error)
        self._policy_error = error

    def _break_stalled(self, now_s: float) -> None:
        """End exchanges of a replica that is down (or was removed) and has been silent: it hangs, it is not slow."""
        states = self.carrier.scheduler.snapshot(now_s).replicas
        answering = {state.id for state in states if state.health is not Health.DOWN and not self._hangs(state)}
        silent: dict[Exchange, tuple[int, float]] = {}
        for connection in list(self.pool.active):
            exchange = connection.exchange
            if exchange is None or _replica_of(exchange) in answering or connection.paused:
                continue
            reads, since_s = self._silent_s.get(exchange, (-1, now_s))
            silent[exchange] = (connection.reads, since_s if reads == connection.reads else now_s)
            if now_s - silent[exchange][1] >= self.timeouts.stall_s:
                exchange.give_up()
        self._silent_s = silent

    def _hangs(self, state: ReplicaState) -> bool:
        """Whether a held replica, whose health nobody follows, does not answer its probe."""
        return state.held is not None and self.poller is not None and self.poller.is_silent(state.id)

    def _close_idle(self, before_s: float) -> None:
        for client in list(self.connections):
            if client.is_idle and client.idle_since_s <= before_s:
                client.close_after_response()

    # -- the end

    async def settle(self) -> None:
        """Before the end: take the requests that are on their way on connections just opened or just used."""
        self.draining = True  # so each answer from here on is the last one of its connection
        for _ in range(round(_ON_ITS_WAY_S / _SETTLE_S)):
            await asyncio.sleep(_SETTLE_S)  # what was accepted in this turn of the loop is known in the next one
            since_s = self.clock() - _ON_ITS_WAY_S
            if not any(client.is_idle and client.idle_since_s > since_s for client in self.connections):
                return

    def drain(self) -> None:
        """Close idle connections; the others close with their response."""
        self.draining = True
        self.outbox.flush()
        self._close_idle(self.clock())

    @property
    def busy(self) -> int:
        """Client connections with a request under way, or with a part of its answer still to be sent."""
        under_way = (State.BUSY, State.STREAM, State.BODY)
        return sum(client.state in under_way or client.has_unsent for client in self.connections)

    async def close(self) -> None:
        """Cut whatever is still running, visibly, and end every connection."""
        self.carrier.apply(self.carrier.scheduler.stop(self.clock()))
        for client in list(self.connections):
            if client.exchange is not None:
                client.exchange.cut_short()
            elif client.answering is not None:
                client.answering.cut_short()
        self.outbox.flush()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pool.close()
        await asyncio.sleep(0)  # one turn, so that last words are written
        for client in list(self.connections):
            if client.transport is not None:
                client.transport.abort()


def _replica_of(exchange: Exchange) -> str | None:
    return exchange.lease.replica.id if exchange.lease is not None else None
