"""Which removals a pull had beside it: any of them may have taken a layer that the pull had found and not yet named."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class _Store:
    def __init__(self) -> None:
        self.begun = 0
        self.running = 0
        self.none_runs = asyncio.Event()
        self.none_runs.set()


class Removals:
    """Of every store."""

    def __init__(self) -> None:
        self._stores: dict[str, _Store] = {}

    @contextmanager
    def one(self, store: str) -> Iterator[None]:
        """A model is being removed."""
        found = self._of(store)
        found.begun += 1
        found.running += 1
        found.none_runs.clear()
        try:
            yield
        finally:
            found.running -= 1
            if not found.running:
                found.none_runs.set()

    def mark(self, store: str) -> int:
        """To be compared later."""
        found = self._of(store)
        return found.begun - found.running

    async def any_since(self, store: str, mark: int) -> bool:
        """Whether one was under way since then; waits until none is."""
        found = self._of(store)
        overlapped = found.begun != mark
        await found.none_runs.wait()
        return overlapped

    def _of(self, store: str) -> _Store:
        return self._stores.setdefault(store, _Store())
