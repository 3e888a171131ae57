"""Who tells others of requests and of the load, as the configuration wants it: access log, traces, load report."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from corral.gateway.config import Config
from corral.gateway.gateway import Gateway
from corral.gateway.serve.access_log import AccessLog
from corral.gateway.serve.orca import LoadReport
from corral.gateway.serve.tracing import make_tracing


class Tellers:
    """What is off is no listener, and costs nothing. Call :meth:`close` at the end, after the last request."""

    def __init__(self, gateway: Gateway, config: Config, environ: Mapping[str, str], rng: Random) -> None:
        """Raises :class:`ConfigError` where traces are wanted and cannot be made."""
        self._gateway = gateway
        self._access_log = AccessLog(gateway.listeners, gateway.loop)
        scheduler = gateway.carrier.scheduler
        self._load_report = LoadReport(lambda: scheduler.snapshot(gateway.clock()), gateway.listeners, gateway.clock)
        self._tracing = make_tracing(config.tracing, environ, gateway.metrics.model_label, rng)
        if self._tracing is not None:
            gateway.tracer = self._tracing
            gateway.listeners.append(self._tracing)

    def use(self, config: Config) -> None:
        self._access_log.use(config.access_log)
        self._gateway.load_report = self._load_report.use(config.load_report)

    async def close(self) -> None:
        """Say the last words, if that takes no more than a moment."""
        await self._access_log.close()
        if self._tracing is not None:
            await self._tracing.close()
