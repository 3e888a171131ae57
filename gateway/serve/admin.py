"""The admin port: is it alive, is it ready, what does it know, and taking a replica out of the rotation."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Protocol

from aiohttp import web

from corral.errors import CorralError
from corral.gateway.serve import admin_config, admin_models, live, openapi, replica_log, tree
from corral.gateway.serve.explain import explain_json, last, of_request
from corral.gateway.serve.metrics import Metrics
from corral.gateway.serve.metrics_page import MetricsPage
from corral.gateway.serve.snapshot import SNAPSHOT_SCHEMA, replicas_json, snapshot_page
from corral.gateway.serve.textformat import CONTENT_TYPE
from corral.gateway.web import playground
from corral.gateway.web.pages import WebPages
from corral.gateway.wire.browser import BrowserRules
from corral.model import Choice, Order, Snapshot

_log = logging.getLogger("corral.admin")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

INDEX = """Corral {version}

GET  /                         this list; to a browser, the web page
GET  /routes                   this list
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
INDEX += playground.INDEX
INDEX += replica_log.INDEX + live.INDEX + tree.INDEX + admin_config.INDEX + admin_models.INDEX + openapi.INDEX


class GatewayControl(Protocol):
    """What the admin port needs of a running gateway."""

    @property
    def version(self) -> str: ...

    def snapshot(self) -> Snapshot: ...

    def summary(self) -> Snapshot:
        """The snapshot without its lists of requests."""
        ...

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
            web.get("/routes", routes.listing),
            web.get("/openapi.json", routes.openapi),
            *routes.pages.routes(),
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
        self.pages = WebPages()

    async def index(self, request: web.Request) -> web.StreamResponse:
        """The page to a browser, the list of routes to everybody else."""
        if "text/html" in request.headers.get("Accept", ""):
            return self.pages.index(request)
        return await self.listing(request)

    async def listing(self, request: web.Request) -> web.Response:
        return web.Response(text=INDEX.format(version=self._control.version), headers={"Vary": "Accept"})

    async def openapi(self, request: web.Request) -> web.Response:
        return web.json_response(openapi.openapi_page(INDEX, self._control.version))

    async def healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "program": "corral", "version": self._control.version})

    async def readyz(self, request: web.Request) -> web.Response:
        ready, reason = self._control.ready()
        return web.json_response({"ready": ready, "reason": reason}, status=200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        body = self._page.render(self._control.summary(), ready=self._control.ready()[0])
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def snapshot(self, request: web.Request) -> web.Response:
        return web.json_response(snapshot_page(self._control))

    async def explain(self, request: web.Request) -> web.Response:
        try:
            choices = of_request(self._control.explain(), request.query.get("id"))
            choices = last(choices, request.query.get("n"))
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
        return web.json_response(next(row for row in replicas_json(snapshot) if row["id"] == replica_id))


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
