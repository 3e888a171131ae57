"""Replicas in Kubernetes: the EndpointSlices of a Service, listed once and then watched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import aiohttp

from corral.gateway.config.discovery import KubernetesConfig
from corral.gateway.discovery.api import SILENT_S, Api, Expired, Refused
from corral.gateway.discovery.endpoint import Endpoint
from corral.gateway.discovery.slices import Slice, endpoints_of

log: Final = logging.getLogger("corral.gateway")

_WATCH_S: Final = (int(SILENT_S * 0.6), int(SILENT_S * 0.9))
"""A watch ends by itself after so long, not all at once: then the token is read anew."""
SHORT_S: Final = 1.0
"""A watch that ends well, but sooner, is no good one: whoever ends it is not asked again at once."""
FIRST_PAUSE_S = 0.5
MOST_PAUSE_S: Final = 30.0


class KubernetesSource:
    """Follows one Service. :meth:`run` ends only when its task is cancelled."""

    is_final: Final = True

    def __init__(self, config: KubernetesConfig, session: aiohttp.ClientSession, rng: Random) -> None:
        self._api = Api(config, session)
        self._port = config.port
        self._rng = rng
        self._trouble = ""
        self._slices: dict[str, Slice] = {}
        self._place = ""
        self._problem = ""
        self.name = f"kubernetes {self._api.namespace}/{config.service}"

    async def run(self, found: Callable[[Sequence[Endpoint]], None]) -> None:
        """List, watch, and begin anew where the watch is lost; after a failure with growing pauses."""
        failures, loop = 0, asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                if not self._place:
                    self._slices, self._place = await self._api.list()
                    self._tell(found)
                await self._watch(found)
                failures = 0 if loop.time() - began_s >= SHORT_S else failures + 1
            except Expired:
                self._place = ""
                failures = failures + 1 if failures else 0
            except (Refused, aiohttp.ClientError, OSError, TimeoutError) as error:
                self._failed(error)
                failures += 1
            if failures:
                pause_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1))
                await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))

    async def _watch(self, found: Callable[[Sequence[Endpoint]], None]) -> None:
        async for kind, changed in self._api.watch(self._place, self._rng.randint(*_WATCH_S)):
            self._recovered()
            self._place = changed.metadata.resourceVersion or self._place
            if kind == "BOOKMARK":
                continue
            if kind == "DELETED":
                self._slices.pop(changed.metadata.name, None)
            else:
                self._slices[changed.metadata.name] = changed
            self._tell(found)

    def _tell(self, found: Callable[[Sequence[Endpoint]], None]) -> None:
        self._recovered()
        endpoints, problem = endpoints_of(list(self._slices.values()), self._port)
        if problem and problem != self._problem:
            log.warning('discovery_failed source="%s" error="%s"', self.name, problem)
        self._problem = problem
        found(endpoints)

    def _failed(self, error: Exception) -> None:
        """A refused watch may mean that its place is nonsense to the server: then everything is listed anew."""
        if isinstance(error, Refused):
            self._place = ""
        text = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        if text != self._trouble:
            log.warning('discovery_failed source="%s" consequence="known ones stay" error="%s"', self.name, text)
        self._trouble = text

    def _recovered(self) -> None:
        if self._trouble:
            log.info('discovery_recovered source="%s"', self.name)
            self._trouble = ""
