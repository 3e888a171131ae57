"""The admin port's page for a Corral above this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import web

from corral.model import TreeLoad

INDEX: Final = """\
GET  /load                     how each replica stands in seconds, for a Corral above this one
"""
_encode: Final = msgspec.json.Encoder().encode


class TreeRoutes:
    """``load`` gives the page for the Corral of a run; empty: for anybody."""

    def __init__(self, load: Callable[[str], TreeLoad]) -> None:
        self._load = load

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/load", self.page)]

    async def page(self, request: web.Request) -> web.Response:
        body = _encode(self._load(request.query.get("via", "")))
        return web.Response(body=body, content_type="application/json")
