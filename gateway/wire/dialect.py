"""The three dialects clients speak: how each says an error, and how each of their streams says that it is complete."""

from __future__ import annotations

import json
import secrets
from enum import Enum
from typing import Final

import msgspec

from corral.errors import Refusal
from corral.model import Figures

SERVER_BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"
"""Ollama's own words, with its two spaces: clients match on them."""


class Dialect(Enum):
    """Who defines the shape of an error."""

    NATIVE = "native"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class StreamEnd(Enum):
    """What the last line or event of a complete stream is."""

    NONE = "none"
    """Not a stream whose end Corral knows."""
    DONE_TRUE = "done"
    """``{"done":true}``: generate, chat."""
    SUCCESS = "success"
    """``{"status":"success"}``: pull, push, create."""
    DONE_EVENT = "[DONE]"
    """OpenAI chat and completions."""
    RESPONSE_EVENT = "response"
    """OpenAI responses: response.completed, .incomplete or .failed."""
    MESSAGE_STOP = "message_stop"
    """Anthropic messages."""


_OPENAI_TYPES: Final = {400: "invalid_request_error", 404: "not_found_error"}
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}

_REFUSALS: Final = {
    Refusal.QUEUE_FULL: (503, SERVER_BUSY),
    Refusal.WAITED_TOO_LONG: (503, SERVER_BUSY),
    Refusal.NO_REPLICA: (503, "no replica can serve this request now: all are down, drained or starting"),
    Refusal.EXHAUSTED: (502, "every replica that could serve this request failed before its first byte"),
    Refusal.STOPPING: (503, "the gateway is shutting down"),
}


def refusal_answer(refusal: Refusal) -> tuple[int, str]:
    """Status and message for a request that the gateway refuses."""
    return _REFUSALS[refusal]


def error_body(dialect: Dialect, status: int, message: str) -> bytes:
    """The JSON body of an error response in ``dialect``."""
    return _dump(_error(dialect, status, message))


def stream_error(dialect: Dialect, content_type: bytes, message: str, *, mid_line: bool) -> bytes:
    """What to append to a stream that broke, so that every client of ``dialect`` raises instead of seeing an end."""
    if content_type == b"text/event-stream":
        lead = b"\n\n" if mid_line else b""
        event = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
        return b"%b%bdata: %b\n\n" % (lead, event, error_body(dialect, 500, message))
    return b"%b%b\n" % (b"\n" if mid_line else b"", error_body(Dialect.NATIVE, 500, message))


def _error(dialect: Dialect, status: int, message: str) -> dict[str, object]:
    if dialect is Dialect.OPENAI:
        kind = _OPENAI_TYPES.get(status, "api_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}
    if dialect is Dialect.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        request_id = f"req_{secrets.token_hex(12)}"
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    return {"error": message}


def _dump(value: dict[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Final(msgspec.Struct):
    """The fields of a final line (or of a whole JSON answer) that Corral reads; all others are skipped unread."""

    done: bool = False
    status: str = ""
    error: object = None
    type: str = ""
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    total_duration: object = None
    load_duration: object = None
    prompt_eval_duration: object = None
    eval_duration: object = None
    usage: _Usage | None = None


_decode_final = msgspec.json.Decoder(_Final).decode


class Ending:
    """What the end of a response says."""

    __slots__ = ("complete", "figures", "said_error")

    def __init__(self, complete: bool, said_error: bool, final: _Final | None) -> None:
        self.complete = complete
        """The stream's own terminator was seen (always true where none is known)."""
        self.said_error = said_error
        """The replica itself ended the stream with its dialect's error."""
        self.figures = None if final is None else _figures(final)


_NO_USAGE: Final = _Usage()


def _figures(final: _Final) -> Figures:
    usage = final.usage or _NO_USAGE
    total_s, load_s = _seconds(final.total_duration), _seconds(final.load_duration)
    prefill_s, decode_s = _seconds(final.prompt_eval_duration), _seconds(final.eval_duration)
    queued_s = None
    if total_s is not None and load_s is not None and prefill_s is not None and decode_s is not None:
        queued_s = max(0.0, total_s - load_s - prefill_s - decode_s)
    return Figures(
        _first(final.prompt_eval_count, usage.prompt_tokens, usage.input_tokens),
        _first(final.eval_count, usage.completion_tokens, usage.output_tokens),
        queued_s,
        load_s,
        prefill_s,
        decode_s,
    )


def _seconds(duration: object) -> float | None:
    """Of Ollama's nanoseconds; it leaves out what it did not measure."""
    return duration / 1e9 if isinstance(duration, int | float) and duration >= 0 else None


def _first(native: int | None, openai: int | None, anthropic: int | None) -> int | None:
    if native is not None:
        return native
    return openai if openai is not None else anthropic


def read_ending(end: StreamEnd, content_type: bytes, tail: bytes) -> Ending:
    """Judge the end of a response body; ``tail`` holds at least its final line."""
    if content_type == b"application/x-ndjson":
        return _ndjson_ending(end, tail)
    if content_type == b"text/event-stream":
        return _sse_ending(end, tail)
    final = _try_decode(tail) if tail[:1] == b"{" else None
    return Ending(complete=True, said_error=False, final=final)


def _ndjson_ending(end: StreamEnd, tail: bytes) -> Ending:
    last = tail.rstrip(b"\r\n").rpartition(b"\n")[2]
    final = _try_decode(last)
    said_error = final is not None and final.error is not None
    if end is StreamEnd.SUCCESS:
        complete = final is not None and final.status == "success"
    else:
        complete = end is StreamEnd.NONE or (final is not None and final.done)
    return Ending(complete or said_error, said_error, final)


def _sse_ending(end: StreamEnd, tail: bytes) -> Ending:
    events = [event for event in tail.replace(b"\r\n", b"\n").split(b"\n\n") if event.strip()]
    decoded = [_try_decode(data) for data in (_event_data(event) for event in events[-3:]) if data != b"[DONE]"]
    final = next((each for each in reversed(decoded) if each is not None and each.usage is not None), None)
    last_data = _event_data(events[-1]) if events else b""
    last = _try_decode(last_data)
    kind = last.type if last is not None else ""
    said_error = last is not None and (last.error is not None or kind == "error")
    complete = {
        StreamEnd.DONE_EVENT: last_data == b"[DONE]",
        StreamEnd.RESPONSE_EVENT: kind in ("response.completed", "response.incomplete", "response.failed"),
        StreamEnd.MESSAGE_STOP: kind == "message_stop",
    }.get(end, True)
    return Ending(complete or said_error, said_error, final)


def _event_data(event: bytes) -> bytes:
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))


def _try_decode(line: bytes) -> _Final | None:
    try:
        return _decode_final(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # not JSON, or not of this shape: then it says nothing
        return None
