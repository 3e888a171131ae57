"""The gateway and emulated replicas as real child processes: started, killed, frozen, restarted, never left behind."""

from __future__ import annotations

import asyncio
import ctypes
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from tests.gateway.cli.shell import environment

CORRAL: Final = (sys.executable, "-m", "corral")
START_S: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """Even a test run that is killed leaves no child behind."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def until(condition: Callable[[], object], within_s: float, what: str = "the condition") -> float:
    """Wait for a condition that processes bring about; returns the seconds it took."""
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > within_s:
            raise AssertionError(f"{what} did not come within {within_s} s")
        await asyncio.sleep(0.01)
    return time.monotonic() - began_s


async def ask(port: int, method: str, path: str, body: object = None, limit_s: float = 10.0) -> tuple[int, Any]:
    """One small request on a connection of its own: status, and the body as JSON where it is."""
    content = b"" if body is None else json.dumps(body).encode()
    async with asyncio.timeout(limit_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(content)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + content)
            raw = await reader.read()
        finally:
            writer.close()
    answer_head, _, rest = raw.partition(b"\r\n\r\n")
    try:
        return int(answer_head[9:12]), json.loads(rest)
    except ValueError:
        return int(answer_head[9:12]), rest.decode("utf-8", "replace")


class Child:
    """One ``corral`` command in a process of its own; what it says goes to a file."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        self.arguments = arguments
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*CORRAL, *self.arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environment(),
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        return environment()

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def running(self) -> bool:
        return self.process.poll() is None

    async def says(self, part: str, within_s: float = START_S) -> str:
        """The first line so far that contains ``part``."""

        def found() -> bool:
            return part in self.said() or not self.running()

        await until(found, within_s, f"{part!r} from {self.arguments[0]}")
        lines = [line for line in self.said().splitlines() if part in line]
        assert lines, f"{self.arguments} ended ({self.process.poll()}) without saying {part!r}:\n{self.said()}"
        return lines[0]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, within_s: float = 10.0) -> int:
        await until(lambda: not self.running(), within_s, f"the end of {self.arguments[0]}")
        return self.process.wait()

    def end(self) -> None:
        """Now, whatever state it is in."""
        if self.running():
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class Emulator(Child):
    """One emulated replica."""

    def __init__(self, log: Path, name: str, *options: str) -> None:
        self.name = name
        self.port = 0
        super().__init__(log, "emulate", "--listen", "127.0.0.1:0", "--id", name, "--until-stdin-closes", *options)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ready(self) -> None:
        """Wait until it listens."""
        line = await self.says("listening on")
        self.port = int(line.rpartition(":")[2])

    async def restart(self) -> None:
        """Once more on the same port, as a new process; waits until it listens."""
        arguments = list(self.arguments)
        arguments[2] = f"127.0.0.1:{self.port}"
        for _ in range(20):  # for a moment, a passing connection may have that port
            self.end()
            self.log.write_text("")
            self.arguments = tuple(arguments)
            self.process = self._start()
            try:
                await self.says("listening on")
            except AssertionError:
                if "in use" not in self.said():
                    raise
            else:
                return
        raise AssertionError(f"port {self.port} stayed taken")

    def kill(self) -> None:
        """SIGKILL; its connections break as the kernel closes them."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: it accepts connections (the kernel does) and answers none."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    async def fault(self, kind: str, **fields: object) -> None:
        status, answer = await ask(self.port, "POST", "/emulator/fault", {"kind": kind, **fields})
        assert status == 200, answer

    async def faults(self) -> list[dict[str, Any]]:
        """Those ordered, with their hits."""
        _, page = await ask(self.port, "GET", "/emulator/fault")
        found: list[dict[str, Any]] = page["faults"]
        return found

    async def clear_faults(self) -> None:
        await ask(self.port, "DELETE", "/emulator/fault")

    async def stats(self) -> dict[str, Any]:
        _, stats = await ask(self.port, "GET", "/emulator/stats")
        assert isinstance(stats, dict)
        return stats


class Gateway(Child):
    """A real ``corral serve``."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.config = config
        self.port = self.admin_port = 0
        super().__init__(folder / "gateway.log", "serve", "--config", str(config))

    async def ready(self) -> None:
        """Wait for its card."""
        self.port = int((await self.says("  clients ")).rpartition(":")[2])
        self.admin_port = int((await self.says("  admin ")).split()[1].rpartition(":")[2])

    async def snapshot(self) -> dict[str, Any]:
        _, page = await ask(self.admin_port, "GET", "/snapshot")
        assert isinstance(page, dict), page
        return page

    async def requests(self) -> tuple[int, int]:
        """In flight and queued."""
        requests = (await self.snapshot())["requests"]
        return requests["in_flight"], requests["queued"]

    async def replica(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {each["id"]: each for each in (await self.snapshot())["replicas"]}[name]
        return found

    async def health(self) -> dict[str, str]:
        return {each["id"]: each["health"] for each in (await self.snapshot())["replicas"]}

    async def until(self, condition: Callable[[dict[str, Any]], object], within_s: float, what: str) -> float:
        """Wait until a snapshot meets a condition; returns the seconds it took."""
        began_s = time.monotonic()
        while True:
            page = await self.snapshot()
            took_s = time.monotonic() - began_s
            if condition(page):
                return took_s
            assert took_s <= within_s, f"{what} did not come within {within_s} s: {json.dumps(page)}"
            await asyncio.sleep(0.01)

    async def until_health(self, name: str, *states: str, within_s: float) -> float:
        def is_so(page: dict[str, Any]) -> bool:
            return any(each["id"] == name and each["health"] in states for each in page["replicas"])

        return await self.until(is_so, within_s, f"{name} {'/'.join(states)}")

    async def until_idle(self, within_s: float = 10.0) -> float:
        """Nothing in flight, nothing queued."""

        def is_idle(page: dict[str, Any]) -> bool:
            return (page["requests"]["in_flight"], page["requests"]["queued"]) == (0, 0)

        return await self.until(is_idle, within_s, "an idle gateway")

    def descriptors(self, replica_ports: Sequence[int] = ()) -> int:
        """Open descriptors, without connections to these ports."""
        process = psutil.Process(self.pid)
        towards = [each for each in process.net_connections("tcp") if _port_of(each.raddr) in replica_ports]
        return process.num_fds() - len(towards)


def _port_of(address: tuple[Any, ...]) -> int | None:
    """Of a connection's far end; a listening socket has none."""
    return int(address[1]) if len(address) == 2 else None


def write_config(
    path: Path, emulators: Sequence[Emulator], slots: int | str = 4, more: str = "", *, own_stores: bool = False
) -> Path:
    """A configuration in front of ``emulators``; ``slots`` per model, ``more`` as further YAML. With ``own_stores``
    each says that it has a model store of its own, instead of one store for all."""
    listed = "".join(
        f'  - {{id: {each.name}, url: "http://127.0.0.1:{each.port}", slots: {slots}'
        f"{f', store: of-{each.name}' if own_stores else ''}}}\n"
        for each in emulators
    )
    path.write_text(f"listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n{listed}{more}")
    return path


@contextmanager
def _ending(children: Sequence[Child]) -> Iterator[None]:
    try:
        yield
    finally:
        for child in children:
            child.end()


@asynccontextmanager
async def emulators(folder: Path, count: int, *options: str, first: int = 0) -> AsyncIterator[list[Emulator]]:
    """``count`` emulators named r0, r1, … that listen."""
    made: list[Emulator] = []
    with _ending(made):
        made += (Emulator(folder / f"r{number}.log", f"r{number}", *options) for number in range(first, first + count))
        for each in made:
            await each.ready()
        yield made


@asynccontextmanager
async def gateway(config: Path) -> AsyncIterator[Gateway]:
    """A gateway that has said its card."""
    made = Gateway(config.parent, config)
    with _ending([made]):
        await made.ready()
        yield made
