"""What every dialect of Ollama's API can say about one generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from corral.emulator.ask import ToolCall
from corral.emulator.wire import Header

JSON = b"application/json; charset=utf-8"
PLAIN_JSON = b"application/json"
EVENTS = b"text/event-stream"


@dataclass(slots=True)
class Result:
    """A finished generation."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    done_reason: str = "stop"
    prompt_tokens: int = 0
    tokens: int = 0
    total_ns: int = 0
    load_ns: int = 0
    prompt_ns: int = 0
    decode_ns: int = 0
    context: list[int] | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class Dialect(Protocol):
    """Renders one generation. Streamed pieces come out framed as HTTP chunks, one for each flush of the original.

    ``token`` is text as it stands inside a JSON string; ``stamp`` is the time as Ollama writes it;
    ``logprob`` is None unless the request asked for it.
    """

    content_type: bytes
    """Of a stream."""
    whole_type: bytes
    """Of the answer that is not streamed."""
    headers: tuple[Header, ...]

    def opening(self, prompt_tokens: int) -> bytes:
        """What precedes the first token."""
        ...

    def thinking(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes: ...

    def text(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes: ...

    def closing(self, result: Result, stamp: bytes) -> bytes:
        """Everything from the end of the text to the dialect's terminator."""
        ...

    def broken(self, message: str) -> bytes:
        """An error after the first byte; the body then ends cleanly."""
        ...

    def whole(self, result: Result, stamp: bytes) -> bytes:
        """The answer that is not streamed."""
        ...

    def error(self, status: int, message: str) -> bytes:
        """The body of an error before the first byte."""
        ...
