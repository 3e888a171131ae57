"""Compiles load.c and steers it: an upstream that answers as an Ollama does, a client that checks every answer."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

SOURCE = Path(__file__).with_name("load.c")


class LoadError(Exception):
    """The load could not be made, or met something that it does not count as an answer."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What a client has seen so far; latencies cover the time since the mark before."""

    event: str
    at_s: float
    started: int
    open: int
    least_lines: int
    """The fewest lines that any open stream has got; -1 without one."""
    done: int
    lines: int
    answers: int
    errors: int
    reconnects: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    first_error: str


def compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def compile_load(folder: Path) -> Path:
    """Builds the load program into a folder; LoadError says what is missing."""
    found = compiler()
    if found is None:
        raise LoadError(
            "bench.wire needs a C compiler for bench/load.c: on Debian and Ubuntu, apt-get install gcc libc6-dev"
        )
    program = folder / "load"
    done = subprocess.run([found, "-O2", "-o", str(program), str(SOURCE)], capture_output=True, text=True)
    if done.returncode:
        raise LoadError(f"{found} could not compile {SOURCE}:\n{done.stderr}")
    return program


class LoadProcess:
    """One running load program. Closing its stdin ends it, so it never outlives the driver."""

    def __init__(self, program: Path, arguments: Sequence[str | int | float], core: int | None) -> None:
        pinned = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
        command = [str(program), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=pinned)
        self._unread = b""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise LoadError(f"the load program ended early with status {self.process.wait()}") from None

    def answer(self, timeout_s: float) -> dict[str, object]:
        """The next line it prints."""
        assert self.process.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(deadline_s - time.monotonic()):
                    raise LoadError(f"the load program said nothing for {timeout_s:g} s")
                more = self.process.stdout.read()
                if more == b"":
                    raise LoadError(f"the load program ended early with status {self.process.wait()}")
                self._unread += more or b""
        line, _, self._unread = self._unread.partition(b"\n")
        parsed: dict[str, object] = json.loads(line)
        return parsed


class Upstream(LoadProcess):
    """Stands for the replicas: one process, one port for each."""

    def __init__(self, program: Path, replicas: int, core: int | None) -> None:
        super().__init__(program, ["upstream", replicas], core)
        ports = self.answer(5)["ports"]
        assert isinstance(ports, list)
        self.ports: list[int] = ports

    def pace(self, step_us: int) -> None:
        """Lines of all streams leave together at multiples of a step; 0: each line at its own time."""
        self._ask(f"step {step_us}")

    def state(self) -> tuple[int, list[int]]:
        """Streams open now, and the requests each port has had."""
        return self._ask("mark")

    def _ask(self, word: str) -> tuple[int, list[int]]:
        self.say(word)
        state = self.answer(10)
        streams, requests = state["open_streams"], state["requests"]
        assert isinstance(streams, int)
        assert isinstance(requests, list)
        return streams, requests


class Client(LoadProcess):
    """Reads streams, or sends small requests in a closed loop."""

    @classmethod
    def streams(
        cls, program: Path, port: int, *, count: int, lines: int, rate: float, ramp_s: float, core: int | None
    ) -> Self:
        return cls(program, ["streams", port, count, lines, rate, ramp_s], core)

    @classmethod
    def small(cls, program: Path, port: int, *, connections: int, core: int | None) -> Self:
        return cls(program, ["small", port, connections], core)

    def mark(self) -> Counters:
        self.say("mark")
        return self.counters(10)

    def counters(self, timeout_s: float) -> Counters:
        raw = self.answer(timeout_s)
        seen = Counters(**{field.name: raw[field.name] for field in fields(Counters)})  # type: ignore[arg-type]
        if seen.errors:
            raise LoadError(f"{seen.errors} errors; the first: {seen.first_error.strip()}")
        return seen

    def until(self, reached: Callable[[Counters], bool], what: str, timeout_s: float) -> Counters:
        deadline_s = time.monotonic() + timeout_s
        while not reached(seen := self.mark()):
            if time.monotonic() > deadline_s:
                raise LoadError(
                    f"not {what} within {timeout_s:g} s: {seen.open} open, {seen.lines} lines, {seen.answers} answers"
                )
            time.sleep(0.1)
        return seen
