"""Those who read a page that goes on: so many at most, and none that takes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web


class Readers:
    """``most`` at a time; ``what`` they are called when there are too many."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._here = 0

    async def serve(
        self, request: web.Request, response: web.StreamResponse, tell: Callable[[], Awaitable[None]]
    ) -> web.StreamResponse:
        """Begin the answer and ``tell``, which raises TimeoutError where the reader takes nothing. Raises the 503 where
        there are as many as there may be."""
        if self._here >= self._most:
            raise web.HTTPServiceUnavailable(reason=f"{self._most} {self._what} are here already")
        self._here += 1
        try:
            await response.prepare(request)
            await tell()
        except ConnectionError:
            pass  # the reader left
        except TimeoutError:  # it does not read, so it would not read a proper end either
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._here -= 1
        return response
