"""One Ollama's processes: started apart from the gateway, watched, and ended with all their children."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corral.gateway.layout.plan import ReplicaPlan
from corral.gateway.run.census import Census
from corral.gateway.run.processes import MARKER, ProcessId, identify
from corral.gateway.run.threads import on_own_thread

_PRIVATE: Final = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC")
"""What the service manager said to the gateway alone."""
_SET_MEMPOLICY: Final = {"x86_64": 238, "aarch64": 237}
_MPOL_PREFERRED: Final = 1
_LONG_BITS: Final = ctypes.sizeof(ctypes.c_ulong) * 8


@dataclass(frozen=True, slots=True)
class Birth:
    """What a process is started from."""

    plan: ReplicaPlan
    port: int
    token: str
    environ: Mapping[str, str]
    """The gateway's own."""
    log: Path

    @property
    def env(self) -> dict[str, str]:
        env = {name: value for name, value in self.environ.items() if name not in _PRIVATE} | dict(self.plan.env)
        env["OLLAMA_HOST"] = f"127.0.0.1:{self.port}"
        env[MARKER] = f"{self.token}:{self.plan.id}"
        return env


class Child:
    """The processes of one start: its leader, and whatever that one started."""

    def __init__(
        self,
        id: ProcessId,
        token: str,
        popen: subprocess.Popen[bytes] | None = None,
        problems: tuple[str, ...] = (),
    ) -> None:
        self.id = id
        self.token = token
        self.problems = problems
        """What could not be done for it, though it runs."""
        self._popen = popen
        """None: it was started by an earlier gateway, so its exit code is not to be had."""

    @property
    def adopted(self) -> bool:
        return self._popen is None

    def ended(self) -> str | None:
        """How its leader ended; None: it lives. The rest of its group ends with it."""
        if self._popen is None:
            return None if identify(self.id.pid) == self.id else "ended"
        if self._popen.returncode is None:
            if not _is_over(self.id.pid):
                return None
            self._popen.wait()
        return _in_words(self._popen.returncode)

    async def terminate(self, census: Census) -> None:
        """Ask its whole group to end; where the leader is not this process's child, everything that has its mark."""
        if self._popen is None:
            await census.take(self.token, lambda _: signal.SIGTERM)
        elif self.ended() is None:
            _signal_group(self.id.pid, signal.SIGTERM)


async def spawn(birth: Birth) -> Child:
    """Start it on a thread of its own. OSError or ValueError: it cannot be started."""
    # A thread that ends after it: what is set on it stays with the child alone.
    return await on_own_thread(lambda: _spawn(birth), "spawn")


def why_not(error: BaseException) -> str:
    """Why it could not be started, in words for a person."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _spawn(birth: Birth) -> Child:
    problems = _bind(birth.plan)
    output, problem = _output(birth.log)
    try:
        popen = subprocess.Popen(
            birth.plan.command,
            env=birth.env,
            stdin=subprocess.DEVNULL,
            stdout=output,  # a file, not a pipe: it writes on when the gateway is gone
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)
    id = identify(popen.pid) or ProcessId(popen.pid, 0)
    return Child(id, birth.token, popen, (*problems, *problem))


def _output(path: Path) -> tuple[int, list[str]]:
    """Where it writes. A replica that cannot write its log is better than none."""
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), []
    except OSError as error:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), [f"its log {path} cannot be written: {error.strerror}"]


def _bind(plan: ReplicaPlan) -> list[str]:
    """Keep this thread, and what it starts, on the plan's CPUs and near its memory; returns what was not possible."""
    problems = []
    if plan.cpus:
        try:
            os.sched_setaffinity(0, plan.cpus)
        except (OSError, ValueError, OverflowError) as error:
            problems.append(f"not kept on its CPUs: {error}")
    if plan.numa_node is not None:
        try:
            _prefer_node(plan.numa_node)
        except OSError as error:
            problems.append(f"not kept near memory node {plan.numa_node}: {error.strerror}")
    return problems


def _prefer_node(node: int) -> None:
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None or node < 0:
        raise OSError(errno.ENOSYS, "not known how on this machine")
    words = node // _LONG_BITS + 1
    mask = (ctypes.c_ulong * words)()
    mask[node // _LONG_BITS] = 1 << node % _LONG_BITS
    libc = ctypes.CDLL(None, use_errno=True)
    bits = ctypes.c_ulong(words * _LONG_BITS + 1)
    if libc.syscall(ctypes.c_long(number), ctypes.c_long(_MPOL_PREFERRED), mask, bits) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _is_over(pid: int) -> bool:
    """Whether this child has ended, without letting go of its number, which is its group's too: as long as it was not
    fetched, that cannot go to another. Then the rest of its group is ended."""
    try:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
    except ChildProcessError:
        return True  # somebody else fetched it
    _signal_group(pid, signal.SIGKILL)
    return True


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
