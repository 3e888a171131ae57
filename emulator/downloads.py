"""The downloads of one emulated Ollama: who wants the same blob shares one, and what breaks off is resumed later."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any, Final

from corral.emulator.ask import Rejected
from corral.emulator.catalog import calibration
from corral.emulator.manifest import Layer
from corral.emulator.rig import Rig
from corral.emulator.shelf import Partial, Shelf

Status = dict[str, Any]
Statuses = AsyncGenerator[Status, None]

_PROGRESS_S: Final = 0.06
_LEAST_PROGRESS_S: Final = 0.01
_SMALL_BYTES: Final = 1_000_000
_LEAST_PULL_S: Final = 1e-3


class _Download:
    """One blob on its way. ``waiting`` counts those who want it."""

    def __init__(self, partial: Partial) -> None:
        self.partial = partial
        self.waiting = 0
        self.task: asyncio.Task[None] | None = None


class Downloads:
    """Each is a task of its own that ends with its last listener. The owner calls :meth:`close`."""

    def __init__(self, shelf: Shelf, rig: Rig, pull_s: float | None) -> None:
        self.begun: Counter[str] = Counter()
        """By digest: how often a download began or was resumed."""
        self._shelf = shelf
        self._rig = rig
        self._pull_s = pull_s
        self._running: dict[str, _Download] = {}

    async def fetch(self, layer: Layer, content: bytes) -> Statuses:
        """Progress until the blob is there; the last line says that all of it is."""
        status: Status = {"status": f"pulling {layer.digest[7:19]}", "digest": layer.digest, "total": layer.size}
        if self._shelf.blob_bytes(layer.digest) is None:
            try:
                download = self._running.get(layer.digest) or self._begin(layer, content)
                async for completed in self._follow(layer.digest, download):
                    # a completed of nothing is left out, as Go's omitempty does
                    yield status | ({"completed": completed} if completed else {})
            except OSError as error:
                raise Rejected(500, f"open {error.filename}: {str(error.strerror).lower()}") from None
        yield status | {"completed": layer.size}

    def close(self) -> None:
        """Break off all of them; what they got so far stays."""
        for digest, download in list(self._running.items()):
            self._stop(digest, download)

    async def _follow(self, digest: str, download: _Download) -> AsyncGenerator[int, None]:
        """How much there is, again and again until all of it is there. Raises what the download failed with."""
        assert download.task is not None
        download.waiting += 1
        try:
            while not download.task.done():
                yield download.partial.completed
                await asyncio.wait({download.task}, timeout=self._step_s / self._rig.speed)
            download.task.result()
        finally:
            self._leave(digest, download)

    @property
    def listeners(self) -> int:
        """How many wait for a download at this moment."""
        return sum(download.waiting for download in self._running.values())

    @property
    def _step_s(self) -> float:
        return max(_PROGRESS_S, _LEAST_PROGRESS_S * self._rig.speed)

    def _begin(self, layer: Layer, content: bytes) -> _Download:
        download = self._running[layer.digest] = _Download(self._shelf.partial(layer.digest, layer.size))
        self.begun[layer.digest] += 1
        download.task = asyncio.get_running_loop().create_task(self._run(download, layer, content))
        return download

    async def _run(self, download: _Download, layer: Layer, content: bytes) -> None:
        partial = download.partial
        rate = calibration()["pull"]["MBps"] * 1e6
        if self._pull_s is not None and layer.size > _SMALL_BYTES:
            rate = layer.size / max(self._pull_s, _LEAST_PULL_S)
        began_s, had = self._rig.now(), partial.completed
        try:
            while partial.completed < layer.size:
                await self._rig.sleep(min(self._step_s, (layer.size - partial.completed) / rate))
                partial.note(min(layer.size, had + int(rate * (self._rig.now() - began_s))))
            partial.complete(content)
        finally:
            partial.close()
            if self._running.get(layer.digest) is download:
                del self._running[layer.digest]

    def _leave(self, digest: str, download: _Download) -> None:
        download.waiting -= 1
        if not download.waiting and self._running.get(digest) is download:
            self._stop(digest, download)

    def _stop(self, digest: str, download: _Download) -> None:
        """At once: the next to want this blob must not find the lock taken."""
        del self._running[digest]
        download.partial.close()
        if download.task is not None:
            download.task.cancel()
