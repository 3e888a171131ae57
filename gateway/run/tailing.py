"""Reads a log that is written meanwhile: its last lines, and what comes after. No read is without a bound.

A log is rotated by copying it and emptying it in place (``logs.py``). Whoever follows it sees another copy, and
finds in it what it had not yet read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

TAIL_BYTES: Final = 1 << 20
"""The last lines are sought in so much of a log's end."""
PIECE_BYTES: Final = 64 << 10
"""Taken at a time."""
HEAD_BYTES: Final = 4096
"""By so many bytes a log is told from its copy."""
LONGEST_LINE: Final = 4000


class Mark(NamedTuple):
    """The file under a name: another one, or another content, has another mark."""

    inode: int
    changed_ns: int
    size: int


class Tail:
    """Follows one log. Blocks: for a thread. A log that is not there, or cannot be read, has no lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._copy = path.with_name(f"{path.name}.1")
        self._offset = 0
        self._rest = b""
        """The beginning of a line whose end is not written yet."""
        self._copied = _mark(self._copy)

    def last(self, count: int) -> list[str]:
        """The last lines, the oldest first; :meth:`more` goes on behind them."""
        self._copied = _mark(self._copy)
        try:
            with self._path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                begin = max(0, end - TAIL_BYTES)
                file.seek(begin)
                text = file.read(end - begin)
        except OSError:
            return []
        self._offset = begin + len(text)
        if begin:  # the first one is cut off
            text = text.partition(b"\n")[2]
        lines = self._split(text)
        return lines[-count:] if count else []

    def more(self) -> list[str]:
        """The lines that were completed since, as far as one piece goes; none: there is nothing new."""
        try:
            size = self._path.stat().st_size
        except OSError:
            return []
        mark = _mark(self._copy)
        if mark is not None and mark != self._copied and self._is_emptied(size, mark.size):
            missed = _read(self._copy, self._offset, TAIL_BYTES)
            self._copied, self._offset = mark, 0
            return self._split(missed) + self._next()
        if size < self._offset:  # emptied by somebody else: what was not read is gone
            self._offset, self._rest = 0, b""
        return self._next()

    def _is_emptied(self, size: int, copied: int) -> bool:
        """Whether the log was emptied after it was copied, or is about to be: until then it begins as its copy."""
        if size < copied:
            return True
        head = _read(self._copy, 0, HEAD_BYTES)
        return _read(self._path, 0, len(head)) != head

    def _next(self) -> list[str]:
        piece = _read(self._path, self._offset, PIECE_BYTES)
        self._offset += len(piece)
        return self._split(piece)

    def _split(self, piece: bytes) -> list[str]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST_LINE:  # a line without an end: it is shown, and the rest is another
            lines.append(self._rest)
            self._rest = b""
        return [line[:LONGEST_LINE].decode("utf-8", "replace").rstrip("\r") for line in lines]


def _read(path: Path, offset: int, at_most: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(at_most)
    except OSError:
        return b""


def _mark(path: Path) -> Mark | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return Mark(found.st_ino, found.st_mtime_ns, found.st_size)
