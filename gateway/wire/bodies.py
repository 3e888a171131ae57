"""Message bodies on the wire: where they end, what of them may be forwarded now, and the last line of a stream.

Theory of operation. Each body class takes the bytes as they were read (``feed``) and returns those that may be
forwarded. A chunked body returns *whole chunks only* (unless one is larger than HOLD_BYTES), because Ollama writes one
line per chunk: a stream that breaks then always stops between two lines, where an error line of its dialect fits. The
last chunk (size 0) is never returned: whether a stream may end cleanly is decided by its reader. A framing error ends
the body as ``broken``, after what was well-formed before it has been returned.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from corral.gateway.wire.grammar import CHUNK_SIZE_LINE, TRAILERS

HOLD_BYTES: Final = 64 * 1024
"""An incomplete chunk up to this size waits for its rest; a larger one is forwarded as it comes."""
TAIL_BYTES: Final = 1024 * 1024
"""How much of the end of a body is kept to read its final line (a ``context`` array can be long)."""
_TRAILER_BYTES: Final = 8 * 1024
_SIZE_LINE_BYTES: Final = 280

LAST_CHUNK: Final = b"0\r\n\r\n"

_LF: Final = 10

_SIZES: Final = {spelled % size: size for size in range(1, 1024) for spelled in (b"%x", b"%X")}
"""The size lines nearly all chunks have: looking one up costs a quarter of parsing it."""


def chunk(payload: bytes) -> bytes:
    """``payload`` framed as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class Body(Protocol):
    """One message body being read."""

    ended: bool
    """Complete, or broken: nothing more is returned."""
    broken: str | None
    """What is wrong with the framing, once something is."""
    lines: int
    """Line feeds forwarded so far."""
    intact: bool
    """False while a chunk was forwarded in part: nothing can be put in between."""

    def feed(self, data: bytes) -> bytes:
        """Take what was read; return what may be forwarded."""

    def eof(self) -> bool:
        """The connection ended: whether the body is complete."""

    def leftover(self) -> bytes:
        """Bytes read behind the end of the body."""

    def tail(self) -> bytes:
        """The end of the payload: at least its final line, unless that is longer than TAIL_BYTES."""


class Tail:
    """The end of a body: everything since the last complete line began, up to TAIL_BYTES."""

    __slots__ = ("_bytes", "_parts", "last")

    def __init__(self) -> None:
        self.last: bytes | None = b""
        """What was forwarded last, where it ends with a line feed: nothing before it matters. Else None."""
        self._parts: deque[bytes] | None = None
        """Else these; None while there are none, since thousands of streams have none."""
        self._bytes = 0

    def keep(self, data: bytes, *, whole: bool) -> None:
        """``data`` was forwarded; ``whole``: it ends with a line feed."""
        if self.last is not None:
            if whole:
                self.last = data
                return
            self.last = None
        parts = self._parts
        if parts is None:
            parts = self._parts = deque()
            self._bytes = 0
        parts.append(data)
        self._bytes += len(data)
        while self._bytes > TAIL_BYTES and len(parts) > 1:
            self._bytes -= len(parts.popleft())
        if whole:
            self.last, self._parts = b"".join(parts), None

    def joined(self) -> bytes:
        return self.last if self.last is not None else b"".join(self._parts or ())


