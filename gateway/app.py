"""Builds the gateway from a configuration, runs it, reloads it and stops it. Only this module constructs."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Final

import aiohttp
import uvloop
from aiohttp import web

from corral.errors import OperatorError
from corral.gateway.carried import Carried
from corral.gateway.carrier import Carrier
from corral.gateway.config import Address, Config, build_policy, diff_config, load_config, naming
from corral.gateway.config.environment import with_environment
from corral.gateway.embed import Splitter
from corral.gateway.ended import Ended
from corral.gateway.gateway import Gateway
from corral.gateway.gpufeed import GpuFeed
from corral.gateway.owner import Owner
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.serve.admin import make_admin, make_runner, snapshot_page
from corral.gateway.serve.admin_models import ModelRoutes
from corral.gateway.serve.cleaning import Cleaner, Known
from corral.gateway.serve.gpus import GpuBoard
from corral.gateway.serve.inventory import Inventory
from corral.gateway.serve.lately import Journal, Ring
from corral.gateway.serve.listening import explain_listen_error
from corral.gateway.serve.live import LiveRoutes
from corral.gateway.serve.memory import MemoryKeeper
from corral.gateway.serve.metrics import Metrics
from corral.gateway.serve.poller import Poller
from corral.gateway.serve.show import Shows
from corral.gateway.serve.weights import WeightsReader
from corral.gateway.store.stores import Stores
from corral.gateway.wire.client import ClientConnection
from corral.gateway.wire.outbox import Outbox
from corral.gateway.wire.pool import Pool
from corral.gateway.wire.routes import Duty
from corral.model import Policy, Replica
from corral.probes.gpu import NVML_LIBRARY
from corral.probes.ollama import OllamaProbe, probe_session
from corral.probes.reader import sources

log: Final = logging.getLogger("corral.gateway")

_BACKLOG: Final = 4096
_FIRST_LOOK_S: Final = 0.5
"""A replica that takes longer than this to answer its first probe does not hold up the start."""
_KEEPALIVE_S: Final = (60, 15, 4)
"""Idle before the first probe, between probes, probes: a client whose machine is gone is noticed in two minutes."""


@dataclass(frozen=True, slots=True)
class ReadyInfo:
    """What a person wants to know once the gateway answers."""

    url: str
    admin_url: str
    replicas: tuple[Replica, ...]


def run(
    config: Config,
    *,
    config_path: Path | None = None,
    on_ready: Callable[[ReadyInfo], None],
    on_draining: Callable[[int, float], None],
) -> int:
    """Serve ``config`` until SIGTERM or SIGINT; returns the exit code. ``config_path``: what SIGHUP reads again."""
    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, config_path, on_ready, on_draining))


async def _serve(
    config: Config,
    config_path: Path | None,
    on_ready: Callable[[ReadyInfo], None],
    on_draining: Callable[[int, float], None],
) -> int:
    loop = asyncio.get_running_loop()
    with _listening(config.listen) as listener, _listening(config.admin_listen) as admin_listener:
        async with probe_session() as session:
            app = App(config, config_path, loop, session)
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
            on_ready(ReadyInfo(_url(listener), _url(admin_listener), app.replicas))
            await app.until_stopped(on_draining)
    return 0


class App:
    """One running gateway: its parts, and what signals do to them."""

    def __init__(
        self, config: Config, config_path: Path | None, loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._loop = loop
        policy = build_policy(config, config_path)
        scheduler: Scheduler[Carried] = Scheduler(policy, config.policy.name, _limits(config), Random())
        self.metrics = Metrics()
        carrier = Carrier(scheduler, self.metrics, loop.time)
        pool = Pool(loop, Outbox(loop), config.timeouts.connect_s)
        self.gateway = Gateway(config, carrier, self.metrics, pool, loop)
        self.poller = Poller(
            lambda replica: OllamaProbe(session, replica),
            self.gateway,
            loop.time,
            Random(),
            config.probes.ollama_interval_s,
        )
        self.gateway.poller = self.poller
        carrier.recent = self.poller.recent
        carrier.store_changed = self.poller.store_changed
        self.gateway.answerers[Duty.SHOW] = Shows(self.gateway, session).answer
        self.gateway.answerers[Duty.EMBED] = Splitter(self.gateway, session).answer
        self.stores = self.gateway.stores = Stores(self.gateway, self.poller, session, Random())
        self.gateway.answerers[Duty.STORE] = self.gateway.answerers[Duty.BLOB] = self.stores.answer
        self.memory = MemoryKeeper(carrier, self.poller, session, self.metrics, loop.time)
        self.memory.report_bug = self.gateway.report_bug
        self.memory.names_of = scheduler.names_of
        self.weights = WeightsReader(carrier, self.poller, session, loop.time)
        self.weights.report_bug = self.gateway.report_bug
        self.gateway.on_listed = self.weights.look
        self.board = GpuBoard(loop.time, config.probes.gpu_interval_s, self.metrics)
        library = os.environ.get(NVML_LIBRARY)
        self.owner = Owner(self.gateway, self.board, sources(library), session, os.environ, loop.time, Random())
        self.gateway.owner = self.owner
        self.gateway.gpus = GpuFeed(self.board, carrier, self.metrics, self.owner, loop.time)
        self.gateway.gpus.is_loading = self.memory.is_changing
        self.board.on_round = self.gateway.gpus.look
        self.gateway.on_replicas_changed = self._take_replicas
        self._reloading = asyncio.Lock()
        requests: Ring[Ended] = Ring()
        self.gateway.listeners.append(requests.add)
        self.journal = Journal()
        logging.getLogger("corral").addHandler(self.journal)
        self.live = LiveRoutes(lambda: snapshot_page(self.gateway), requests, self.journal, loop.time)
        carrier.suspect = self.poller.kick
        carrier.refresh_tags = self._refresh_tags
        carrier.change_memory = self.memory.change
        carrier.apply(scheduler.set_placement(config.placement.enabled, loop.time()))
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._admin: web.AppRunner | None = None

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return self.owner.replicas()

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
        with naming(self._config_path):
            await self.owner.start(self._config)
        cleaner = Cleaner(self.stores, self._known_stores, lambda: self.gateway.draining)
        models = ModelRoutes(self.stores, Inventory(self.gateway), cleaner)
        more = [*models.routes(), *self.live.routes()]
        admin = make_admin(self.gateway, self.metrics, hosts=lambda: self._config.hosts, more=more)
        self._admin = make_runner(admin)
        await self._admin.setup()
        await web.SockSite(self._admin, admin_listener).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LOOK_S):
                await self.gateway.looked.wait()
        self._server = await self._loop.create_server(
            lambda: ClientConnection(self.gateway), sock=listener, backlog=_BACKLOG
        )
        self.gateway.keep_time()

    def _known_stores(self) -> Known:
        return self.replicas, self.owner.store_folders(), self._config.stores

    def _apply(self, config: Config) -> None:
        self.gateway.use(config, on_loopback=self._on_loopback)
        self.poller.set_interval(config.probes.ollama_interval_s)

    def _take_replicas(self) -> None:
        """The owner's replicas are the gateway's from now on."""
        replicas = self.replicas
        self.gateway.carrier.apply(self.gateway.carrier.scheduler.set_replicas(replicas, self._loop.time()))
        self.gateway.pool.keep_only(replicas)
        self.poller.set_replicas(replicas)
        self.memory.keep_only(replicas)

    # -- signals

    def watch_signals(self) -> None:
        self._loop.add_signal_handler(signal.SIGTERM, self.stop)
        self._loop.add_signal_handler(signal.SIGINT, self.stop)
        # Without a file there is nothing to read again; then SIGHUP means that the terminal was closed.
        self._loop.add_signal_handler(signal.SIGHUP, self.reload if self._config_path is not None else self.stop)

    def stop(self) -> None:
        """First: let running streams finish. Second: now."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def reload(self) -> None:
        """Read the configuration again; a bad file, or one that this machine cannot carry out, changes nothing.

        Nor does any file once the gateway is to stop: what it would start, nobody would end.
        """
        if self._config_path is not None and not self._stop.is_set():
            self.gateway.spawn(self._reload(self._config_path))

    async def _reload(self, path: Path) -> None:
        async with self._reloading:
            try:
                config = with_environment(load_config(path), os.environ)
                policy = build_policy(config, path)
                with naming(path):
                    await self.owner.reload(config)
            except OperatorError as error:
                self.metrics.reloaded(ok=False)
                problems = "; ".join(line.strip() for line in str(error).splitlines())
                log.error('reload_refused reason="the old configuration stays" error="%s"', problems)
                return
            self._use(config, policy)

    def _use(self, config: Config, policy: Policy) -> None:
        before, self._config = self._config, config
        scheduler = self.gateway.carrier.scheduler
        scheduler.set_policy(policy, config.policy.name)
        self.gateway.carrier.apply(scheduler.set_limits(_limits(config), self._loop.time()))
        self.gateway.carrier.apply(scheduler.set_placement(config.placement.enabled, self._loop.time()))
        self._apply(config)
        self.metrics.reloaded(ok=True)
        changes = diff_config(before, config)
        log.info("reloaded changes=%d", len(changes))
        for change in changes:
            log.info("reloaded_change %s", change)

    # -- the end

    async def until_stopped(self, on_draining: Callable[[int, float], None]) -> None:
        """Wait for a signal, drain, and end everything that was started."""
        await self._stop.wait()
        gateway = self.gateway
        if self._server is not None:
            self._server.close()
        gateway.drain()
        drain_s = self._config.timeouts.drain_s
        if gateway.busy:
            on_draining(gateway.busy, drain_s)
        log.info("draining requests=%d drain_s=%g", gateway.busy, drain_s)
        await self._drained(drain_s)
        left = gateway.busy
        if left:
            log.warning("stopping_with_requests requests=%d", left)
        await self.close()
        log.info("stopped cut=%d", left)

    async def close(self) -> None:
        """End everything that was started, whatever was: the requests first, then the Ollamas."""
        await self.memory.close()
        await self.weights.close()
        await self.stores.close()
        await self.gateway.close()
        await self.poller.close()
        await self.owner.close()
        self.live.close()
        logging.getLogger("corral").removeHandler(self.journal)
        if self._admin is not None:
            await self._admin.cleanup()

    async def _drained(self, drain_s: float) -> None:
        try:
            async with asyncio.timeout(drain_s):
                while self.gateway.busy and not self._stop_now.is_set():
                    try:
                        async with asyncio.timeout(0.05):
                            await self._stop_now.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            return


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


@contextmanager
def _listening(address: Address) -> Iterator[socket.socket]:
    """A listening socket on ``address``. Raises OperatorError, naming the address and what to do."""
    listener: socket.socket | None = None
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _keep_alive(listener)
        listener.bind(where)
        listener.listen(_BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise explain_listen_error(error, address.host, address.port) from error
    with listener:
        listener.setblocking(False)
        yield listener


def _keep_alive(listener: socket.socket) -> None:
    """Accepted connections inherit these: a client that vanished without a word is noticed all the same."""
    idle_s, between_s, probes = _KEEPALIVE_S
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", idle_s), ("TCP_KEEPINTVL", between_s), ("TCP_KEEPCNT", probes)):
        option = getattr(socket, name, None)  # not on every platform
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{Address(host, port)}"


def _raise_file_limit() -> None:
    """Two descriptors per stream: take as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
