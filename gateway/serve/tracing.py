"""Traces of requests for an OpenTelemetry collector: spans are made when a request is over, and sent by a thread.

OpenTelemetry is imported where tracing is on, and only there. Nothing of it runs while a request is under way: what has
to be known then (which trace it belongs to, whether that is kept) is ``trace.py``'s.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from corral import __version__
from corral.errors import ConfigError
from corral.gateway.config.telling import TracingConfig
from corral.gateway.ended import Ended
from corral.gateway.serve.spans import Span, Spans
from corral.gateway.trace import Trail

if TYPE_CHECKING:
    from corral.gateway.wire.request_head import RequestHead

log: Final = logging.getLogger("corral.gateway")

PATH: Final = "/v1/traces"
MISSING: Final = "pip install 'corral[otel]'"
_LAST_SPANS_S: Final = 1.5
"""A gateway that ends waits no longer for its last spans to be sent."""
_MODULES: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SERVICE: Final = "service.name"

Label = Callable[[str | None], str]


def make_tracing(config: TracingConfig, environ: Mapping[str, str], label: Label, rng: Random) -> Tracing | None:
    """None where neither the configuration nor the environment wants traces.

    ``label`` gives a model's name as metrics know it. Raises :class:`ConfigError` where what the configuration asks for
    cannot be done.
    """
    if not _is_wanted(config, environ):
        return None
    missing = [name for name in _MODULES if not _is_there(name)]
    if missing and config.endpoint is not None:
        raise ConfigError(f"tracing.endpoint: traces need OpenTelemetry, which is not installed here: {MISSING}")
    if missing:
        text = 'tracing_off reason="OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed" remedy="%s"'
        log.warning(text, MISSING)
        return None
    return Tracing(config, environ, Spans(label, rng), rng)


def _is_wanted(config: TracingConfig, environ: Mapping[str, str]) -> bool:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if config.endpoint is not None:
        return True
    named = any(environ.get(name, "").strip() for name in _ENDPOINTS)
    return named and environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() in ("", "otlp")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is in
        return False


def full_endpoint(endpoint: str) -> str:
    """With the path of traces, unless it has one."""
    return endpoint if urlsplit(endpoint).path not in ("", "/") else endpoint.rstrip("/") + PATH


class Tracing:
    """Begins trails, hears of requests that are over, and sends their spans. Call :meth:`close` at the end."""

    def __init__(self, config: TracingConfig, environ: Mapping[str, str], spans: Spans, rng: Random) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it says once for each batch what we say once
        self._spans = spans
        self._rng = rng
        self._sampler = _sampler(config, environ)
        endpoint = None if config.endpoint is None else full_endpoint(config.endpoint)
        self._make = _maker(_resource(config, environ))
        self._exporter: Any = OTLPSpanExporter(endpoint=endpoint)
        reporting = _reporting(self._exporter, asyncio.get_running_loop())
        self._processor: Any = BatchSpanProcessor(reporting)

    def begin(self, head: RequestHead) -> None:
        trail = head.trace = Trail(head.forward, self._rng, self._sampling)
        head.forward = trail.forward()

    def _sampling(self, parent: bool | None, trace_id: str) -> bool:
        return bool(self._sampler(parent, trace_id))

    def __call__(self, ended: Ended) -> None:
        """A request is over. Pages have no spans: they ask nothing of anybody."""
        trace = ended.trace
        if trace is None or not trace.is_sampled or ended.is_page:
            return
        for span in self._spans.of(ended, trace):
            self._processor.on_end(self._make(span, trace.trace_id, trace.state))

    async def close(self) -> None:
        """Have the last spans sent, as far as that takes no longer than a moment."""
        # As a daemon: a collector that hangs must not hold the gateway's end.
        loop, sent = asyncio.get_running_loop(), asyncio.Event()
        threading.Thread(target=self._send_last, args=(loop, sent), name="last spans", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SPANS_S):
                await sent.wait()
        self._exporter.shutdown()  # it waits for no further try, and the thread ends

    def _send_last(self, loop: asyncio.AbstractEventLoop, sent: asyncio.Event) -> None:
        self._processor.shutdown()
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(sent.set)


def _sampler(config: TracingConfig, environ: Mapping[str, str]) -> Callable[[bool | None, str], bool]:
    """What decides whether a trace is kept: the configuration, else ``OTEL_TRACES_SAMPLER``."""
    if config.sample_ratio is not None:
        return _by_ratio(config.sample_ratio, heeds_parent=True)
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or "parentbased_always_on"
    heeds_parent, root = name.startswith("parentbased_"), name.removeprefix("parentbased_")
    ratio = {"always_on": 1.0, "always_off": 0.0}.get(root)
    if root == "traceidratio":
        ratio = _ratio(environ.get("OTEL_TRACES_SAMPLER_ARG", ""))
    if ratio is None:
        log.warning('unknown_sampler consequence="all traces are kept" OTEL_TRACES_SAMPLER=%s', name)
        return _by_ratio(1.0, heeds_parent=True)
    return _by_ratio(ratio, heeds_parent=heeds_parent)


def _ratio(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text or 1.0)))
    except ValueError:
        log.warning('unknown_ratio consequence="all traces are kept" OTEL_TRACES_SAMPLER_ARG=%s', text)
        return 1.0


def _by_ratio(ratio: float, *, heeds_parent: bool) -> Callable[[bool | None, str], bool]:
    """By the trace's own name, so that all who know the ratio keep the same traces."""
    bound = round(ratio * (1 << 64))

    def keeps(parent: bool | None, trace_id: str) -> bool:
        if heeds_parent and parent is not None:
            return parent
        return int(trace_id[16:], 16) < bound

    return keeps


