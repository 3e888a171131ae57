"""The API server of Kubernetes, as far as endpoints are concerned: list and watch, with the service account's token."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import aiohttp
import msgspec
from yarl import URL

from corral.errors import OperatorError
from corral.gateway.config.discovery import KubernetesConfig
from corral.gateway.discovery.slices import Slice, SliceList, Status, WatchEvent

LABEL: Final = "kubernetes.io/service-name"
ROLE: Final = "apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]"
_PAGE: Final = 500
_MOST_BYTES: Final = 16 << 20
ANSWER_S: Final = 10.0
SILENT_S: Final = 60.0
"""A watch is asked to end by itself after less than this; what is silent for longer is not there any more."""

_T = TypeVar("_T")


class Refused(Exception):
    """The API server did not do it; in words for the operator."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Expired(Exception):
    """The watch's place is too old: everything has to be listed anew (410)."""


class Api:
    """One Service's EndpointSlices. Raises Refused, Expired, aiohttp.ClientError, OSError or TimeoutError."""

    def __init__(
        self, config: KubernetesConfig, session: aiohttp.ClientSession, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._session = session
        self._account: Path = config.service_account
        self._base = _base(config, environ)
        self._service = config.service
        self.namespace = config.namespace or _namespace(self._account)
        self._ssl: tuple[float, ssl.SSLContext] | None = None

    async def list(self) -> tuple[dict[str, Slice], str]:
        """All slices by name, and the place that a watch goes on from."""
        slices: dict[str, Slice] = {}
        place, more = "", ""
        while True:
            query = {"limit": str(_PAGE)} | ({"continue": more} if more else {})
            async with asyncio.timeout(ANSWER_S), self._get(query) as response:
                page = _decoded(await _whole(response), SliceList)
            slices |= {each.metadata.name: each for each in page.items}
            place, more = page.metadata.resourceVersion, page.metadata.continue_
            if not more:
                return slices, place

    async def watch(self, place: str, for_s: int) -> AsyncIterator[tuple[str, Slice]]:
        """What changes from there on: (ADDED, MODIFIED, DELETED or BOOKMARK, slice), until the server ends it."""
        query = {
            "watch": "true",
            "resourceVersion": place,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(for_s),
        }
        async with self._get(query) as response:
            rest = b""
            while True:
                async with asyncio.timeout(SILENT_S):
                    piece = await response.content.readany()
                if not piece:
                    return
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > _MOST_BYTES:
                    raise Refused(0, "an event without an end")
                for line in lines:
                    if line.strip():
                        yield _event(line)

    @asynccontextmanager
    async def _get(self, query: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"
        url = self._base.with_path(path).with_query({"labelSelector": f"{LABEL}={self._service}"} | query)
        headers = self._headers()
        tls = self._tls() if url.scheme == "https" else True
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_S)
        async with self._session.get(url, headers=headers, ssl=tls, timeout=timeout, allow_redirects=False) as response:
            if response.status == 410:
                raise Expired
            if response.status != 200:
                raise Refused(response.status, self._why(response.status, await _whole(response)))
            yield response

    def _headers(self) -> dict[str, str]:
        """The token is read anew each time: Kubernetes replaces it about once an hour."""
        try:
            token = (self._account / "token").read_text().strip()
        except OSError:
            return {}
        return {"Authorization": f"Bearer {token}"}

    def _tls(self) -> ssl.SSLContext:
        """For the cluster's own authority, whose file may be replaced, too."""
        path = self._account / "ca.crt"
        try:
            changed_s = path.stat().st_mtime
            if self._ssl is None or self._ssl[0] != changed_s:
                self._ssl = changed_s, ssl.create_default_context(cafile=str(path))
        except (OSError, ssl.SSLError) as error:
            raise Refused(0, f"{path} cannot be read: {error}") from None
        return self._ssl[1]

    def _why(self, status: int, body: bytes) -> str:
        try:
            said = msgspec.json.decode(body, type=Status).message
        except (ValueError, msgspec.MsgspecError):
            said = ""
        if status == 401:
            return f"the API server does not know the service account's token ({self._account / 'token'})"
        if status == 403:
            return (
                f"the service account may not look: it needs a Role in namespace {self.namespace} with {ROLE}, "
                "and a RoleBinding (deploy/kubernetes/base/balancer/rbac.yaml has both)"
            )
        return f"HTTP {status}{f': {said}' if said else ''}"


def _base(config: KubernetesConfig, environ: Mapping[str, str]) -> URL:
    if config.api is not None:
        return URL(str(config.api))
    host = environ.get("KUBERNETES_SERVICE_HOST")
    if not host:
        raise OperatorError(
            "discovery.kubernetes: this is no pod of Kubernetes (KUBERNETES_SERVICE_HOST is not set)\n"
            "  outside, run `kubectl proxy` and set api: http://127.0.0.1:8001 and namespace:"
        )
    port = environ.get("KUBERNETES_SERVICE_PORT_HTTPS") or environ.get("KUBERNETES_SERVICE_PORT") or "443"
    return URL.build(scheme="https", host=host, port=int(port))


def _namespace(account: Path) -> str:
    try:
        return (account / "namespace").read_text().strip()
    except OSError:
        raise OperatorError(
            f"discovery.kubernetes: {account / 'namespace'} cannot be read; say in which namespace the Service is:\n"
            "  discovery: {kubernetes: {service: …, namespace: …}}"
        ) from None


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _MOST_BYTES:
            raise Refused(0, "an answer without an end")
    return bytes(body)


def _decoded(body: bytes, shape: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (ValueError, msgspec.MsgspecError):
        raise Refused(0, "an answer that is none of the API server's") from None


def _event(line: bytes) -> tuple[str, Slice]:
    event = _decoded(line, WatchEvent)
    if event.type == "ERROR":
        status = _decoded(bytes(event.object), Status)
        if status.code == 410:
            raise Expired
        raise Refused(status.code, status.message or status.reason)
    return event.type, _decoded(bytes(event.object), Slice)
