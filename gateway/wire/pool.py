"""Idle connections to the replicas, kept for reuse, and the making of new ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from corral.gateway.wire.outbox import Outbox
from corral.gateway.wire.upstream import Address, UpstreamConnection
from corral.model import Replica

_MAX_IDLE: Final = 256
_IDLE_S: Final = 60.0
_REST_S: Final = 0.005
"""Between two uses. What a replica sends behind the end of an answer shows by then; it must not begin the next one."""


class Pool:
    """All upstream connections of the gateway."""

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox, connect_s: float) -> None:
        self._loop = loop
        self.now = loop.time
        self.outbox = outbox
        self.connect_s = connect_s
        self.rest_s = _REST_S
        self.report_bug: Callable[[str, Exception], None] = lambda where, error: None
        """Told when carrying on with a new connection failed in a way it must not."""
        self._idle: dict[Address, deque[UpstreamConnection]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self.active: set[UpstreamConnection] = set()
        """Connections that carry an exchange now."""

    def __repr__(self) -> str:
        return f"<Pool: {len(self.active)} active, {self.idle} idle, {len(self._connecting)} connecting>"

    @property
    def idle(self) -> int:
        return sum(map(len, self._idle.values()))

    def take(self, replica: Replica) -> UpstreamConnection | None:
        """The idle connection to ``replica`` that has rested longest, if one has rested enough."""
        idle = self._idle.get((replica.host, replica.port))
        rested_s = self._loop.time() - self.rest_s
        while idle and idle[0].idle_since_s <= rested_s:
            connection = idle.popleft()
            if connection.is_quiet():
                return connection
            connection.abort()
        return None

    def put(self, connection: UpstreamConnection) -> None:
        """Keep ``connection`` for reuse."""
        if connection.transport is None or connection.transport.is_closing():
            return
        idle = self._idle.setdefault(connection.address, deque())
        if len(idle) >= _MAX_IDLE:
            connection.abort()
            return
        connection.reused = True
        connection.idle_since_s = self._loop.time()
        idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """``connection`` ended: it is nobody's any more."""
        idle = self._idle.get(connection.address)
        if idle and connection in idle:
            idle.remove(connection)

    def connect(self, replica: Replica, done: Callable[[UpstreamConnection | None], None]) -> None:
        """Open a connection; ``done`` gets it, or None when nothing accepted it within ``connect_s``."""
        task = self._loop.create_task(self._connect((replica.host, replica.port), done))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, address: Address, done: Callable[[UpstreamConnection | None], None]) -> None:
        connection: UpstreamConnection | None = None
        try:
            async with asyncio.timeout(self.connect_s):
                _, connection = await self._loop.create_connection(lambda: UpstreamConnection(self, address), *address)
        except OSError:  # TimeoutError is one too
            connection = None
        try:
            done(connection)
        except Exception as error:  # the boundary of this task
            self.report_bug("connect", error)

    def sweep(self, now_s: float) -> None:
        """End connections that were idle for long: Ollama does not mind, but a restarted one would."""
        for idle in self._idle.values():
            while idle and now_s - idle[0].idle_since_s > _IDLE_S:
                idle.popleft().abort()

    def keep_only(self, replicas: Iterable[Replica]) -> None:
        """End idle connections to all other addresses (replicas that a reload removed)."""
        kept = {(replica.host, replica.port) for replica in replicas}
        for address in [address for address in self._idle if address not in kept]:
            for connection in self._idle.pop(address):
                connection.abort()

    async def close(self) -> None:
        """End every connection; wait for those being made."""
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for idle in self._idle.values():
            for connection in list(idle):
                connection.abort()
        self._idle.clear()
        for connection in list(self.active):
            connection.abort()
