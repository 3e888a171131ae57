"""Those who wait for one operation: each hears all of it that matters, as fast as it listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from corral.gateway.store.lines import Line
from corral.gateway.store.said import Said

_MOST_LINES: Final = 4096
"""So many lines of different things are kept for a listener; a model of a thousand files has no more."""

_Kept = dict[str | bytes, bytes]


class Listener:
    """One of them. Of what it has not taken yet only the latest line of each thing is kept."""

    def __init__(self, told: _Kept, said: Said | None) -> None:
        self._told = dict(told)
        self._said = said
        self._news = asyncio.Event()
        if told or said is not None:
            self._news.set()

    def tell(self, key: str | bytes, raw: bytes) -> None:
        _keep(self._told, key, raw)
        self._news.set()

    def end(self, said: Said) -> None:
        self._said = said
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The lines but the last; afterwards :meth:`said` is there."""
        while True:
            await self._news.wait()
            while self._told:
                key = next(iter(self._told))
                yield self._told.pop(key)
            if self._said is not None:
                return
            self._news.clear()

    async def said(self) -> Said:
        """How it ended. Lines that are not wanted may stay where they are."""
        while self._said is None:
            await self._news.wait()
            if self._said is None:
                self._news.clear()
        return self._said


class Audience:
    """All of them."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._told: _Kept = {}
        """The latest line of each thing, for those who come later."""
        self._said: Said | None = None

    def __len__(self) -> int:
        return len(self._listeners)

    def join(self) -> Listener:
        """Hears how far it is, then what comes."""
        listener = Listener(self._told, self._said)
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def tell(self, line: Line) -> None:
        _keep(self._told, line.key, line.raw)
        for listener in self._listeners:
            listener.tell(line.key, line.raw)

    def anew(self) -> None:
        """It is begun once more: what was told so far is nothing for those who come later."""
        self._told = {}

    def end(self, said: Said) -> None:
        self._said = said
        for listener in self._listeners:
            listener.end(said)


def _keep(kept: _Kept, key: str | bytes, raw: bytes) -> None:
    kept[key] = raw
    if len(kept) > _MOST_LINES:
        del kept[next(iter(kept))]
