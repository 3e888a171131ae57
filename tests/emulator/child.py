"""An emulator as a child process, for any test that needs an Ollama: ends with the test, or with the test run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_RUN = (sys.executable, "-m", "corral", "emulate")


@dataclass(frozen=True, slots=True)
class EmulatorProcess:
    """A running emulator."""

    process: subprocess.Popen[str]
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


def start_emulator(*options: str) -> EmulatorProcess:
    """Start one with the options of ``corral emulate`` and wait until it listens; ``--listen`` is an own free port
    unless given."""
    listen = () if "--listen" in options else ("--listen", "127.0.0.1:0")
    process = subprocess.Popen(
        [*_RUN, *listen, "--until-stdin-closes", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("listening on http://"):
        stop_emulator(process)
        raise RuntimeError(f"the emulator did not start: {line!r}")
    host, _, port = line.strip().removeprefix("listening on http://").rpartition(":")
    return EmulatorProcess(process, host, int(port))


def stop_emulator(process: subprocess.Popen[str]) -> None:
    """End it, whatever state it is in."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@contextmanager
def emulator(*options: str) -> Iterator[EmulatorProcess]:
    """``with emulator("--model", "llama3.2:1b", "--speed", "50") as ollama: … ollama.url``."""
    child = start_emulator(*options)
    try:
        yield child
    finally:
        stop_emulator(child.process)
