"""The ``/metrics`` page: the counters, a snapshot and the process's own figures as Prometheus text."""

from __future__ import annotations

import platform

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from corral.gateway.serve.counted import write_counted
from corral.gateway.serve.metrics import Metrics
from corral.gateway.serve.observed import write_observed
from corral.gateway.serve.textformat import TextFormat
from corral.model import Snapshot


class MetricsPage:
    """Made anew for each scrape; what is the same on all pages is kept."""

    def __init__(self, metrics: Metrics, version: str, *, process: bool = True) -> None:
        self._metrics = metrics
        self._version = version
        self._text = TextFormat()
        self._process = CollectorRegistry()
        """CPU, memory and file descriptors of the gateway, by the names that every program's have."""
        if process:
            ProcessCollector(registry=self._process)

    def render(self, snapshot: Snapshot, *, ready: bool) -> bytes:
        text = self._text
        text.begin()
        text.samples("corral_build_info", [((self._version, platform.python_version()), 1)])
        text.samples("corral_ready", [((), int(ready))])
        write_counted(text, self._metrics)
        write_observed(text, snapshot, self._metrics.model_label)
        text.more(generate_latest(self._process))
        return text.page()
