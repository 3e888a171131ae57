"""One running emulator: constructs everything, guards, routes and cancels."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from corral.emulator import arrival, guard, listing, plain
from corral.emulator.control import ControlRoutes
from corral.emulator.dialects.base import JSON
from corral.emulator.dialects.native import error_body
from corral.emulator.faults import Faults, Moment
from corral.emulator.inference import Counters, EmulatedEngine, Engine, Inference
from corral.emulator.machine import Machine, MachineSpec
from corral.emulator.manage import ManageRoutes
from corral.emulator.rig import Rig
from corral.emulator.routes import InferenceRoutes
from corral.emulator.settings import Settings
from corral.emulator.store import DirectoryShelf, MemoryShelf, Store
from corral.emulator.text import to_json
from corral.emulator.wire import Connection, Exchange

_PLAIN = b"text/plain"
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
        for spec in reversed(settings.models):
            if self.store.get(spec.name) is None:
                self.store.install(spec, time.time())
        self.rig = Rig(Machine(machine_spec(settings)), settings.speed, settings.fixed_tok_s)
        engine = self._engine()
        inference = Inference(self.rig, engine, self.faults, self.counters)
        self._inference = InferenceRoutes(settings, self.store, self.rig, inference, self.faults, Random(settings.seed))
        self._manage = ManageRoutes(settings, self.store, self.rig)
        self.control = ControlRoutes(
            settings, self.rig, self.store, self._manage, self.faults, self.counters, self.connections
        )
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
            exchange.answer(400, error_body("failed to decompress zstd request body"), JSON)
            return
        methods = self._methods(exchange.path)
        route = methods.get(exchange.method)
        if route is not None:
            running = route.handler(exchange)
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
            # a bug of the emulator must fail the test that meets it, loudly
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
        models = [
            listing.running(runner, self.store.get(runner.job.name), now, wall, self.rig.speed)
            for runner in self.rig.machine.listed(now)
        ]
        exchange.answer(200, to_json({"models": models}), JSON)

    def _engine(self) -> Engine:
        if self.settings.gguf is None:
            return EmulatedEngine(self.rig)
        from corral.emulator.llamacpp import LlamaEngine

        return LlamaEngine(
            self.settings.gguf, self.rig, self.settings.parallel, self.settings.threads, self.settings.context_length
        )

    def _table(self) -> dict[str, dict[str, Route]]:
        run, manage = self._inference, self._manage

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
            "/api/status": get(plain.status, (0, 17)),
            "/api/pull": post(manage.pull),
            "/api/push": post(manage.push),
            "/api/tags": reading(manage.tags),
            "/api/show": post(manage.show),
            "/api/delete": {"DELETE": Route(manage.delete)},
            "/api/me": post(plain.me, (0, 12)),
            "/api/signout": post(plain.signout, (0, 13)),
            "/api/create": post(manage.create),
            "/api/blobs/": {"HEAD": Route(manage.blob), "POST": Route(manage.blob)},
            "/api/copy": post(manage.copy),
            "/api/experimental/web_search": post(plain.unreachable, (0, 20)),
            "/api/experimental/web_fetch": post(plain.unreachable, (0, 20)),
            "/api/experimental/model-recommendations": get(plain.recommendations, (0, 24)),
            "/api/ps": get(self._ps),
            "/api/generate": post(run.generate),
            "/api/chat": post(run.chat),
            "/api/embed": post(run.embed),
            "/api/embeddings": post(run.embeddings),
            "/v1/chat/completions": post(run.openai_chat),
            "/v1/completions": post(run.openai_completion),
            "/v1/embeddings": post(run.openai_embeddings),
            "/v1/models": get(manage.models),
            "/v1/models/": get(manage.one_model),
            "/v1/responses": post(run.responses, (0, 15)),
            "/v1/messages": post(run.messages, (0, 15)),
        }


def _unpack(exchange: Exchange) -> bool:
    """Decompress a zstd body where Python can (3.14 on)."""
    try:
        zstd = importlib.import_module("compression.zstd")
        exchange.body = zstd.decompress(exchange.body)
    except (ImportError, OSError, ValueError):
        return False
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
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
