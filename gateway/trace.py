"""The trace that a request belongs to, as W3C's ``traceparent`` says it: who began it, and our spans' names."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from corral.gateway.wire.request_head import RequestHead

_LINES: Final = re.compile(rb"(?im)^(traceparent|tracestate):([^\r]*+)\r\n")
_PARENT: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1
_RANDOM: Final = 2
"""The trace's name was drawn at random: passed on as the client said it."""

Sampling = Callable[[bool | None, str], bool]
"""Whether a trace is kept: what its beginner decided (None: it begins here), and its name."""


class Trace(Struct, frozen=True):
    """Of one request that is over: the names of its spans, in hexadecimal digits."""

    trace_id: str
    span_id: str
    """Of the request itself."""
    attempts: tuple[str, ...]
    """Of each time that it was sent to a replica, the last one included."""
    is_sampled: bool
    parent_id: str | None = None
    """The client's span; None: the trace begins here."""
    state: str = ""
    """The client's ``tracestate``."""


class Trail:
    """The trace of a request under way: which header lines its next attempt goes with."""

    __slots__ = ("_attempts", "_flags", "_parent_id", "_rest", "_rng", "_span_id", "_state", "is_sampled", "trace_id")

    def __init__(self, forward: bytes, rng: Random, sampling: Sampling) -> None:
        """``forward``: the client's end-to-end header lines, each with its CRLF."""
        self._rng = rng
        is_there = b"trace" in forward.lower()
        found = [(name.lower(), value.strip(b" \t")) for name, value in _LINES.findall(forward)] if is_there else []
        parent = _parent(found)
        self._rest = _LINES.sub(b"", forward) if found else forward
        self._state = b""
        self._parent_id: str | None = None
        flags = 0
        if parent is None:
            self.trace_id = f"{rng.getrandbits(128) or 1:032x}"
            self.is_sampled = sampling(None, self.trace_id)
        else:
            self.trace_id, self._parent_id, flags = parent
            self._state = b",".join(value for name, value in found if name == b"tracestate" and value)
            self.is_sampled = sampling(bool(flags & _SAMPLED), self.trace_id)
        self._flags = flags & _RANDOM | (_SAMPLED if self.is_sampled else 0)
        self._span_id = self._new_id()
        self._attempts: list[str] = []

    def _new_id(self) -> str:
        return f"{self._rng.getrandbits(64) or 1:016x}"

    def forward(self) -> bytes:
        """The header lines with the request's own span as parent."""
        return self._with_parent(self._span_id)

    def forward_attempt(self) -> bytes:
        """The header lines for one more attempt, which is the parent of what the replica does."""
        self._attempts.append(self._new_id())
        return self._with_parent(self._attempts[-1])

    def _with_parent(self, span_id: str) -> bytes:
        lines = b"%btraceparent: 00-%b-%b-%02x\r\n" % (
            self._rest,
            self.trace_id.encode(),
            span_id.encode(),
            self._flags,
        )
        return lines + b"tracestate: %b\r\n" % self._state if self._state else lines

    def over(self) -> Trace:
        attempts, state = tuple(self._attempts), self._state.decode("latin-1")
        return Trace(self.trace_id, self._span_id, attempts, self.is_sampled, self._parent_id, state)


def _parent(found: list[tuple[bytes, bytes]]) -> tuple[str, str, int] | None:
    """Trace, span and flags of the client; None: it says none, or what it says is malformed."""
    said = [value for name, value in found if name == b"traceparent"]
    match = _PARENT.fullmatch(said[0]) if len(said) == 1 else None
    if match is None or (match[1] == b"00" and match[5] is not None):
        return None
    return match[2].decode(), match[3].decode(), int(match[4], 16)


class Tracer(Protocol):
    """Who begins trails."""

    def begin(self, head: RequestHead) -> None:
        """Give a request its trail; its header lines say so from now on."""
        ...
