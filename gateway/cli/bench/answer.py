"""A streamed native answer, read line by line: when its first text came, and whether it is whole."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

MOST_LINE_BYTES: Final = 1 << 20
MOST_BYTES: Final = 256 << 20
"""More is no answer to what was asked."""


class Line(Struct, frozen=True):
    """What is used of a line of ``/api/generate``."""

    response: str = ""
    thinking: str | None = None
    done: bool = False
    error: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None


_decode: Final = msgspec.json.Decoder(Line).decode


class BadAnswer(Exception):
    """It is not whole, or no such answer at all; the text is a few words."""


class Answer:
    """Feed it what comes, then :meth:`close` it. Both raise :class:`BadAnswer`."""

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.prompt_tokens = 0
        self.output_tokens = 0
        self._rest = b""
        self._bytes = 0
        self._is_done = False

    def feed(self, piece: bytes, now_s: float) -> None:
        self._bytes += len(piece)
        if self._bytes > MOST_BYTES:
            raise BadAnswer("answer too large")
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MOST_LINE_BYTES:
            raise BadAnswer("line too long")
        for line in lines:
            if line.strip():
                self._take(line, now_s)

    def close(self, now_s: float) -> None:
        """The stream ended."""
        if self._rest.strip():
            self._take(self._rest, now_s)
        if not self._is_done:
            raise BadAnswer("answer cut off")
        if self.first_s is None and self.output_tokens > 1:
            raise BadAnswer("answer without text")

    def _take(self, text: bytes, now_s: float) -> None:
        try:
            line = _decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadAnswer("not Ollama's format") from error
        if line.error is not None:
            raise BadAnswer("error in the stream")
        if self._is_done:
            raise BadAnswer("text after the end")
        if self.first_s is None and (line.response or line.thinking):
            self.first_s = now_s
        if line.done:
            self._is_done = True
            self.prompt_tokens = max(0, line.prompt_eval_count or 0)
            self.output_tokens = max(0, line.eval_count or 0)
