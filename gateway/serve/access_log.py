"""The access log: one line for each request that is over, as text or JSON, to a file or to stderr.

What a client made (its path, its model's name) is escaped, so that a line is one line and nobody can forge another or
speak to the terminal that shows it. Lines are made at once and written a moment later, by a thread: neither a slow disk
nor a reader that reads no more stops a request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Final, Protocol

from msgspec import Struct, to_builtins
from msgspec.json import Encoder

from corral.gateway.config.telling import AccessLogConfig
from corral.gateway.ended import Ended, Listener
from corral.gateway.serve.line_file import LineFile

log: Final = logging.getLogger("corral.gateway")

CLASSES: Final = ("interactive", "normal", "batch")
_LONGEST: Final = 256
"""Characters of what a client made that are shown."""
_HAND_OVER_S: Final = 0.1
_LAST_LINES_S: Final = 1.0
"""A gateway that ends waits no longer for its last lines to be written."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9._:/@+,%~-]+").fullmatch
_encode: Final = Encoder().encode


class Record(Struct, frozen=True, rename={"class_": "class"}):
    """One line, as JSON shows it; text has the same names in the same order. Seconds, but for :attr:`time`."""

    time: str
    """When the request was over."""
    id: str
    tenant: str
    class_: str
    method: str
    path: str
    kind: str
    model: str | None
    status: int | None
    outcome: str
    replica: str | None
    reason: str | None
    attempts: int
    queue_s: float
    first_byte_s: float | None
    total_s: float
    prompt_tokens: int | None
    output_tokens: int | None
    request_bytes: int
    trace_id: str | None = None


def text_line(ended: Ended) -> bytes:
    """``2026-11-25T12:00:00.000Z request id=… tenant=… …``; what is not known or does not apply is ``-``."""
    figures, failed, status = ended.figures, ended.failed, ended.status
    read = made = None
    if figures is not None:
        read, made = figures.prompt_tokens, figures.output_tokens
    first_s, model, trace = ended.first_byte_s, ended.model, ended.trace
    line = (
        f"{_time(ended.at + ended.total_s)} request id={ended.id} tenant={_shown(ended.tenant)} "
        f"class={CLASSES[ended.rank]} method={_shown(ended.method)} path={_shown(ended.path)} kind={ended.kind} "
        f"model={'-' if model is None else _shown(model)} status={'-' if status is None else status} "
        f"outcome={ended.outcome} replica={ended.replica or '-'} reason={_shown(ended.reason or '-')} "
        f"attempts={ended.attempts or len(failed)} queue_s={ended.queue_s:.3f} "
        f"first_byte_s={'-' if first_s is None else f'{first_s:.3f}'} total_s={ended.total_s:.3f} "
        f"prompt_tokens={'-' if read is None else read} output_tokens={'-' if made is None else made} "
        f"request_bytes={ended.request_bytes}{'' if trace is None else f' trace_id={trace.trace_id}'}\n"
    )
    return line.encode("ascii", "backslashreplace")


def json_line(ended: Ended) -> bytes:
    figures, trace = ended.figures, ended.trace
    record = Record(
        time=_time(ended.at + ended.total_s),
        id=ended.id,
        tenant=ended.tenant,
        class_=CLASSES[ended.rank],
        method=_cut(ended.method),
        path=_cut(ended.path),
        kind=ended.kind,
        model=None if ended.model is None else _cut(ended.model),
        status=ended.status,
        outcome=ended.outcome,
        replica=ended.replica,
        reason=ended.reason,
        attempts=ended.attempts or len(ended.failed),
        queue_s=round(ended.queue_s, 6),
        first_byte_s=None if ended.first_byte_s is None else round(ended.first_byte_s, 6),
        total_s=round(ended.total_s, 6),
        prompt_tokens=None if figures is None else figures.prompt_tokens,
        output_tokens=None if figures is None else figures.output_tokens,
        request_bytes=ended.request_bytes,
        trace_id=None if trace is None else trace.trace_id,
    )
    return _encoded(record) + b"\n"


def _encoded(record: Record) -> bytes:
    try:
        line = _encode(record)
    except UnicodeEncodeError:  # half a character
        return _ascii(to_builtins(record))
    # A terminal obeys some of what JSON lets stand.
    return line if line.isascii() and b"\x7f" not in line else _ascii(to_builtins(record))


def _ascii(value: object) -> bytes:
    return json.dumps(value).replace("\x7f", "\\u007f").encode()


def _time(at: float) -> str:
    second = int(at)
    return f"{_second(second)}.{int((at - second) * 1000):03d}Z"


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()[:-6]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _shown(text: str) -> str:
    return _escaped(_cut(text))


@lru_cache(maxsize=1024)
def _escaped(text: str) -> str:
    """As it is where nothing about it is unusual; else in quotes, and everything odd escaped as in JSON."""
    return text if _PLAIN(text) else _ascii(text).decode()


class Sink(Protocol):
    """Where lines go. Neither call waits for anything."""

    def put(self, lines: list[bytes]) -> None: ...

    def reopen(self) -> None: ...

    def end(self, ended: Callable[[], None]) -> None:
        """Write what is there, and end; ``ended`` is called by a thread."""
        ...


Shape = Callable[[Ended], bytes]
SHAPES: Final[dict[str, Shape]] = {"text": text_line, "json": json_line}


class AccessLog:
    """Hears of requests while it is on, and costs nothing while it is off. Call :meth:`close` at the end."""

    def __init__(self, listeners: list[Listener], loop: asyncio.AbstractEventLoop) -> None:
        self._listeners = listeners
        self._loop = loop
        self._config = AccessLogConfig()
        self._shape: Shape = text_line
        self._lines: list[bytes] = []
        self._sink: Sink | None = None
        self._ends: set[asyncio.Event] = set()
        """Of those that still write their last lines."""

    def use(self, config: AccessLogConfig) -> None:
        """Write as ``config`` says from now on; the same one again opens the file anew."""
        if config == self._config:
            if self._sink is not None:
                self._hand_over()
                self._sink.reopen()
            return
        self._stop()
        self._config = config
        if config.format != "off":
            self._shape = SHAPES[config.format]
            self._sink = LineFile(config.path, self._tell)
            self._listeners.append(self._add)

    def _stop(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            self._listeners.remove(self._add)
            sink.put(self._taken())
            self._ends = {end for end in self._ends if not end.is_set()} | {(end := asyncio.Event())}
            sink.end(lambda: self._from_thread(end.set))

    async def close(self) -> None:
        """Have the last lines written, as far as that takes no longer than a moment."""
        self._stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_LINES_S):
                for end in self._ends:
                    await end.wait()

    def _add(self, ended: Ended) -> None:
        if not self._lines:
            self._loop.call_later(_HAND_OVER_S, self._hand_over)
        self._lines.append(self._shape(ended))

    def _hand_over(self) -> None:
        if self._sink is not None and self._lines:
            self._sink.put(self._taken())

    def _taken(self) -> list[bytes]:
        lines, self._lines = self._lines, []
        return lines

    def _tell(self, level: int, message: str, *values: object) -> None:
        """From the writing thread: the log is for the loop."""
        self._from_thread(partial(log.log, level, message, *values))

    def _from_thread(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call)
