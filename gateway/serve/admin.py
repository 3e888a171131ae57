"""The admin port: is it alive, is it ready, what does it know, and taking a replica out of the rotation."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final, Protocol

from aiohttp import web

from corral.errors import CorralError
from corral.gateway.serve import admin_models, live
from corral.gateway.serve.explain import explain_json, last
from corral.gateway.serve.exposition import CONTENT_TYPE, MetricsPage
from corral.gateway.serve.metrics import Metrics
from corral.gateway.wire.browser import BrowserRules
from corral.model import Choice, GpuProcess, GpuSample, GpuState, Order, ProcessStatus, ReplicaState, Snapshot

SNAPSHOT_SCHEMA: Final = 1
"""Grows when a key of ``/snapshot`` goes or changes its meaning; new keys may come without."""

_log = logging.getLogger("corral.admin")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

INDEX = """Corral {version}

GET  /healthz                  the process is alive
GET  /readyz                   a replica can serve (else 503 and why not)
GET  /metrics                  figures for Prometheus
GET  /snapshot                 replicas and queue as JSON (`corral status` shows it as a table)
GET  /explain                  the last decisions as JSON (`corral explain` shows them as tables)
POST /replicas/ID/drain        send no new requests there
POST /replicas/ID/resume       send requests there again
POST /replicas/ID/restart      end its Ollama and start it anew (only one that Corral runs)
POST /replicas/ID/stop         end its Ollama; its GPU is free until the next line
POST /replicas/ID/start        start its Ollama again
POST /restart                  all of them, one after the other
"""
INDEX += live.INDEX + admin_models.INDEX


class GatewayControl(Protocol):
    """What the admin port needs of a running gateway."""

    @property
    def version(self) -> str: ...

    def snapshot(self) -> Snapshot: ...

    def explain(self) -> tuple[Choice, ...]:
        """The last decisions, the latest last."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether a request could be served now, and why (not) in a few words."""
        ...

    def set_enabled(self, replica_id: str, enabled: bool) -> None:
        """Resume (True) or drain (False) one replica; raises :class:`CorralError` when there is no such replica."""
        ...

    def order(self, order: Order, replica_id: str) -> None:
        """Restart, stop or start a replica's Ollama; raises :class:`CorralError` where Corral does not run it."""
        ...

    def restart_all(self) -> None:
        """All that Corral runs, one after the other; raises :class:`CorralError` where there are none."""
        ...


def no_hosts() -> Collection[str]:
    return ()


def make_admin(
    control: GatewayControl,
    metrics: Metrics,
    *,
    hosts: Callable[[], Collection[str]] = no_hosts,
    more: Iterable[web.RouteDef] = (),
) -> web.Application:
    """The admin application. ``hosts`` gives the configured extra Host names, asked anew for each request; ``more``:
    routes beside its own, which are kept from web pages like these."""
    routes = _Routes(control, metrics)
    app = web.Application(middlewares=[_errors_as_json, _browser_guard(hosts)], client_max_size=64 << 10)
    app.add_routes(
        [
            web.get("/", routes.index),
            web.get("/healthz", routes.healthz),
            web.get("/readyz", routes.readyz),
            web.get("/metrics", routes.metrics),
            web.get("/snapshot", routes.snapshot),
            web.get("/explain", routes.explain),
            web.post("/replicas/{id}/drain", routes.drain),
            web.post("/replicas/{id}/resume", routes.resume),
            *(web.post(f"/replicas/{{id}}/{order.value}", routes.ordering(order)) for order in Order),
            web.post("/restart", routes.restart_all),
            *more,
        ]
    )
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """The application's runner: no access log, and connections end quickly when the gateway stops."""
    return web.AppRunner(app, access_log=None, shutdown_timeout=1.0)


