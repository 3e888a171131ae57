"""Builds the gateway from a configuration, runs it, reloads it and stops it. Only this module constructs."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random
from typing import Final

import aiohttp
import uvloop
from aiohttp import web

from corral.gateway.carried import Carried
from corral.gateway.carrier import Carrier
from corral.gateway.config import Address, Config, build_policy, naming
from corral.gateway.config.sources import Settled, Sources
from corral.gateway.discovery.discovery import Discovery
from corral.gateway.embed import Splitter
from corral.gateway.gateway import Gateway
from corral.gateway.gpufeed import GpuFeed
from corral.gateway.notify import Notifier
from corral.gateway.owner import Owner
from corral.gateway.reloading import Outcome, Reloader
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.serve.admin import make_admin, make_runner
from corral.gateway.serve.admin_config import ConfigRoutes
from corral.gateway.serve.admin_models import ModelRoutes
from corral.gateway.serve.cleaning import Cleaner, Known
from corral.gateway.serve.gpus import GpuBoard
from corral.gateway.serve.inventory import Inventory
from corral.gateway.serve.lately import Journal, Requests
from corral.gateway.serve.links import measure_links
from corral.gateway.serve.live import LiveRoutes
from corral.gateway.serve.memory import MemoryKeeper
from corral.gateway.serve.metrics import Metrics
from corral.gateway.serve.poller import Poller
from corral.gateway.serve.replica_log import ReplicaLogRoutes
from corral.gateway.serve.show import Shows
from corral.gateway.serve.snapshot import snapshot_page
from corral.gateway.serve.tellers import Tellers
from corral.gateway.serve.tree import TreeRoutes
from corral.gateway.serve.weights import WeightsReader
from corral.gateway.sockets import BACKLOG
from corral.gateway.store.stores import Stores
from corral.gateway.watching import watch
from corral.gateway.web.playground import Playground
from corral.gateway.wire.client import ClientConnection
from corral.gateway.wire.outbox import Outbox
from corral.gateway.wire.pool import Pool
from corral.gateway.wire.routes import Duty
from corral.model import Health, Policy, Replica, Snapshot
from corral.probes.corral import CorralProbe
from corral.probes.gpu import NVML_LIBRARY
from corral.probes.ollama import OllamaProbe, probe_session
from corral.probes.reader import sources as gpu_sources

log: Final = logging.getLogger("corral.gateway")

_FIRST_LOOK_S: Final = 0.5
"""A replica that takes longer than this to answer its first probe does not hold up the start."""


@dataclass(frozen=True, slots=True)
class ReadyInfo:
    """What a person wants to know once the gateway answers."""

    url: str
    admin_url: str
    replicas: tuple[Replica, ...]
    folders: Mapping[str, str]
    """By id of the replica: the folder of its models, where it is known."""
    snapshot: Callable[[], Snapshot]
    """What is so now."""


def run(
    sources: Sources,
    settled: Settled,
    sockets: tuple[socket.socket, socket.socket],
    *,
    watches_file: bool = False,
    on_ready: Callable[[ReadyInfo], None],
    on_draining: Callable[[int, float], None],
) -> int:
    """Serve what ``settled`` says until SIGTERM or SIGINT; returns the exit code. ``sources``: what is read again at a
    reload; ``sockets``: where clients connect, and the admin port, listening already; ``on_draining`` is told again
    and again how many requests still run, and for how many seconds they may."""
    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(sources, settled, sockets, watches_file, on_ready, on_draining))


async def _serve(
    sources: Sources,
    settled: Settled,
    sockets: tuple[socket.socket, socket.socket],
    watches_file: bool,
    on_ready: Callable[[ReadyInfo], None],
    on_draining: Callable[[int, float], None],
) -> int:
    loop, notifier = asyncio.get_running_loop(), Notifier.from_environment(os.environ)
    listener, admin_listener = sockets
    async with probe_session() as session:
        app = App(sources, settled, loop, session, notifier)
        app.watch_signals()
        try:
            is_running = await app.start_unless_stopped(listener, admin_listener)
        except BaseException:
            await app.close()
            raise
        if not is_running:
            await app.close()
            return 0
        gc.collect()
        gc.freeze()
        on_ready(app.ready_info(_url(listener), _url(admin_listener)))
        notifier.ready()
        notifier.keep_watch(loop, app.status)
        if watches_file:
            app.watch_file()
        await app.until_stopped(on_draining)
        notifier.end_watch()
    return 0


class App:
    """One running gateway: its parts, and what signals do to them."""

    def __init__(
        self,
        sources: Sources,
        settled: Settled,
        loop: asyncio.AbstractEventLoop,
        session: aiohttp.ClientSession,
        notifier: Notifier | None = None,
    ) -> None:
        self._config = config = settled.config
        self._loop = loop
        self.reloader = Reloader(sources, settled, self)
        self._notifier = notifier or Notifier()
        policy = build_policy(config, settled.path)
        scheduler: Scheduler[Carried] = Scheduler(policy, config.policy.name, _limits(config), Random())
        self.metrics = Metrics()
        carrier = Carrier(scheduler, self.metrics, loop.time)
        pool = Pool(loop, Outbox(loop), config.timeouts.connect_s)
        self.gateway = Gateway(config, carrier, self.metrics, pool, loop)
        self.poller = Poller(
            lambda replica: _probe(session, replica, self.gateway.run_id.decode()),
            self.gateway,
            loop.time,
            Random(),
            config.probes.ollama_interval_s,
        )
        self.gateway.poller = self.poller
        self.poller.on_tree = self.gateway.tree_read
        carrier.recent = self.poller.recent
        carrier.store_changed = self.poller.store_changed
        self.gateway.answerers[Duty.SHOW] = Shows(self.gateway, session).answer
        self.gateway.answerers[Duty.EMBED] = Splitter(self.gateway, session).answer
        self._session = session
        self.stores = self.gateway.stores = Stores(self.gateway, self.poller, session, Random())
        self.gateway.answerers[Duty.STORE] = self.gateway.answerers[Duty.BLOB] = self.stores.answer
        self.memory = MemoryKeeper(carrier, self.poller, session, self.metrics, loop.time)
        self.memory.report_bug = self.gateway.report_bug
        self.memory.names_of = scheduler.names_of
        self.memory.run = self.gateway.run_id.decode()
        self.weights = WeightsReader(carrier, self.poller, session, loop.time)
        self.weights.report_bug = self.gateway.report_bug
        self.gateway.on_listed = self.weights.look
        self.board = GpuBoard(loop.time, config.probes.gpu_interval_s, self.metrics)
        gpus = gpu_sources(os.environ.get(NVML_LIBRARY))
        self.owner = Owner(self.gateway, self.board, gpus, session, os.environ, loop.time, Random())
        self.gateway.owner = self.owner
        self.discovery = Discovery(self.owner, session, loop.time, Random())
        self.gateway.gpus = GpuFeed(self.board, carrier, self.metrics, self.owner, loop.time)
        self.gateway.gpus.is_loading = self.memory.is_changing
        self.board.on_round = self.gateway.gpus.look
        self.gateway.on_replicas_changed = self._take_replicas
        requests = Requests()
        self.gateway.listeners.append(requests.take)
        with naming(settled.path):
            self.tellers = Tellers(self.gateway, config, os.environ, Random())
        self.journal = Journal()
        logging.getLogger("corral").addHandler(self.journal)
        self.live = LiveRoutes(lambda: snapshot_page(self.gateway), requests, self.journal, loop.time)
        self.replica_logs = ReplicaLogRoutes(self.gateway.summary)
        carrier.suspect = self.poller.kick
        carrier.refresh_tags = self._refresh_tags
        carrier.change_memory = self.memory.change
        carrier.apply(scheduler.set_placement(config.placement.enabled, loop.time()))
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._begun = asyncio.Event()
        """What the configuration of the start wants is under way."""
        self._server: asyncio.Server | None = None
        self._admin: web.AppRunner | None = None

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return self.owner.replicas()

    def status(self) -> str:
        """What the gateway does, in one line for the service manager."""
        if self.gateway.draining:
            return f"stopping: {self.gateway.busy} requests are still running"
        now = self.gateway.carrier.scheduler.snapshot(self._loop.time())
        up = sum(replica.health is Health.UP for replica in now.replicas)
        running = sum(replica.inflight for replica in now.replicas)
        return f"{up} of {len(now.replicas)} replicas up; requests: {running} running, {now.queued} waiting"

    def ready_info(self, url: str, admin_url: str) -> ReadyInfo:
        """For whoever started it."""
        folders = {id: folder for id, folder in self.owner.store_folders().items() if folder is not None}
        stores = self._config.stores
        folders |= {each.id: str(stores[each.store]) for each in self._config.replicas if each.store in stores}
        return ReadyInfo(url, admin_url, self.replicas, folders, self.gateway.snapshot)

    def _refresh_tags(self) -> None:
        self.gateway.spawn(self.poller.refresh(tags=True, ps=False, deadline_s=self._config.timeouts.connect_s))

    async def start_unless_stopped(self, listener: socket.socket, admin_listener: socket.socket) -> bool:
        """As :meth:`start`, which may wait for a slow driver; False: a signal came first."""
        starting = asyncio.create_task(self.start(listener, admin_listener))
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return False
        await starting
        return True

    async def start(self, listener: socket.socket, admin_listener: socket.socket) -> None:
        """Begin to poll, look at every replica once, and serve on both ports (which accept from the beginning)."""
        self._on_loopback = ip_address(listener.getsockname()[0]).is_loopback
        self._apply(self._config)
        with naming(self.reloader.settled.path):
            self.discovery.sources(self._config.discovery)
            await self.owner.start(self._config)
            self.discovery.use(self._config.discovery)
        self._begun.set()
        cleaner = Cleaner(self.stores, self._known_stores, lambda: self.gateway.draining)
        models = ModelRoutes(self.stores, Inventory(self.gateway), cleaner)
        settings = ConfigRoutes(self.reloader, self.read_again, self.gateway.spawn, self._stop.is_set)
        tree = TreeRoutes(self.gateway.tree_load)
        playground = Playground(self._session, _from_here(listener))
        more = [*models.routes(), *tree.routes(), *self.live.routes(), *self.replica_logs.routes(), *settings.routes()]
        more += playground.routes()
        admin = make_admin(self.gateway, self.metrics, hosts=lambda: self._config.hosts, more=more)
        self._admin = make_runner(admin)
        await self._admin.setup()
        await web.SockSite(self._admin, admin_listener).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LOOK_S):
                await self.discovery.looked.wait()
                await self.gateway.looked.wait()
        self._server = await self._loop.create_server(
            lambda: ClientConnection(self.gateway), sock=listener, backlog=BACKLOG
        )
        self.gateway.keep_time()
        if self._config.measure_links:
            self.gateway.spawn(measure_links(self.board, self.metrics.link_seconds, os.environ))

    def _known_stores(self) -> Known:
        return self.replicas, self.owner.store_folders(), self._config.stores

    def _apply(self, config: Config) -> None:
        self.gateway.use(config, on_loopback=self._on_loopback)
        self.poller.set_interval(config.probes.ollama_interval_s)
        self.tellers.use(config)

    def _take_replicas(self) -> None:
        """The owner's replicas are the gateway's from now on."""
        replicas = self.replicas
        self.gateway.carrier.apply(self.gateway.carrier.scheduler.set_replicas(replicas, self._loop.time()))
        self.gateway.pool.keep_only(replicas)
        self.poller.set_replicas(replicas)
        self.memory.keep_only(replicas)
        self.metrics.keep_only(replica.id for replica in replicas)

    # -- signals

    def watch_signals(self) -> None:
        self._loop.add_signal_handler(signal.SIGTERM, self.stop)
        self._loop.add_signal_handler(signal.SIGINT, self.stop)
        # Without a file there is nothing to read again; then SIGHUP means that the terminal was closed.
        self._loop.add_signal_handler(signal.SIGHUP, self.reload if self.reloader.has_file else self.stop)

    def stop(self) -> None:
        """First: let running streams finish. Second: now."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def reload(self) -> None:
        """Read the configuration again; a bad file, or one that this machine cannot carry out, changes nothing.

        Nor does any file once the gateway is to stop: what it would start, nobody would end.
        """
        if self.reloader.has_file and not self._stop.is_set():
            self.gateway.spawn(self._reload())

    async def _reload(self) -> None:
        await self.read_again()

    def watch_file(self) -> None:
        """Reload whenever the file was changed, until the end."""
        if not self.reloader.has_file:
            log.warning('nothing_to_watch reason="there is no configuration file"')
        else:
            self.gateway.spawn(watch(lambda: self.reloader.settled, self.read_again, self._stop.is_set))

    async def read_again(self, *, dry_run: bool = False) -> Outcome:
        """As :meth:`reload`, with what became of it: now, or when the start is done, which would undo it otherwise.
        ``dry_run``: nothing changes."""
        await self._begun.wait()
        if dry_run:
            return await self.reloader.reload(dry_run=True)
        async with self._notifier.reloading():
            return await self.reloader.reload()

    # -- what a reload changes

    async def check(self, config: Config) -> None:
        with naming(self.reloader.settled.path):
            self.discovery.sources(config.discovery)
            await self.owner.check(config)

    async def carry_out(self, config: Config) -> None:
        with naming(self.reloader.settled.path):
            self.discovery.sources(config.discovery)
            await self.owner.reload(config)
            self.discovery.use(config.discovery)

    def use(self, config: Config, policy: Policy) -> None:
        self._config = config
        scheduler = self.gateway.carrier.scheduler
        scheduler.set_policy(policy, config.policy.name)
        self.gateway.carrier.apply(scheduler.set_limits(_limits(config), self._loop.time()))
        self.gateway.carrier.apply(scheduler.set_placement(config.placement.enabled, self._loop.time()))
        self._apply(config)

    def reloaded(self, *, ok: bool) -> None:
        self.metrics.reloaded(ok=ok)

    # -- the end

    async def until_stopped(self, on_draining: Callable[[int, float], None]) -> None:
        """Wait for a signal, drain, and end everything that was started."""
        await self._stop.wait()
        gateway = self.gateway
        if self._server is not None:
            self._server.close()
        await gateway.settle()
        gateway.drain()
        drain_s = self._config.timeouts.drain_s
        self._notifier.stopping(drain_s + self._config.restart.stop_s)
        log.info("draining requests=%d drain_s=%g", gateway.busy, drain_s)
        await self._drained(drain_s, on_draining)
        left = gateway.busy
        if left:
            log.warning("stopping_with_requests requests=%d", left)
        await self.close()
        log.info("stopped cut=%d", left)

    async def close(self) -> None:
        """End everything that was started, whatever was: the requests first, then the Ollamas."""
        await self.discovery.close()
        await self.memory.close()
        await self.weights.close()
        await self.stores.close()
        await self.gateway.close()
        await self.tellers.close()
        await self.poller.close()
        await self.owner.close()
        self.live.close()
        self.replica_logs.close()
        logging.getLogger("corral").removeHandler(self.journal)
        if self._admin is not None:
            await self._admin.cleanup()

    async def _drained(self, drain_s: float, on_draining: Callable[[int, float], None]) -> None:
        """Wait until nothing runs, or the time is over, or a second signal came; tell meanwhile how it stands."""
        ends_s = self._loop.time() + drain_s
        while (running := self.gateway.busy) and not self._stop_now.is_set():
            left_s = ends_s - self._loop.time()
            if left_s <= 0:
                return
            on_draining(running, left_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(0.05, left_s)):
                    await self._stop_now.wait()


def _probe(session: aiohttp.ClientSession, replica: Replica, run: str) -> OllamaProbe:
    return OllamaProbe(session, replica) if replica.admin is None else CorralProbe(session, replica, run)


def _limits(config: Config) -> QueueLimits:
    queue = config.queue
    return QueueLimits(
        max_requests=queue.max_requests,
        max_wait_s=queue.max_wait_s,
        order=queue.order,
        fair=queue.fair,
        quantum_s=queue.quantum_s,
        age_s=queue.age_s,
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{Address(host, port)}"


def _from_here(listener: socket.socket) -> str:
    """How this machine reaches it: one that listens everywhere is met on loopback."""
    return _url(listener).replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _raise_file_limit() -> None:
    """Two descriptors per stream: take as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
