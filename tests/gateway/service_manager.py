"""Stands in for systemd: hears what a service says of itself, keeps its sockets open, and starts it with both."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.gateway.cli.shell import CORRAL, Running, environment

PATIENCE_S = 20.0
_ABOVE = 10
"""Descriptors are kept from here on, out of the way of those that are handed over."""
_START = """
import os, sys
for number, kept in enumerate(sys.argv[1].split(",") if sys.argv[1] else []):
    os.dup2(int(kept), 3 + number)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
"""As systemd does it: the sockets from 3 upwards, and the number of the process that they are meant for."""


class Ear:
    """The socket that ``NOTIFY_SOCKET`` names, and everything that was said there."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def listen(self) -> None:
        """Take what was said so far."""
        while True:
            try:
                datagram = self._socket.recv(4096)
            except BlockingIOError:
                return
            self.heard.append(dict(line.split("=", 1) for line in datagram.decode().splitlines()))

    async def until(self, name: str, value: str | None = None) -> str:
        """What is said of ``name`` next, ``value`` if that is given; what was said before it is forgotten."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self.listen()
                while self.heard:
                    said = self.heard.pop(0).get(name)
                    if said is not None and value in (None, said):
                        return said
                await asyncio.sleep(0.01)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def ear(folder: Path | None = None) -> Iterator[Ear]:
    """In ``folder``, else without a file: an abstract address."""
    address = f"@corral-test-{secrets.token_hex(8)}" if folder is None else str(folder / "notify")
    listening = Ear(address)
    try:
        yield listening
    finally:
        listening.close()


def one_replica(folder: Path, port: int) -> Path:
    """The configuration of a gateway in front of one replica, on any free ports."""
    path = folder / "corral.yaml"
    path.write_text(
        f'listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n  - {{id: a, url: "http://127.0.0.1:{port}"}}\n'
    )
    return path


@contextmanager
def kept(*listeners: socket.socket) -> Iterator[tuple[int, ...]]:
    """Descriptors of these sockets that do not get in the way of the numbers from 3 upwards."""
    descriptors = tuple(fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, _ABOVE) for each in listeners)
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@asynccontextmanager
async def service(
    *arguments: str, sockets: dict[str, socket.socket] | None = None, notify: str = "", watchdog_s: float = 0
) -> AsyncIterator[Running]:
    """``corral`` as a service; ended by force at the end if it still runs."""
    sockets = sockets or {}
    told = {
        "LISTEN_FDS": str(len(sockets)),
        "LISTEN_FDNAMES": ":".join(sockets),
        "NOTIFY_SOCKET": notify,
        "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
    }
    with kept(*sockets.values()) as descriptors:
        start = (sys.executable, "-c", _START, ",".join(map(str, descriptors)))
        process = await asyncio.create_subprocess_exec(
            *start,
            *CORRAL,
            *arguments,
            env=environment(**told),
            pass_fds=descriptors,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            yield Running(process)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.wait()
