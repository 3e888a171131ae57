"""The admin port's routes for the configuration: what applies and where it comes from, and reading it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from corral.gateway.config.shown import CONFIG_SCHEMA, config_page
from corral.gateway.reloading import Outcome, Reloader

INDEX: Final = """\
GET  /config                   each key of the configuration, its value and where that comes from
POST /reload                   read the configuration again (`corral reload`); "dry_run": true only says what changes
"""
NO_FILE: Final = (
    "this gateway was started without a configuration file, so there is nothing to read again\n"
    "  start it with one: corral serve --config FILE (corral config show --running > FILE writes what it goes by now)"
)


class _Reload(msgspec.Struct, forbid_unknown_fields=True):
    dry_run: bool = False


class Reload(Protocol):
    async def __call__(self, *, dry_run: bool = False) -> Outcome: ...


class ConfigRoutes:
    """``spawn`` runs a coroutine to its end, whatever becomes of who asked; ``is_stopping``: the gateway's end has
    begun."""

    def __init__(
        self,
        reloader: Reloader,
        reload: Reload,
        spawn: Callable[[Coroutine[object, object, None]], asyncio.Task[None]],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._reloader = reloader
        self._reload = reload
        self._spawn = spawn
        self._is_stopping = is_stopping

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/config", self.config), web.post("/reload", self.reload)]

    async def config(self, request: web.Request) -> web.Response:
        page = config_page(self._reloader.settled)
        return web.json_response(page | {"needs_restart": list(self._reloader.needs_restart)})

    async def reload(self, request: web.Request) -> web.Response:
        content = await request.read()
        try:
            asked = msgspec.json.decode(content, type=_Reload) if content.strip() else _Reload()
        except msgspec.MsgspecError as error:
            return _error(400, f"the body is not what it should be: {error}")
        if not self._reloader.has_file:
            return _error(409, NO_FILE)
        if self._is_stopping():
            return _error(409, "the gateway is stopping; what it would start now, nobody would end")
        outcome = await self._reloaded(dry_run=asked.dry_run)
        return web.json_response(outcome_json(outcome), status=422 if outcome.error is not None else 200)

    async def _reloaded(self, *, dry_run: bool) -> Outcome:
        """A reload is not broken off in the middle because the one who asked for it left."""
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                outcome = await self._reload(dry_run=dry_run)
            except asyncio.CancelledError:
                if not answer.done():
                    answer.set_exception(web.HTTPServiceUnavailable(reason="the gateway stopped meanwhile"))
                raise
            except BaseException as error:  # handed on, so that nobody waits for ever
                if not answer.done():
                    answer.set_exception(RuntimeError(f"the reload failed: {type(error).__name__}"))
                raise
            if not answer.done():
                answer.set_result(outcome)

        self._spawn(work())
        return await answer


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    page: dict[str, Any] = {
        "schema": CONFIG_SCHEMA,
        "used": outcome.used,
        "changes": list(outcome.changes),
        "needs_restart": list(outcome.needs_restart),
    }
    if outcome.error is not None:
        page |= {"error": outcome.error, "problems": [_problem_json(asdict(each)) for each in outcome.problems]}
    return page


def _problem_json(problem: dict[str, Any]) -> dict[str, Any]:
    return {
        "line": problem["line"] or None,
        "column": problem["column"] or None,
        "key": problem["path"],
        "message": problem["text"],
    }


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