class _Routes:
    def __init__(self, control: GatewayControl, metrics: Metrics) -> None:
        self._control = control
        self._metrics = metrics
        self._page = MetricsPage(metrics, control.version)

    async def index(self, request: web.Request) -> web.Response:
        return web.Response(text=INDEX.format(version=self._control.version))

    async def healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "program": "corral", "version": self._control.version})

    async def readyz(self, request: web.Request) -> web.Response:
        ready, reason = self._control.ready()
        return web.json_response({"ready": ready, "reason": reason}, status=200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        body = self._page.render(self._control.snapshot())
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def snapshot(self, request: web.Request) -> web.Response:
        return web.json_response(snapshot_page(self._control))

    async def explain(self, request: web.Request) -> web.Response:
        try:
            choices = last(self._control.explain(), request.query.get("n"))
        except ValueError as error:
            return _error(400, str(error))
        decisions = explain_json(choices, self._control.snapshot().taken_at_s)
        return web.json_response({"schema": SNAPSHOT_SCHEMA, "decisions": decisions})

    async def drain(self, request: web.Request) -> web.Response:
        return self._set_enabled(request.match_info["id"], False)

    async def resume(self, request: web.Request) -> web.Response:
        return self._set_enabled(request.match_info["id"], True)

    def ordering(self, order: Order) -> Handler:
        """The route that gives ``order`` to one replica."""

        async def give(request: web.Request) -> web.Response:
            replica_id = request.match_info["id"]
            try:
                self._control.order(order, replica_id)
            except CorralError as error:
                return self._unknown(replica_id) or _error(409, str(error))
            return self._replica(replica_id)

        return give

    async def restart_all(self, request: web.Request) -> web.Response:
        try:
            self._control.restart_all()
        except CorralError as error:
            return _error(409, str(error))
        ids = [process.id for process in self._control.snapshot().processes]
        return web.json_response({"id": None, "restarting": ids})

    def _set_enabled(self, replica_id: str, enabled: bool) -> web.Response:
        try:
            self._control.set_enabled(replica_id, enabled)
        except CorralError as error:
            return self._unknown(replica_id) or _error(409, str(error))
        return self._replica(replica_id)

    def _unknown(self, replica_id: str) -> web.Response | None:
        ids = [replica.id for replica in self._control.snapshot().replicas]
        return None if replica_id in ids else _error(404, f"no replica {replica_id!r}; known: {', '.join(ids)}")

    def _replica(self, replica_id: str) -> web.Response:
        snapshot = self._control.snapshot()
        return web.json_response(next(row for row in _replicas_json(snapshot) if row["id"] == replica_id))


def snapshot_page(control: GatewayControl) -> dict[str, Any]:
    """All of ``/snapshot``."""
    ready, reason = control.ready()
    about = {"schema": SNAPSHOT_SCHEMA, "version": control.version, "ready": ready, "reason": reason}
    return about | snapshot_json(control.snapshot())


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """The part of ``/snapshot`` that comes from the scheduler; its keys are listed in docs/operations.md."""
    return {
        "policy": snapshot.policy,
        "requests": {
            "in_flight": snapshot.inflight,
            "queued": snapshot.queued,
            "queued_by_model": snapshot.queued_by_model,
            "oldest_wait_s": snapshot.oldest_wait_s,
        },
        "replicas": _replicas_json(snapshot),
        "gpus": [_gpu_json(state) for state in snapshot.gpus],
        "advice": list(snapshot.advice),
    }


def _replicas_json(snapshot: Snapshot) -> list[dict[str, Any]]:
    processes = {process.id: _process_json(process, snapshot.taken_at_s) for process in snapshot.processes}
    return [_replica_json(replica) | {"process": processes.get(replica.id)} for replica in snapshot.replicas]


def _process_json(process: ProcessStatus, now_s: float) -> dict[str, Any]:
    next_start_s = process.next_start_s
    return {
        "state": process.state.value,
        "reason": process.reason,
        "for_s": round(max(0.0, now_s - process.since_s), 3),
        "pid": process.pid,
        "port": process.port,
        "restarts": process.restarts,
        "next_start_in_s": None if next_start_s is None else round(max(0.0, next_start_s - now_s), 3),
        "adopted": process.adopted,
        "log": process.log,
    }


def _gpu_json(state: GpuState) -> dict[str, Any]:
    gpu = state.gpu
    return {
        "gpu": state.label,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "vendor": gpu.vendor.value,
        "memory_bytes": gpu.memory_bytes,
        "condition": state.condition.value,
        "reason": state.reason,
        "xid": state.xid,
        "sample_age_s": state.sample_age_s,
        "sample": None if state.sample is None else _sample_json(state.sample),
    }


def _sample_json(sample: GpuSample) -> dict[str, Any]:
    names = [name for name in sample.__slots__ if name not in ("uuid", "taken_at_s", "throttles", "processes")]
    plain = {name: getattr(sample, name) for name in names}
    throttles, processes = sample.throttles, sample.processes
    plain["throttles"] = None if throttles is None else sorted(reason.value for reason in throttles)
    plain["processes"] = None if processes is None else [_user_json(process) for process in processes]
    return plain


def _user_json(process: GpuProcess) -> dict[str, Any]:
    return {"pid": process.pid, "memory_bytes": process.memory_bytes}


def _replica_json(replica: ReplicaState) -> dict[str, Any]:
    return {
        "id": replica.id,
        "health": replica.health.value,
        "enabled": replica.enabled,
        "held": replica.held,
        "reason": replica.reason,
        "weight": replica.weight,
        "slots": replica.slots,
        "in_flight": replica.inflight,
        "in_flight_by_model": replica.inflight_by_model,
        "version": replica.version,
        "installed": None if replica.installed is None else list(replica.installed),
        "loaded": None if replica.loaded is None else list(replica.loaded),
        "changing": replica.changing,
        "sample_age_s": replica.sample_age_s,
        "models": None if replica.models is None else list(replica.models),
        "gpus": list(replica.gpus),
    }


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return _error(404, f"no such route: {request.path}; GET / lists them")
    except web.HTTPMethodNotAllowed as error:
        answer = _error(405, f"{request.path} takes {', '.join(sorted(error.allowed_methods))}, not {error.method}")
        answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except web.HTTPException as error:
        return _error(error.status, error.reason)
    except Exception:  # a bug: the admin port stays up and says nothing of its insides
        _log.exception("admin_failed path=%s", request.path)
        return _error(500, "internal error; the log says more")


def _browser_guard(hosts: Callable[[], Collection[str]]) -> Any:
    """Keeps web pages out: no foreign Host (DNS rebinding), no foreign Origin (cross-site requests)."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        rules = BrowserRules(on_loopback=True, hosts=tuple(hosts()))
        named = request.headers.getall("Host", [""])
        host = named[0].encode("latin-1", "replace")
        if len(named) > 1 or not rules.host_allowed(host):
            return _error(403, f"host {named[0]!r} is not allowed; add it to hosts in the configuration")
        for origin in request.headers.getall("Origin", []):
            if not rules.same_origin(origin.encode("latin-1", "replace"), host):
                return _error(403, "requests from other web pages are not allowed")
        return await handler(request)

    return guard
