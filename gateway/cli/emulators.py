"""Emulated replicas as child processes: started together, read until they listen, never left behind."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from corral.errors import OperatorError
from corral.gateway.config import ReplicaUrl
from corral.gateway.config.addresses import parse_replica_url

START_S: Final = 20.0
END_S: Final = 3.0
INSIST_S: Final = 1.0
EMULATE: Final = (sys.executable, "-m", "corral", "emulate")

_LISTENING = re.compile(r"listening on (http://\S+)")


@dataclass(frozen=True, slots=True)
class EmulatedReplica:
    """What one child is to emulate."""

    id: str
    gpu: str
    parallel: int
    weight: float
    gpu_file: Path | None = None
    """Takes the readings of its GPU."""


class Emulators:
    """A context whose children live exactly as long as it does.

    Each child ends when its stdin closes, so even a killed parent leaves none behind. They run in a session of their
    own: Ctrl-C in the terminal reaches the gateway alone, which lets running streams finish first.
    """

    def __init__(
        self,
        replicas: Sequence[EmulatedReplica],
        models: Sequence[str],
        speed: float,
        *,
        command: Sequence[str] = EMULATE,
        start_s: float = START_S,
    ) -> None:
        self.replicas = replicas
        self._options = [word for model in models for word in ("--model", model)] + ["--speed", f"{speed:g}"]
        self._command = command
        self._start_s = start_s
        self._children: list[_Child] = []

    def __enter__(self) -> Self:
        try:
            for replica in self.replicas:
                self._children.append(_Child(replica.id, self._line(replica)))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def urls(self) -> list[ReplicaUrl]:
        """Where the children listen, in order; waits for them. Raises :class:`OperatorError` if one does not start."""
        deadline = time.monotonic() + self._start_s
        return [child.url(deadline) for child in self._children]

    def pids(self) -> list[int]:
        return [child.process.pid for child in self._children]

    def _line(self, replica: EmulatedReplica) -> list[str]:
        own = ["--listen", "127.0.0.1:0", "--gpu", replica.gpu, "--parallel", str(replica.parallel)]
        own += [] if replica.gpu_file is None else ["--gpu-file", str(replica.gpu_file)]
        return [*self._command, *own, *self._options, "--until-stdin-closes"]

    def _end(self) -> None:
        for child in self._children:
            child.close_stdin()
        deadline = time.monotonic() + END_S
        for child in self._children:
            child.end(deadline)


def _started(line: Sequence[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True)
    except OSError as error:
        raise OperatorError(f"cannot run {line[0]}: {error.strerror or error}") from error


class _Child:
    """One emulator process, its output drained by a thread so that it never blocks on a full pipe."""

    def __init__(self, name: str, line: Sequence[str]) -> None:
        self.name = name
        self.process = _started(line)
        self._last: deque[str] = deque(maxlen=5)
        self._url: str | None = None
        self._known = threading.Event()
        self._reader = threading.Thread(target=self._drain, name=f"output of {name}", daemon=True)
        self._reader.start()

    def url(self, deadline: float) -> ReplicaUrl:
        self._known.wait(max(0.0, deadline - time.monotonic()))
        if self._url is None:
            raise OperatorError(self._why_not())
        return parse_replica_url(self._url)

    def close_stdin(self) -> None:
        stdin = self.process.stdin
        if stdin is not None:
            stdin.close()

    def end(self, deadline: float) -> None:
        """Wait for it, then insist: terminate, then kill."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self._wait_or_kill()
        self._reader.join(1.0)
        if not self._reader.is_alive() and self.process.stdout is not None:
            self.process.stdout.close()

    def _wait_or_kill(self) -> None:
        try:
            self.process.wait(INSIST_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _drain(self) -> None:
        output: IO[bytes] | None = self.process.stdout
        while output is not None and (raw := output.readline(65_536)):
            line = raw.decode("utf-8", "replace").rstrip()
            match = _LISTENING.search(line)
            if match is not None and self._url is None:
                self._url = match[1]
                self._known.set()
            self._last.append(line)
        self._known.set()

    def _why_not(self) -> str:
        try:
            what = f"ended at once with exit code {self.process.wait(0.5 if self._known.is_set() else 0.0)}"
        except subprocess.TimeoutExpired:
            what = "did not start in time"
        said = "".join(f"\n  {line}" for line in self._last)
        return f"the emulated replica {self.name!r} {what}{'; it said:' + said if said else ''}"
