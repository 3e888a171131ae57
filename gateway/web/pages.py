"""The web page's files, as they lie in the package, and the headers that keep them harmless and quick to load."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final, NamedTuple

from aiohttp import web

_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Only the files beside it run or paint, and the page talks to nobody but the admin port."""
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class File(NamedTuple):
    """One file of the page."""

    body: bytes
    type: str
    etag: str


class WebPages:
    """``GET /`` for browsers, and ``/static/NAME``. All files are in memory: there are few, and they are small."""

    def __init__(self) -> None:
        self.files = _read()

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/static/{name}", self.static)]

    def index(self, request: web.Request) -> web.Response:
        answer = _answer(request, self.files["index.html"])
        answer.headers["Vary"] = "Accept"
        return answer

    async def static(self, request: web.Request) -> web.Response:
        found = self.files.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        return _answer(request, found)


def _read() -> dict[str, File]:
    found = {}
    for entry in files("corral.gateway.web").joinpath("static").iterdir():
        kind = _TYPES.get(entry.name.rpartition(".")[2])
        if kind is not None:
            body = entry.read_bytes()
            found[entry.name] = File(body, kind, hashlib.sha256(body).hexdigest()[:20])
    return found


def _answer(request: web.Request, file: File) -> web.Response:
    """The file, or 304 where the reader has it already."""
    headers = {**_HEADERS, "ETag": f'"{file.etag}"'}
    known = request.if_none_match
    if known is not None and any(tag.value in ("*", file.etag) for tag in known):
        return web.Response(status=304, headers=headers)
    return web.Response(body=file.body, headers={**headers, "Content-Type": file.type})
