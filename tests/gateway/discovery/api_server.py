"""An API server of Kubernetes on loopback, as far as EndpointSlices are concerned: list, watch, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Slice = dict[str, Any]
PATH = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


def endpoint(address: str, *, ready: bool | None = True, terminating: bool | None = None) -> dict[str, Any]:
    """As a real one looks; conditions that are None are left out."""
    said = {"ready": ready, "serving": ready, "terminating": terminating}
    return {
        "addresses": [address],
        "conditions": {name: value for name, value in said.items() if value is not None},
        "nodeName": "node-a",
        "targetRef": {"kind": "Pod", "name": "corral-node-x7k2p", "namespace": "corral", "uid": "0f3c"},
    }


def slice_of(
    name: str, *endpoints: dict[str, Any], family: str = "IPv4", ports: list[dict[str, Any]] | None = None
) -> Slice:
    named = [{"name": "ollama", "port": 11434, "protocol": "TCP"}, {"name": "admin", "port": 11435, "protocol": "TCP"}]
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": name,
            "namespace": "corral",
            "generateName": "corral-nodes-",
            "labels": {"kubernetes.io/service-name": "corral-nodes"},
        },
        "addressType": family,
        "endpoints": list(endpoints) or None,
        "ports": named if ports is None else ports,
    }


class ApiServer:
    """Keeps slices and a log of their changes; a watch goes on from its resourceVersion."""

    def __init__(self) -> None:
        self.port = 0
        self.slices: dict[str, Slice] = {}
        self.version = 100
        self.oldest = 100
        """Watches from before this are told 410."""
        self.token: str | None = None
        """The only one that is let in; None: anybody."""
        self.refuses: tuple[int, str] | None = None
        self.lists = self.watches = 0
        self.tokens: list[str] = []
        self.queries: list[dict[str, str]] = []
        self.page_size = 500
        self._log: list[tuple[int, bytes]] = []
        self._changed = asyncio.Event()
        self._cut = asyncio.Event()

    # -- what happens in the cluster

    def put(self, changed: Slice) -> None:
        kind = "MODIFIED" if changed["metadata"]["name"] in self.slices else "ADDED"
        self._tell(kind, changed)
        self.slices[changed["metadata"]["name"]] = changed

    def delete(self, name: str) -> None:
        self._tell("DELETED", self.slices.pop(name))

    def bookmark(self) -> None:
        self._tell("BOOKMARK", {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": {}})

    def compact(self) -> None:
        """Forget the past, and tell those that watch that theirs is too old."""
        self.version += 1
        self.oldest = self.version
        self._log.clear()
        self._write({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})

    def cut(self) -> None:
        """Reset every watch."""
        self._cut.set()
        self._cut = asyncio.Event()

    def _tell(self, kind: str, changed: Slice) -> None:
        self.version += 1
        changed["metadata"]["resourceVersion"] = str(self.version)
        self._write({"type": kind, "object": changed})

    def _write(self, event: dict[str, Any]) -> None:
        self._log.append((self.version, json.dumps(event).encode() + b"\n"))
        self._changed.set()
        self._changed = asyncio.Event()

    # -- what it answers

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(request.headers.get("Authorization", ""))
        self.queries.append(dict(request.query))
        if self.token is not None and self.tokens[-1] != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        if self.refuses is not None:
            return _status(*self.refuses)
        assert request.query["labelSelector"] == "kubernetes.io/service-name=corral-nodes"
        return await self._watch(request) if "watch" in request.query else self._list(request)

    def _list(self, request: web.Request) -> web.Response:
        self.lists += 1
        first = int(request.query.get("continue", "0"))
        items = list(self.slices.values())[first : first + self.page_size]
        more = str(first + self.page_size) if first + self.page_size < len(self.slices) else ""
        metadata = {"resourceVersion": str(self.version), "continue": more}
        return web.json_response({"kind": "EndpointSliceList", "metadata": metadata, "items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        if since < self.oldest:
            return _status(410, "too old resource version")
        self.watches += 1
        cut, response = self._cut, web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            changed = self._changed
            for version, line in self._log:
                if version > since:
                    since = max(version, since)
                    await response.write(line[:20])  # events come in pieces
                    await response.write(line[20:])
            waiting = [asyncio.create_task(each.wait()) for each in (changed, cut)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            if cut.is_set():
                if request.transport is not None:  # else its client was quicker
                    request.transport.abort()
                return response


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "message": message, "code": code}, status=code)


@asynccontextmanager
async def api_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[ApiServer]:
    server = ApiServer()
    app = web.Application()
    app.router.add_get(PATH, server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        server.cut()
        await runner.cleanup()
