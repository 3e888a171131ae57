"""One running generation: takes the model's tokens one by one and puts them on the wire, or breaks as ordered."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from corral.emulator.ask import ToolCall
from corral.emulator.dialects.base import Dialect, Result
from corral.emulator.faults import Fault
from corral.emulator.text import in_json
from corral.emulator.wire import Exchange

LOST_LEGACY = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
LOST = "an error was encountered while running the model: unexpected EOF"


class Broken(Exception):
    """The generation ended in an error, to be shown in the dialect's shape."""


@dataclass(frozen=True, slots=True)
class Script:
    """Everything an emulated model will say."""

    pieces: list[str]
    thoughts: int = 0
    """So many of the first pieces are thinking."""
    hidden: bool = False
    """The pieces are the text of a tool call: they cost time and are not shown."""
    tool_calls: tuple[ToolCall, ...] = ()
    done_reason: str = "stop"


class Generation:
    """The sink of one sequence. ``wait`` returns when the last token is out."""

    __slots__ = (
        "_dialect",
        "_exchange",
        "_fault",
        "_future",
        "_logprobs",
        "_out",
        "_stream",
        "_strike",
        "_tokens",
        "_top",
        "done_reason",
        "first_at",
        "last_at",
        "made",
        "prompt_tokens",
        "script",
    )

    def __init__(
        self,
        exchange: Exchange,
        dialect: Dialect,
        script: Script,
        *,
        stream: bool,
        prompt_tokens: int,
        logprobs: int | None,
    ) -> None:
        self.script = script
        self.done_reason = script.done_reason
        self.prompt_tokens = prompt_tokens
        self.made = 0
        self.first_at = 0.0
        self.last_at = 0.0
        self._exchange = exchange
        self._dialect = dialect
        self._stream = stream and not script.hidden
        self._logprobs: list[dict[str, Any]] | None = None if logprobs is None else []
        self._top = logprobs or 0
        self._tokens = [in_json(piece) for piece in script.pieces]
        self._out = b""
        self._strike = -1
        self._fault: Fault | None = None
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- the sink -------------------------------------------------------------------------------------------------

    def step(self, stamp: bytes) -> bool:
        index = self.made
        self.made = index + 1
        if not index:
            self.first_at = time.monotonic()
        if self._stream:
            if not self._exchange.started:
                self._start()
            if index < self.script.thoughts or self._logprobs is not None:
                self._out += self._special(index, stamp)
            else:
                self._out += self._dialect.text(self._tokens[index], stamp, None)
        if self.made == self._strike:
            self._break()
            return True
        return self.made >= len(self._tokens)

    def flush(self) -> None:
        if self._out:
            out, self._out = self._out, b""
            self._exchange.send(out)

    def finished(self) -> None:
        self.flush()
        self.last_at = time.monotonic()
        if not self._future.done():
            self._future.set_result(None)

    def failed(self, message: str) -> None:
        self.flush()
        if not self._future.done():
            self._future.set_exception(Broken(message))

    # -- its owner ------------------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Until the last token; Broken or Struck where a fault struck."""
        await self._future

    def strike_at(self, fault: Fault, strike: int) -> None:
        """Call the fault after ``strike`` tokens (at the last one where there are fewer)."""
        self._fault = fault
        self._strike = max(1, min(strike, len(self._tokens) or strike))

    def mark(self, fault: Fault) -> None:
        """Remember a fault that shows only after the end."""
        self._fault = fault

    def add(self, piece: str, stamp: bytes) -> None:
        """A token of a real model, which has no script."""
        self.script.pieces.append(piece)
        self._tokens.append(in_json(piece))
        self.step(stamp)
        self.flush()

    @property
    def exchange(self) -> Exchange:
        return self._exchange

    @property
    def struck(self) -> Fault | None:
        return self._fault

    def result(self) -> Result:
        """What was said so far."""
        thoughts = self.script.thoughts
        said = self.script.pieces[: self.made]
        result = Result(tokens=self.made, prompt_tokens=self.prompt_tokens, done_reason=self.done_reason)
        if not self.script.hidden:
            result.thinking = "".join(said[:thoughts])
            result.text = "".join(said[thoughts:])
        result.tool_calls = list(self.script.tool_calls)
        # a stream has already sent its log probabilities, one a line
        result.logprobs = [] if self._stream else self._all_logprobs()
        return result

    def begin(self) -> None:
        """Send the head now, where no token did."""
        if not self._exchange.started:
            self._start()

    def _start(self) -> None:
        dialect = self._dialect
        self._exchange.start(dialect.content_type, *dialect.headers, first=dialect.opening(self.prompt_tokens))

    def _special(self, index: int, stamp: bytes) -> bytes:
        logprob = None if self._logprobs is None else self._logprob(index)
        if index < self.script.thoughts:
            return self._dialect.thinking(self._tokens[index], stamp, logprob)
        return self._dialect.text(self._tokens[index], stamp, logprob)

    def _logprob(self, index: int) -> dict[str, Any]:
        piece = self.script.pieces[index]
        likely = {"token": piece, "logprob": -0.1 - (index % 7) / 10, "bytes": list(piece.encode())}
        others = [{"token": f" alt{rank}", "logprob": -2.0 - rank, "bytes": list(b" alt")} for rank in range(self._top)]
        return likely | ({"top_logprobs": [likely, *others][: self._top]} if self._top else {})

    def _all_logprobs(self) -> list[dict[str, Any]]:
        return [] if self._logprobs is None else [self._logprob(index) for index in range(self.made)]

    def _break(self) -> None:
        self.flush()
        if not self._future.done():
            self._future.set_exception(Struck)


class Struck(Exception):
    """An ordered fault strikes now; the owner carries it out."""
