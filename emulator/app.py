"""One running emulator: constructs everything, guards, routes and cancels."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from corral.emulator import arrival, guard, listing, plain, registry
from corral.emulator.ask import Rejected
from corral.emulator.cloud import Cloud
from corral.emulator.control import ControlRoutes
from corral.emulator.dialects.base import JSON
from corral.emulator.dialects.native import error_body
from corral.emulator.directory import DirectoryShelf
from corral.emulator.downloads import Downloads
from corral.emulator.embedding import EmbeddingRoutes
from corral.emulator.faults import Faults, Moment
from corral.emulator.inference import Counters, EmulatedEngine, Engine, Inference
from corral.emulator.machine import Machine, MachineSpec
from corral.emulator.manage import ManageRoutes
from corral.emulator.manifest import Recipe
from corral.emulator.pulling import Pulling
from corral.emulator.registry import Registry
from corral.emulator.rig import Rig
from corral.emulator.routes import InferenceRoutes
from corral.emulator.settings import Settings
from corral.emulator.shelf import MemoryShelf
from corral.emulator.store import Store
from corral.emulator.text import to_json
from corral.emulator.wire import Connection, Exchange
from corral.emulator.zstdbody import PATHS, unpacked

_PLAIN = b"text/plain"
_GRACE_S = 3600.0
"""How old a blob that no manifest names must be before Ollama removes it at its start; before 0.21 it did at once."""
_METHOD_ORDER = ("HEAD", "GET", "POST", "DELETE")

Handler = Callable[[Exchange], Coroutine[Any, Any, None] | None]


@dataclass(frozen=True, slots=True)
class Route:
    """One route and the first version of Ollama that has it."""

    handler: Handler
    since: tuple[int, ...] = (0, 1)


class _OnlyModel(msgspec.Struct):
    model: str | None = None


class App:
    """An emulated Ollama. Make it inside a running loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connections: set[Connection] = set()
        self.faults = Faults(Random(settings.seed), list(settings.faults))
        self.counters = Counters()
        self.store = Store(MemoryShelf() if settings.store is None else DirectoryShelf(settings.store, settings.id))
        self.rig = Rig(Machine(machine_spec(settings)), settings.speed, settings.fixed_tok_s)
        self.registry = Registry(_registry_file(settings), settings.models)
        self.downloads = Downloads(self.store.shelf, self.rig, settings.pull_s)
        self._fill_store()
        self.cloud = Cloud(settings.account, disabled=settings.no_cloud)
        inference = Inference(self.rig, self.store, self._engine(), self.faults, self.counters, self.cloud)
        random = Random(settings.seed)
        self._inference = InferenceRoutes(settings, self.store, inference, self.cloud, self.counters, random)
        self._embedding = EmbeddingRoutes(settings, self.store, self.rig, inference, self.faults)
        pulling = Pulling(settings, self.store, self.registry, self.downloads)
        self._manage = ManageRoutes(settings, self.store, self.rig, pulling)
        self.control = ControlRoutes(self, pulling)
        self._routes = self._table()
        self._tasks: set[asyncio.Task[None]] = set()
        self._nonsense_turn = 0

    def connection(self) -> Connection:
        """The protocol of a new connection."""
        return Connection(self.handle, self.connections)

    def close(self) -> None:
        """As Ollama on SIGTERM: every connection is aborted at once."""
        for connection in list(self.connections):
            connection.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        self.downloads.close()

    def keep(self, task: asyncio.Task[None]) -> None:
        """A task that lives as long as the emulator."""
        self._tasks.add(task)

    # -- dispatch -------------------------------------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/emulator/"):
            self.control.handle(exchange)
            return
        self.counters.requests += 1
        if not self._guarded(exchange):
            return
        if self.faults.ordered:
            fault = self.faults.take(Moment.ARRIVAL, exchange.path, _model_of(exchange))
            if fault is not None:
                self._run(exchange, arrival.break_answer(exchange, fault))
                return
        if exchange.headers.get("content-encoding") == "zstd" and not _unpack(exchange):
            return
        methods = self._methods(exchange.path)
        route = methods.get(exchange.method)
        if route is not None:
            try:
                running = route.handler(exchange)
            except Exception as error:
                self._failed(exchange, error)
                return
            if running is not None:
                self._run(exchange, running)
        elif methods:
            allowed = ", ".join(method for method in _METHOD_ORDER if method in methods)
            exchange.answer(405, b"405 method not allowed", _PLAIN, (b"Allow", allowed.encode()))
        else:
            exchange.answer(404, b"404 page not found", _PLAIN)

    def _guarded(self, exchange: Exchange) -> bool:
        """False where the request was answered here: a preflight, a foreign origin, a foreign host."""
        host = exchange.headers.get("host", "")
        origin = exchange.headers.get("origin")
        if origin is not None:
            if not guard.origin_allowed(origin, host):
                exchange.answer(403, b"", None)
                return False
            if origin not in (f"http://{host}", f"https://{host}"):
                exchange.extra = guard.origin_headers(origin)
                if exchange.method == "OPTIONS":
                    exchange.answer(204, b"", None, *guard.preflight_headers())
                    return False
        if self.settings.on_loopback and not guard.host_allowed(host):
            exchange.answer(403, b"", None)
            return False
        return True

    def _methods(self, path: str) -> dict[str, Route]:
        found = self._routes.get(path)
        if found is None:
            for prefix in ("/api/blobs/", "/v1/models/"):
                if (path.startswith(prefix) and "/" not in path[len(prefix) :].rstrip("/")) or path == prefix:
                    found = self._routes.get(prefix)
        version = self.settings.version_numbers
        return {method: route for method, route in (found or {}).items() if version >= route.since}

    def _run(self, exchange: Exchange, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)

        def gone() -> None:
            task.cancel()

        exchange.on_gone = gone
        task.add_done_callback(lambda done: self._ended(exchange, done))

    def _ended(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        exchange.on_gone = None
        if task.cancelled():
            self.counters.aborted += 1
        elif (error := task.exception()) is not None:
            self._failed(exchange, error)

    def _failed(self, exchange: Exchange, error: BaseException) -> None:
        """A bug of the emulator must fail the test that meets it, loudly."""
        print(f"emulator {self.settings.id}: {exchange.method} {exchange.path}: {error!r}", file=sys.stderr)  # noqa: T201
        exchange.connection.reset()

    # -- routes that are only of this process ------------------------------------------------------------------------

    async def _ps(self, exchange: Exchange) -> None:
        fault = self.faults.take(Moment.LISTING, exchange.path, None)
        if fault is not None and fault.kind == "slow-ps":
            await asyncio.sleep(fault.seconds)
        elif fault is not None:
            self._nonsense_turn += 1
            wrong = b"<html><body>It works!</body></html>" if self._nonsense_turn % 2 else b'{"models":{"a":[1]}}'
            exchange.answer(200, wrong, b"text/html" if self._nonsense_turn % 2 else JSON)
            return
        while self.settings.stall_ps and self.rig.machine.loading:
            await self.rig.sleep(0.05)
        now, wall = self.rig.now(), time.time()
        models = [listing.running(runner, now, wall, self.rig.speed) for runner in self.rig.machine.listed(now)]
        exchange.answer(200, to_json({"models": models}), JSON)

    def _fill_store(self) -> None:
        """The models given at the start, the first of them the newest; and what Ollama removes when it starts."""
        for spec in reversed(self.settings.models):
            if self.store.get(spec.name) is None:
                recipe = self.registry.find(spec.name)
                self.store.install(spec.name, recipe or Recipe(spec), time.time())
        if not self.settings.noprune:
            self.store.shelf.prune(_GRACE_S if self.settings.version_numbers >= (0, 21) else 0.0)

    def _engine(self) -> Engine:
        if self.settings.gguf is None:
            return EmulatedEngine(self.rig)
        from corral.emulator.llamacpp import LlamaEngine

        return LlamaEngine(
            self.settings.gguf, self.rig, self.settings.parallel, self.settings.threads, self.settings.context_length
        )

    def _table(self) -> dict[str, dict[str, Route]]:
        run, embed, manage = self._inference, self._embedding, self._manage

        def version(exchange: Exchange) -> None:
            plain.version(exchange, self.settings.version)

        def reading(handler: Handler, since: tuple[int, ...] = (0, 1)) -> dict[str, Route]:
            return {"HEAD": Route(handler, since), "GET": Route(handler, since)}

        def get(handler: Handler, since: tuple[int, ...] = (0, 1)) -> dict[str, Route]:
            return {"GET": Route(handler, since)}

        def post(handler: Handler, since: tuple[int, ...] = (0, 1)) -> dict[str, Route]:
            return {"POST": Route(handler, since)}

        return {
            "/": reading(plain.root),
            "/api/version": reading(version),
            "/api/status": get(self.cloud.status, (0, 17)),
            "/api/pull": post(manage.pull),
            "/api/push": post(manage.push),
            "/api/tags": reading(manage.tags),
            "/api/show": post(manage.show),
            "/api/delete": {"DELETE": Route(manage.delete)},
            "/api/me": post(self.cloud.me, (0, 12)),
            "/api/signout": post(self.cloud.signout, (0, 13)),
            "/api/create": post(manage.create),
            "/api/blobs/": {"HEAD": Route(manage.blob), "POST": Route(manage.blob)},
            "/api/copy": post(manage.copy),
            "/api/experimental/web_search": post(plain.unreachable, (0, 20)),
            "/api/experimental/web_fetch": post(plain.unreachable, (0, 20)),
            "/api/experimental/model-recommendations": get(plain.recommendations, (0, 24)),
            "/api/ps": get(self._ps),
            "/api/generate": post(run.generate),
            "/api/chat": post(run.chat),
            "/api/embed": post(embed.embed),
            "/api/embeddings": post(embed.embeddings),
            "/v1/chat/completions": post(run.openai_chat),
            "/v1/completions": post(run.openai_completion),
            "/v1/embeddings": post(embed.openai_embeddings),
            "/v1/models": get(manage.models),
            "/v1/models/": get(manage.one_model),
            "/v1/responses": post(run.responses, (0, 15)),
            "/v1/audio/transcriptions": post(run.transcriptions, (0, 20)),
            "/v1/messages": post(run.messages, (0, 15)),
        }


def _registry_file(settings: Settings) -> Path | None:
    if settings.registry is not None:
        return settings.registry
    return None if settings.store is None else settings.store / registry.FILE


def _unpack(exchange: Exchange) -> bool:
    """False: what came compressed cannot be read, which was answered. Elsewhere Ollama takes no notice of it."""
    if exchange.method == "POST" and exchange.path in PATHS:
        try:
            exchange.body = unpacked(exchange.body)
        except Rejected as rejected:
            exchange.answer(rejected.status, error_body(rejected.message), JSON)
            return False
    return True


def _model_of(exchange: Exchange) -> str | None:
    try:
        return msgspec.json.decode(exchange.body, type=_OnlyModel).model
    except msgspec.DecodeError:
        return None


def machine_spec(settings: Settings) -> MachineSpec:
    return MachineSpec(
        gpu=settings.gpu,
        version=settings.version_numbers,
        parallel=settings.parallel,
        max_loaded=settings.max_loaded,
        max_queue=settings.max_queue,
        keep_alive_s=settings.keep_alive_s,
        context_length=settings.context_length,
        load_s=settings.load_s,
    )
