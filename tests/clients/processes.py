"""A gateway in front of emulated replicas, each a child process of its own; nothing of it outlives the ``with``."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.conformance.raw import ask

GPUS = ("RTX 4090 24GB", "RTX 3090 24GB", "RTX 3060 12GB")
_CORRAL = (sys.executable, "-m", "corral")
_START_S, _STOP_S = 30.0, 15.0
_POLL_S = 0.01
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Emulator:
    """One emulated replica."""

    id: str
    url: str

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.url, "GET", "/emulator/stats").json()
        return found

    def fault(self, kind: str, **fields: Any) -> None:
        """Order a fault: the next request of its kind meets it."""
        answer = ask(self.url, "POST", "/emulator/fault", {"kind": kind, **fields})
        assert answer.status == 200, answer.body

    def clear_faults(self) -> None:
        ask(self.url, "DELETE", "/emulator/fault")


@dataclass(frozen=True, slots=True)
class Stack:
    """A running gateway and its replicas."""

    url: str
    admin_url: str
    replicas: tuple[Emulator, ...]

    def snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.admin_url, "GET", "/snapshot").json()
        return found

    def total(self, counter: str) -> int:
        """The sum of one of the replicas' counters."""
        return sum(int(replica.stats()[counter]) for replica in self.replicas)

    def at_rest(self) -> bool:
        """Nothing waits or runs, in the gateway and in the replicas."""
        requests = self.snapshot()["requests"]
        return not (
            requests["in_flight"] or requests["queued"] or self.total("active_streams") or self.total("pending")
        )

    def fault(self, kind: str, **fields: Any) -> None:
        """Order a fault of every replica."""
        for replica in self.replicas:
            replica.fault(kind, **fields)

    def clear_faults(self) -> None:
        for replica in self.replicas:
            replica.clear_faults()

    def load_everywhere(self, model: str) -> None:
        """Every replica holds the model in its memory, and the gateway knows."""
        for replica in self.replicas:
            assert ask(replica.url, "POST", "/api/generate", {"model": model}).status == 200
        until(lambda: all(model in replica["loaded"] for replica in self.snapshot()["replicas"]), within_s=_START_S)

    @contextmanager
    def one_stream_is_aborted(self) -> Iterator[None]:
        """Within a second of the block's end one replica has stopped one stream, and nothing is in flight any more."""
        before = self.total("aborted")
        yield
        left_s = time.monotonic()
        until(lambda: self.at_rest() and self.total("aborted") == before + 1, within_s=1.0)
        assert time.monotonic() - left_s < 1.0


def until(holds: Callable[[], bool], within_s: float) -> None:
    """Poll until it holds; fails where it does not in time."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, f"still not so after {within_s} s"
        time.sleep(_POLL_S)


@contextmanager
def stack(
    folder: Path, options: Sequence[str], *, gpus: Sequence[str] = GPUS, slots: int = 2, more: str = ""
) -> Iterator[Stack]:
    """One emulator per GPU, all with these options, and a gateway in front; ``more`` goes into its configuration."""
    with ExitStack() as open_now:
        lines = [open_now.enter_context(_emulator(folder, gpu, slots, options)) for gpu in gpus]
        replicas = tuple(Emulator(chr(ord("a") + index), next(line)) for index, line in enumerate(lines))
        config = folder / "corral.yaml"
        config.write_text(_config(replicas, slots) + more)
        url, admin_url = open_now.enter_context(_gateway(folder, config))
        running = Stack(url, admin_url, replicas)
        until(lambda: _all_are_up(running), within_s=_START_S)
        yield running


def _all_are_up(running: Stack) -> bool:
    return all(replica["health"] == "up" and replica["installed"] for replica in running.snapshot()["replicas"])


def _config(replicas: Sequence[Emulator], slots: int) -> str:
    lines = [f'  - {{id: {replica.id}, url: "{replica.url}", slots: {slots}}}\n' for replica in replicas]
    return "listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n" + "".join(lines)


@contextmanager
def _emulator(folder: Path, gpu: str, slots: int, options: Sequence[str]) -> Iterator[Iterator[str]]:
    """Starts at once; the iterator waits for the address, so that several start side by side."""
    own = ("emulate", "--listen", "127.0.0.1:0", "--gpu", gpu, "--parallel", str(slots), "--until-stdin-closes")
    with _child(folder, (*own, *options), stdin=subprocess.PIPE) as process:
        yield _after(process, "listening on ")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(_STOP_S) == 0


@contextmanager
def _gateway(folder: Path, config: Path) -> Iterator[tuple[str, str]]:
    """The addresses of clients and of the admin."""
    with _child(folder, ("serve", "--config", str(config)), stdin=subprocess.DEVNULL) as process:
        card = _after(process, "clients ", "admin ")
        yield next(card), next(card)
        process.terminate()
        assert process.wait(_STOP_S) == 0


@contextmanager
def _child(folder: Path, arguments: Sequence[str], stdin: int) -> Iterator[subprocess.Popen[str]]:
    """A child of ``corral`` that must leave neither a process behind nor a word of a bug in its log."""
    log = folder / f"{arguments[0]}-{len(list(folder.glob('*.log')))}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*_CORRAL, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(),
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    try:
        yield process
    finally:
        left = _family(process)
        for each in left:
            each.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
    said = log.read_text()
    assert not left, f"{arguments[0]} was still there at the end, with its children: {left}\n{said}"
    assert not any(word in said for word in ("Traceback", "task_failed", "emulator ", "Error")), said


def _end_with_parent() -> None:
    """A test run that is killed leaves no child behind either."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """What is left of a child and of its own children."""
    if process.poll() is not None:
        return []
    own = psutil.Process(process.pid)
    return [*own.children(recursive=True), own]


def _after(process: subprocess.Popen[str], *marks: str) -> Iterator[str]:
    """The first word behind each mark, in the order in which the child prints them."""
    assert process.stdout is not None
    for mark in marks:
        said = ""
        for line in process.stdout:
            said += line
            if mark in line:
                yield line.partition(mark)[2].split()[0]
                break
        else:
            raise RuntimeError(f"the child ended without saying {mark!r}; it said {said!r}")


def _environment() -> dict[str, str]:
    """This process's, without what would change what Corral does; warnings are errors in the children too."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("CORRAL", "OLLAMA"))}
    return plain | {"PYTHONWARNINGS": "error"}
