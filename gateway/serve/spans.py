"""A request that is over as a tree of spans, by OpenTelemetry's conventions for HTTP and for generative AI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Final

from msgspec import Struct

from corral.gateway.ended import Ended
from corral.gateway.serve.access_log import CLASSES
from corral.gateway.trace import Trace

CHAT, TEXT, EMBEDDINGS = "chat", "text_completion", "embeddings"
OPERATIONS: Final = {
    "chat": CHAT,
    "openai_chat": CHAT,
    "openai_responses": CHAT,
    "anthropic_messages": CHAT,
    "generate": TEXT,
    "openai_completions": TEXT,
    "embed": EMBEDDINGS,
    "openai_embeddings": EMBEDDINGS,
}
FIRST_BYTE: Final = "first byte"
_LONGEST: Final = 256
_LEAST_WAIT_S: Final = 0.0005
"""Shorter waits between two attempts are none."""

Value = str | int | float


class Span(Struct, frozen=True):
    """One span; times in nanoseconds since 1970."""

    name: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    kind: str = "INTERNAL"
    """As OpenTelemetry's ``SpanKind`` names it."""
    attributes: dict[str, Value] = {}
    events: tuple[tuple[str, int], ...] = ()
    error: str | None = None
    """What went wrong, in a few words; None: nothing did."""


class Spans:
    """Makes spans. ``label``: a model's name where it is a known one, so that clients cannot add names of spans."""

    def __init__(self, label: Callable[[str | None], str], rng: Random) -> None:
        self._label = label
        self._rng = rng

    def of(self, ended: Ended, trace: Trace) -> list[Span]:
        """The request itself first, then what belongs to it."""
        return [self._request(ended, trace), *self._waits(ended, trace), *self._attempts(ended, trace)]

    def _request(self, ended: Ended, trace: Trace) -> Span:
        name = ended.kind if ended.model is None else f"{ended.kind} {self._label(ended.model)}"
        failed = ended.outcome.startswith(("refused_", "error_5")) or ended.outcome == "broken"
        return Span(
            name,
            trace.span_id,
            trace.parent_id,
            _ns(ended, 0.0),
            _ns(ended, ended.total_s),
            "SERVER",
            _request_attributes(ended) | ({"error.type": ended.outcome} if failed else {}),
            error=ended.outcome if failed else None,
        )

    def _waits(self, ended: Ended, trace: Trace) -> Iterator[Span]:
        """In the gateway's queue: until it was sent, each time."""
        since_s, sent = 0.0, [attempt.sent_s for attempt in ended.failed]
        if len(trace.attempts) > len(sent) or not sent:
            sent.append(ended.queue_s)
        for number, until_s in enumerate(sent):
            if until_s - since_s >= (_LEAST_WAIT_S if number else 0.0):
                yield self._child("queue", trace.span_id, ended, since_s, until_s)
            since_s = ended.failed[number].ended_s if number < len(ended.failed) else until_s

    def _attempts(self, ended: Ended, trace: Trace) -> Iterator[Span]:
        operation = OPERATIONS.get(ended.kind, ended.kind)
        name = operation if ended.model is None else f"{operation} {self._label(ended.model)}"
        for failed, span_id in zip(ended.failed, trace.attempts, strict=False):
            said = {"corral.replica": failed.replica, "error.type": failed.fault, **_asked(ended)}
            start_ns, end_ns = _ns(ended, failed.sent_s), _ns(ended, failed.ended_s)
            yield Span(name, span_id, trace.span_id, start_ns, end_ns, "CLIENT", said, error=failed.fault)
        if len(trace.attempts) > len(ended.failed):
            yield from self._last(name, trace.attempts[-1], trace.span_id, ended)

    def _last(self, name: str, span_id: str, parent_id: str, ended: Ended) -> Iterator[Span]:
        """The attempt that was answered (or was still waited for in the end), and the making of its answer."""
        said, error, first_s = _answered(ended), None, ended.first_byte_s
        if ended.outcome == "broken" or (ended.status or 0) >= 400:
            error = said["error.type"] = "broken" if ended.outcome == "broken" else str(ended.status)
        events = () if first_s is None else ((FIRST_BYTE, _ns(ended, first_s)),)
        start_ns, end_ns = _ns(ended, ended.queue_s), _ns(ended, ended.total_s)
        yield Span(name, span_id, parent_id, start_ns, end_ns, "CLIENT", said, events, error)
        if first_s is not None and ended.lines:
            yield self._child("generation", span_id, ended, first_s, ended.total_s, {"corral.lines": ended.lines})

    def _child(
        self,
        name: str,
        parent_id: str,
        ended: Ended,
        start_s: float,
        end_s: float,
        attributes: dict[str, Value] | None = None,
    ) -> Span:
        span_id = f"{self._rng.getrandbits(64) or 1:016x}"
        return Span(name, span_id, parent_id, _ns(ended, start_s), _ns(ended, end_s), attributes=attributes or {})


def _ns(ended: Ended, after_s: float) -> int:
    return int(ended.at * 1e9) + int(after_s * 1e9)


def _request_attributes(ended: Ended) -> dict[str, Value]:
    said: dict[str, Value] = {
        "http.request.method": ended.method[:_LONGEST],
        "url.path": ended.path[:_LONGEST],
        "url.scheme": "http",
        "http.request.body.size": ended.request_bytes,
        "corral.request_id": ended.id,
        "corral.tenant": ended.tenant,
        "corral.class": CLASSES[ended.rank],
        "corral.outcome": ended.outcome,
    }
    if ended.status is not None:
        said["http.response.status_code"] = ended.status
    if ended.replica is not None:
        said["corral.replica"] = ended.replica
    if ended.reason is not None:
        said["corral.reason"] = ended.reason
    return said | _asked(ended)


def _asked(ended: Ended) -> dict[str, Value]:
    said: dict[str, Value] = {}
    operation = OPERATIONS.get(ended.kind)
    if operation is not None:
        said["gen_ai.operation.name"] = operation
        said["gen_ai.provider.name"] = "ollama"
    if ended.model is not None:
        said["gen_ai.request.model"] = ended.model[:_LONGEST]
    return said


def _answered(ended: Ended) -> dict[str, Value]:
    """Tokens stand here only: who adds them up over all spans counts each once."""
    said = _asked(ended)
    if ended.replica is not None:
        said["corral.replica"] = ended.replica
    if ended.status is not None:
        said["http.response.status_code"] = ended.status
    if ended.first_byte_s is not None:
        said["gen_ai.response.time_to_first_chunk"] = ended.first_byte_s - ended.queue_s
    predicted, figures = ended.predicted, ended.figures
    if predicted is not None:
        said["corral.predicted_s"] = predicted.wait_s + predicted.prefill_s + predicted.decode_s
    if figures is not None:
        told = {
            "gen_ai.usage.input_tokens": figures.prompt_tokens,
            "gen_ai.usage.output_tokens": figures.output_tokens,
            "corral.load_s": figures.load_s,
            "corral.prefill_s": figures.prefill_s,
            "corral.decode_s": figures.decode_s,
        }
        said |= {name: value for name, value in told.items() if value is not None}
    return said
