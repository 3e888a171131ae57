"""Rotates the replicas' logs, beside everything else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from corral.gateway.config.owned import ReplicaLogsConfig
from corral.gateway.run.logs import drop_beyond, rotate

log = logging.getLogger(__name__)

ROTATE_EVERY_S: Final = 3.0


class Rotation:
    """Looks at every log again and again, on a thread; a log that cannot be rotated is told of once."""

    def __init__(self, limits: ReplicaLogsConfig, paths: Callable[[], Iterable[Path]]) -> None:
        self._limits = limits
        self._paths = paths
        self._failed: set[Path] = set()

    def set_limits(self, limits: ReplicaLogsConfig) -> None:
        if limits.files < self._limits.files:
            for path in self._paths():
                drop_beyond(path, limits.files)
        self._limits = limits

    async def run(self) -> None:
        while True:
            for path in list(self._paths()):
                await self._rotate(path)
            await asyncio.sleep(ROTATE_EVERY_S)

    async def _rotate(self, path: Path) -> None:
        try:
            if await asyncio.to_thread(rotate, path, self._limits.max_bytes, self._limits.files):
                log.info("replica_log_rotated path=%s", path)
            self._failed.discard(path)
        except OSError as error:
            if path not in self._failed:
                log.warning('replica_log_not_rotated path=%s error="%s"', path, error.strerror)
            self._failed.add(path)
