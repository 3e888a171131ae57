"""The yardstick in Python: a tuned streaming reverse proxy on aiohttp and uvloop.

It balances by requests in flight and relays each chunk as it comes. No queue, no model, no retry, no accounting.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from dataclasses import dataclass

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
    )
)


@dataclass(slots=True)
class Upstream:
    base: str
    inflight: int = 0


def passing(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


class Proxy:
    def __init__(self, session: ClientSession, upstreams: list[Upstream]) -> None:
        self._session = session
        self._upstreams = upstreams

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        upstream = min(self._upstreams, key=lambda candidate: candidate.inflight)
        upstream.inflight += 1
        try:
            return await self._relay(request, upstream.base, body)
        finally:
            upstream.inflight -= 1

    async def _relay(self, request: web.BaseRequest, base: str, body: bytes) -> web.StreamResponse:
        url = URL(base + request.raw_path, encoded=True)
        asked = self._session.request(
            request.method, url, headers=passing(request.headers), data=body or None, allow_redirects=False
        )
        async with asked as answer:
            headers = passing(answer.headers)
            if answer.content_length is not None:
                return web.Response(status=answer.status, headers=headers, body=await answer.read())
            response = web.StreamResponse(status=answer.status, headers=headers)
            response.enable_chunked_encoding()
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


async def serve(port: int, upstreams: list[Upstream]) -> None:
    connector = TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=600)
    async with ClientSession(
        connector=connector,
        timeout=ClientTimeout(total=None, sock_connect=2),
        auto_decompress=False,
        cookie_jar=DummyCookieJar(),
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
    ) as session:
        server = web.Server(
            Proxy(session, upstreams).handle, access_log=None, keepalive_timeout=600, handler_cancellation=True
        )
        runner = web.ServerRunner(server)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        gc.collect()
        gc.freeze()
        await asyncio.Event().wait()


def main() -> None:
    port, *upstream_ports = (int(argument) for argument in sys.argv[1:])
    upstreams = [Upstream(f"http://127.0.0.1:{upstream}") for upstream in upstream_ports]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(port, upstreams))


if __name__ == "__main__":
    main()