def _resource(config: TracingConfig, environ: Mapping[str, str]) -> Any:
    """Who sends these spans, with what ``OTEL_RESOURCE_ATTRIBUTES`` adds."""
    from opentelemetry.sdk.resources import Resource

    said = {"service.version": __version__}
    named = environ.get("OTEL_SERVICE_NAME", "") or f"{_SERVICE}=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if config.service_name is not None or not named:
        said[_SERVICE] = config.service_name or "corral"
    return Resource.create(said)


def _maker(resource: Any) -> Callable[[Span, str, str], Any]:
    """Makes OpenTelemetry's span of one of ours, its trace's name, and the client's ``tracestate``.

    It is made ready instead of being started and ended: its names and times are known, and nothing is left over of a
    request that never ends.
    """
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

    scope, sampled, well = InstrumentationScope("corral", __version__), TraceFlags(1), Status(StatusCode.UNSET)

    def make(span: Span, trace_id: str, state: str) -> Any:
        trace, tracestate = int(trace_id, 16), TraceState.from_header([state]) if state else None
        parent = span.parent_id
        return ReadableSpan(
            span.name,
            context=SpanContext(trace, int(span.span_id, 16), False, sampled, tracestate),
            parent=None if parent is None else SpanContext(trace, int(parent, 16), span.kind == "SERVER", sampled),
            resource=resource,
            attributes=span.attributes,
            events=[Event(name, timestamp=at_ns) for name, at_ns in span.events],
            kind=SpanKind[span.kind],
            status=well if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=scope,
        )

    return make


def _reporting(exporter: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """``exporter``, and one line of the log when it begins to fail, and one when it works again."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Reporting(SpanExporter):
        is_failing = False
        lost = 0

        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            result: SpanExportResult = exporter.export(spans)
            if result is not SpanExportResult.SUCCESS:
                self.lost += len(spans)
            if (result is not SpanExportResult.SUCCESS) != self.is_failing:
                self.is_failing = not self.is_failing
                self._tell()
            return result

        def _tell(self) -> None:
            text = 'traces_not_sent consequence="spans are lost, requests are served"'
            if not self.is_failing:
                text, self.lost = f"traces_sent_again lost={self.lost}", 0
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(log.warning, text)

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return bool(exporter.force_flush(timeout_millis))

    return Reporting()