class ChunkedBody:
    """``Transfer-Encoding: chunked``; with ``framed=False`` only the payload is returned.

    ``tail=False`` spares the tail and the count of lines where nobody asks for them (requests).
    """

    __slots__ = ("_framed", "_held", "_rest", "_tail", "_want", "broken", "ended", "intact", "lines")

    def __init__(self, *, framed: bool = True, tail: bool = True) -> None:
        self._framed = framed
        self._held: bytes | bytearray = b""
        self._want = 0
        """Bytes the held chunk needs before looking at it again is worth it."""
        self._rest = 0
        """Bytes (payload and CRLF) still to come of a chunk that is passed through in parts."""
        self._tail = Tail() if tail else None
        self.ended = False
        self.broken: str | None = None
        self.lines = 0
        self.intact = True

    def feed(self, data: bytes) -> bytes:
        if data and not self._held and not self._rest and self._framed:
            # What matters for speed: a read that is one chunk, or several, and nothing else.
            position = chunks = 0
            length = len(data)
            while position < length:
                line_end = data.find(b"\r\n", position, position + 6)
                size = _SIZES.get(data[position:line_end]) if line_end > 0 else None
                if size is None:
                    break
                end = line_end + size + 4
                if data[end - 2 : end] != b"\r\n":
                    break
                position = end
                chunks += 1
            else:
                tail = self._tail
                if tail is not None and tail.last is not None and data[-3] == _LF:
                    tail.last = data
                    self.lines += data.count(b"\n") - 2 * chunks
                else:
                    self._note(data, -2 * chunks)
                return data
        return self._feed_slowly(data)

    def _feed_slowly(self, data: bytes) -> bytes:
        if self._held:
            held = self._held if isinstance(self._held, bytearray) else bytearray(self._held)
            held += data
            if len(held) < self._want:
                self._held = held
                return b""
            data, self._held = bytes(held), b""
        self._want = 0
        out: list[bytes] = []
        position = 0
        try:
            while position < len(data) and not self.ended:
                take = self._continue_large if self._rest else self._next_chunk
                step = take(data, position, out)
                if step == position:
                    break
                position = step
        except ValueError as error:
            self.ended = True
            self.broken = str(error)
        if position < len(data):
            self._held = data[position:]
        forward = b"".join(out)
        if forward:
            self._note(forward, 0)
        return forward

    def _note(self, forward: bytes, framing_lines: int) -> None:
        """Count lines, and keep the end of what was forwarded."""
        if self._tail is None:
            return
        self.lines += forward.count(b"\n") + framing_lines
        last = forward[-3:-2] if self._framed and self.intact else forward[-1:]
        self._tail.keep(forward, whole=self.intact and last == b"\n")

    def _next_chunk(self, data: bytes, start: int, out: list[bytes]) -> int:
        """Take the chunk at ``start``; returns where the next begins, or ``start`` when more bytes are needed."""
        match = CHUNK_SIZE_LINE.match(data, start)
        if match is None:
            _check_partial_size_line(data[start : start + _SIZE_LINE_BYTES])
            return start
        size = int(match[1], 16)
        if size == 0:
            return self._end(data, start, match.end())
        end = match.end() + size + 2
        if end > len(data):
            if size <= HOLD_BYTES:
                self._want = end - start
                return start
            self._rest = size + 2
            self.intact = False
            if self._framed:
                out.append(data[start : match.end()])
            return match.end()
        if data[end - 2 : end] != b"\r\n":
            raise ValueError("chunk without its CRLF")
        out.append(data[start:end] if self._framed else data[match.end() : end - 2])
        if self._framed:
            self.lines -= 2
        return end

    def _continue_large(self, data: bytes, start: int, out: list[bytes]) -> int:
        end = min(len(data), start + self._rest)
        piece = data[start:end]
        closing = min(2, self._rest)  # how many of the CRLF's bytes are still to come
        payload = piece[: max(0, self._rest - closing)] if self._rest > 2 else b""
        crlf = piece[len(payload) :]
        expected = b"\r\n" if self._rest >= 2 else b"\n"
        if crlf and not expected.startswith(crlf):
            raise ValueError("chunk without its CRLF")
        self._rest -= len(piece)
        if self._rest == 0:
            self.intact = True
            self.lines -= 2 if self._framed else 0
        out.append(piece if self._framed else payload)
        return end

    def _end(self, data: bytes, start: int, trailers: int) -> int:
        match = TRAILERS.match(data, trailers)
        if match is None:
            if len(data) - trailers > _TRAILER_BYTES:
                raise ValueError("trailers too large")
            _check_partial_trailers(data[trailers:])
            return start
        self.ended = True
        return match.end()

    def eof(self) -> bool:
        return self.ended and self.broken is None

    def leftover(self) -> bytes:
        return bytes(self._held) if self.ended else b""

    def tail(self) -> bytes:
        raw = self._tail.joined() if self._tail is not None else b""
        if not self._framed:
            return raw
        payload: list[bytes] = []
        position = 0
        while (match := CHUNK_SIZE_LINE.match(raw, position)) is not None:
            end = match.end() + int(match[1], 16)
            payload.append(raw[match.end() : end])
            position = end + 2
        return b"".join(payload) or raw


class CountedBody:
    """``Content-Length``."""

    __slots__ = ("_rest", "_surplus", "_tail", "_tail_bytes", "broken", "ended", "intact", "lines")

    def __init__(self, length: int) -> None:
        self._rest = length
        self._surplus = b""
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.broken: str | None = None
        self.ended = length == 0
        self.lines = 0
        self.intact = True

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._rest:
            self._surplus += data[self._rest :]
            data = data[: self._rest]
        self._rest -= len(data)
        self.intact = False
        if self._rest == 0:
            self.ended = True
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes - len(self._tail[0]) > HOLD_BYTES:
            self._tail_bytes -= len(self._tail.popleft())
        return data

    def eof(self) -> bool:
        return self.ended

    def leftover(self) -> bytes:
        return self._surplus

    def tail(self) -> bytes:
        return b"".join(self._tail)


class UntilCloseBody:
    """Neither length nor chunks: the body ends with the connection."""

    __slots__ = ("_tail", "broken", "ended", "intact", "lines")

    def __init__(self) -> None:
        self._tail = b""
        self.broken: str | None = None
        self.ended = False
        self.lines = 0
        self.intact = True

    def feed(self, data: bytes) -> bytes:
        self.lines += data.count(b"\n")
        self._tail = (self._tail + data)[-HOLD_BYTES:]
        return data

    def eof(self) -> bool:
        return True

    def leftover(self) -> bytes:
        return b""

    def tail(self) -> bytes:
        return self._tail


def _check_partial_size_line(line: bytes) -> None:
    """Refuse at once what can never become a size line; a hostile peer shall not make us wait for it."""
    digits = line.partition(b";")[0].rstrip(b"\r\n")
    if b"\n" in line or len(line) >= _SIZE_LINE_BYTES:
        raise ValueError("malformed chunk size")
    if len(digits) > 15 or (digits and not all(byte in b"0123456789abcdefABCDEF" for byte in digits)):
        raise ValueError("malformed chunk size")
    if line[:1] in (b";", b"\r"):
        raise ValueError("malformed chunk size")


def _check_partial_trailers(part: bytes) -> None:
    """Everything up to the last complete line must already be trailer fields."""
    complete = part[: part.rfind(b"\n") + 1]
    if complete and TRAILERS.fullmatch(complete + b"\r\n") is None:
        raise ValueError("malformed trailers")
