"""A file, or stderr, that gets lines from a thread of its own: whatever becomes of it, nobody waits for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

STDERR: Final = 2
MOST_WAITING: Final = 20_000
"""Lines that wait to be written; of more the newest are lost."""
RETRY_S: Final = 5.0
"""After a failure nothing is written for so long."""
_FILE_BYTES: Final = 64 * 1024
_PIPE_BYTES: Final = 4096
"""So much of one write is never mixed with what others write into the same pipe."""
_MODE: Final = 0o640
_NEWLINE: Final = ord("\n")


class LineFile:
    """Opened when there is something to write, and anew when another file, or none, has come under its name."""

    def __init__(
        self,
        path: Path | None,
        tell: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
        retry_s: float = RETRY_S,
    ) -> None:
        """``path`` None: stderr. ``tell``: takes level, message and values of a line of the log, from the thread."""
        self._path = path
        self._tell = tell
        self._clock = clock
        self._retry_s = retry_s
        self._more = threading.Condition()
        self._waiting: list[bytes] = []
        self._count = 0
        self._dropped = 0
        """Lines lost since the last batch, because too many wait."""
        self._is_full = False
        self._reopen = False
        self._ending: Callable[[], None] | None = None
        self._file: int | None = STDERR if path is None else None
        self._mid_line = False
        self._resting_until_s = float("-inf")
        self._is_failing = False
        self._lost = 0
        """Lines lost since it last went well."""
        # As a daemon: one that a dead disk holds for ever must not hold the gateway's end.
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    # -- for the event loop

    def put(self, lines: list[bytes]) -> None:
        with self._more:
            room = max(0, MOST_WAITING - self._count)
            self._waiting += lines[:room]
            self._count += min(room, len(lines))
            self._dropped += max(0, len(lines) - room)
            was_full, self._is_full = self._is_full, self._is_full or len(lines) > room
            self._more.notify()
        # A disk that hangs, or a pipe that nobody reads. Of stderr nobody can tell: it is the log's, too.
        if self._is_full and not was_full and self._path is not None:
            text = 'access_log_waits consequence="lines are lost, requests are served" path=%s waiting=%d'
            self._tell(logging.WARNING, text, self._path, MOST_WAITING)

    def reopen(self) -> None:
        with self._more:
            self._reopen = True
            self._more.notify()

    def end(self, ended: Callable[[], None]) -> None:
        with self._more:
            self._ending = ended
            self._more.notify()

    # -- the thread

    def _run(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._waiting or self._reopen or self._ending is not None)
                lines, self._waiting = self._waiting, []
                dropped, self._dropped = self._dropped, 0
                reopen, self._reopen = self._reopen, False
                ending = self._ending
            self._take(lines, dropped, reopen=reopen)
            with self._more:
                self._count -= len(lines)
                self._is_full = self._is_full and not lines
            if ending is not None:
                self._close()
                ending()
                return

    def _take(self, lines: list[bytes], dropped: int, *, reopen: bool) -> None:
        self._lost += dropped
        if reopen:
            self._resting_until_s = float("-inf")
        if self._clock() < self._resting_until_s:
            self._lost += len(lines)
            return
        written = 0
        try:
            self._open()  # also where there is nothing to write: who asked for it wants to see the file
            for piece, count in _pieces(lines, _PIPE_BYTES if self._path is None else _FILE_BYTES):
                self._write(piece)
                written += count
        except OSError as error:
            self._lost += len(lines) - written
            self._failed(error)
        else:
            self._went_well()

    def _open(self) -> None:
        if self._path is None:
            return
        if self._file is not None and not self._is_ours():
            self._close()
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _MODE)
            self._mid_line = False

    def _is_ours(self) -> bool:
        """Whether the open file is still the one of that name: it was not moved away, nor another put in its place."""
        assert self._path is not None
        assert self._file is not None
        try:
            named, opened = os.stat(self._path), os.fstat(self._file)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)

    def _write(self, piece: bytes) -> None:
        assert self._file is not None
        left = memoryview(b"\n" + piece if self._mid_line else piece)
        while left:
            done = os.write(self._file, left)
            self._mid_line = left[done - 1] != _NEWLINE
            left = left[done:]

    def _close(self) -> None:
        file, self._file = self._file, STDERR if self._path is None else None
        if file is not None and file != STDERR:
            try:
                os.close(file)
            except OSError:  # what it could not write is lost, and was told of
                pass

    def _failed(self, error: OSError) -> None:
        self._resting_until_s = self._clock() + self._retry_s
        if not self._is_failing:
            self._is_failing = True
            text = 'access_log_failed consequence="lines are lost, requests are served" path=%s error="%s"'
            self._tell(logging.WARNING, text, self._path or "stderr", error.strerror or error)

    def _went_well(self) -> None:
        lost, self._lost = self._lost, 0
        if lost or self._is_failing:
            self._is_failing = False
            self._tell(logging.WARNING, "access_log_goes_on path=%s lost=%d", self._path or "stderr", lost)


def _pieces(lines: list[bytes], most_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines, as many as fit into one write, and how many they are."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > most_bytes:
            yield b"".join(piece), len(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield b"".join(piece), len(piece)
