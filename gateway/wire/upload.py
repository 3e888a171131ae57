"""A request body that a task reads while it comes in, no faster than the task takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from corral.gateway.wire.client import ClientConnection

_ROOM: Final = 256 * 1024
"""So much may wait for the task; then the client is not read from."""


class Upload:
    """The payload of one body, piece by piece. Iterate over it once."""

    __slots__ = ("_client", "_ended", "_more", "_pieces", "_size")

    def __init__(self, client: ClientConnection) -> None:
        self._client = client
        self._pieces: list[bytes] = []
        self._size = 0
        self._ended = False
        self._more = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return self._size >= _ROOM

    def feed(self, data: bytes, *, ended: bool) -> None:
        """What the connection read."""
        if data:
            self._pieces.append(data)
            self._size += len(data)
        self._ended = self._ended or ended
        self._more.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._client.resume_body()
        while True:
            await self._more.wait()
            pieces, self._pieces, self._size = self._pieces, [], 0
            ended = self._ended
            self._more.clear()
            if pieces:
                yield b"".join(pieces)
            if ended:
                return
            self._client.resume_body()
