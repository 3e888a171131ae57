"""A process for each loaded model, as Ollama has its ``llama-server``: it can be killed, and it can be left behind.

Like Ollama's it is in the process group of its parent and does not end with it. It computes nothing.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from corral.emulator.generation import LOST, LOST_LEGACY
from corral.emulator.rig import Rig
from corral.emulator.runner import Runner, RunnerState

LOAD_FAILED: Final = "llama-server process has terminated: signal: killed"
_SHELL: Final = "/bin/sh"
_FIRST_PORT: Final = 40_000
_PORTS: Final = 10_000

Log = Callable[[Runner, list[str]], None]


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    pidfd: int


class RunnerProcesses:
    """Keeps one process for each runner of the rig's machine; the end of a process is the crash of its runner."""

    def __init__(self, rig: Rig, log: Log | None = None) -> None:
        self._rig = rig
        self._log = log
        self._children: dict[Runner, _Child] = {}
        self._started = 0
        rig.on_runners = self.follow

    def follow(self, runners: Iterable[Runner]) -> None:
        """Start and end processes until there is one for each of these."""
        wanted = dict.fromkeys(runners)
        for runner in [runner for runner in self._children if runner not in wanted]:
            self._end(runner)
        for runner in wanted:
            if runner not in self._children:
                self._start(runner)

    def end_all(self) -> None:
        self.follow(())

    def memory(self) -> dict[int, int]:
        """By pid: what the runner holds on the GPU."""
        return {child.process.pid: runner.bytes_vram for runner, child in self._children.items()}

    def _start(self, runner: Runner) -> None:
        self._started += 1
        port = _FIRST_PORT + (os.getpid() * 7 + self._started) % _PORTS
        line = _command_line(runner, port)
        if self._log is not None:
            self._log(runner, line)
        # a shell that reads its commands from a pipe which it itself keeps open: it waits for ever in a megabyte
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(
                [line[0], "-s", "--", *line[1:]],
                executable=_SHELL,
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writing,),
            )
        finally:
            os.close(reading)
            os.close(writing)
        child = self._children[runner] = _Child(process, os.pidfd_open(process.pid))
        self._rig.loop.add_reader(child.pidfd, self._died, runner)

    def _end(self, runner: Runner) -> None:
        child = self._children.pop(runner)
        self._rig.loop.remove_reader(child.pidfd)
        os.close(child.pidfd)
        child.process.kill()
        child.process.wait()

    def _died(self, runner: Runner) -> None:
        self._end(runner)
        if runner.state is RunnerState.LOADING:
            self._rig.crash(runner, LOAD_FAILED)
        else:
            self._rig.crash(runner, LOST_LEGACY if self._rig.machine.spec.legacy else LOST)


def _command_line(runner: Runner, port: int) -> list[str]:
    blob = runner.model.blob_digest.replace(":", "-")
    line = ["llama-server", "--model", f"/models/blobs/{blob}", "--port", str(port), "--host", "127.0.0.1"]
    slots = str(runner.slots)
    return [*line, "--no-webui", "--offline", "-c", str(runner.context_tokens * runner.slots), "-np", slots]
