"""Finds and signals processes so that a reused process number never hits a stranger."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MARKER: Final = "CORRAL_REPLICA"
"""In the environment of everything that was started: ``TOKEN:REPLICA``."""
_PROC: Final = Path("/proc")
_MARK: Final = b"\0" + MARKER.encode() + b"="


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its number and when it began, in clock ticks since the machine started."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class MarkedProcess:
    """A living process that carries a marker."""

    id: ProcessId
    token: str
    leads: bool
    """It leads its session: it is the one that was started, not a child of it."""
    frozen: bool
    """It was stopped by a signal or a debugger, and would answer nothing."""


def boot_id() -> str:
    """Another one after each start of the machine; empty where the system does not tell."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def identify(pid: int) -> ProcessId | None:
    """The process that has this number now; None: nobody, or one that has ended and was not fetched yet."""
    stat = _stat(pid)
    return None if stat is None else ProcessId(pid, int(stat[19]))


def look_at(pid: int, prefix: str) -> MarkedProcess | None:
    """That process, if it lives and its token begins so. Does not return from one that hangs in a driver."""
    token = _token(pid)
    if token is None or not token.startswith(prefix):
        return None
    stat = _stat(pid)
    if stat is None:
        return None
    return MarkedProcess(ProcessId(pid, int(stat[19])), token, leads=int(stat[3]) == pid, frozen=stat[0] in "Tt")


def send(process: MarkedProcess, number: signal.Signals) -> None:
    """Signal it, if it still is what it was."""
    pid = process.id.pid
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        if error.errno == errno.ENOSYS and _is_still(process):  # Linux before 5.3
            _quietly_kill(pid, number)
        return
    try:
        # The handle stays with the process that was opened: what is looked at now is what is signalled.
        if _is_still(process):
            signal.pidfd_send_signal(handle, number)
    except OSError:
        pass  # it has just ended
    finally:
        os.close(handle)


def reap(process: MarkedProcess) -> None:
    """Fetch the end of one that fell to this process as an orphan (in a container, to its first process).

    One that leads its session was started by somebody who waits for it.
    """
    if process.leads:
        return
    fields = _fields(process.id.pid)
    if fields is None or fields[0] != "Z" or int(fields[1]) != os.getpid() or int(fields[19]) != process.id.start_ticks:
        return
    try:
        os.waitpid(process.id.pid, os.WNOHANG)
    except ChildProcessError:
        pass


def _is_still(process: MarkedProcess) -> bool:
    return identify(process.id.pid) == process.id and _token(process.id.pid) == process.token


def _token(pid: int) -> str | None:
    try:
        environ = b"\0" + (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None  # ended, or somebody else's
    _, found, rest = environ.partition(_MARK)
    return rest.partition(b"\0")[0].decode("utf-8", "replace").partition(":")[0] if found else None


def _stat(pid: int) -> list[str] | None:
    """The fields of a process that has not ended."""
    fields = _fields(pid)
    return None if fields is None or fields[0] in "ZX" else fields


def _fields(pid: int) -> list[str] | None:
    """What follows the name, which may hold anything: state, parent, group, session, …; the 20th is the start."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields if len(fields) >= 20 else None


def _quietly_kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass
