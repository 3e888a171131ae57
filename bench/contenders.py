"""The proxies that are compared: how each is configured, started, found ready and stopped."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from types import TracebackType
from typing import Self

from bench import machine

Command = list[str]
SLOTS = 2000
"""Per replica, so that three replicas take all 5 000 streams at once: this measures the wire, not the queue."""
READY_REQUEST = b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
PR_SET_PDEATHSIG = 1


class NotReady(Exception):
    """A proxy did not start; the message holds what it printed."""


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    title: str
    settings: str
    """What a reader must know to judge the comparison."""
    version: Callable[[], str | None]
    """None: not installed."""
    command: Callable[[Path, int, Sequence[int]], Command]
    """Writes the configuration into a folder; takes the port to listen on and the ports of the replicas."""


def _first_line_of(command: Command) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def _nginx(folder: Path, port: int, replicas: Sequence[int]) -> Command:
    servers = "\n".join(f"    server 127.0.0.1:{replica} max_fails=0;" for replica in replicas)
    paths = "\n".join(
        f"  {name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(f"""
daemon off; {user} worker_processes 1; worker_rlimit_nofile 20000;
pid {folder}/nginx.pid; error_log {folder}/nginx.log warn;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_timeout 600s; keepalive_requests 1000000000; client_body_buffer_size 64k;
{paths}
  upstream ollama {{
    least_conn;
{servers}
    keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 600s;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://ollama; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s; client_max_body_size 64m;
    }}
  }}
}}
""")
    return ["nginx", "-e", f"{folder}/nginx.log", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _haproxy(folder: Path, port: int, replicas: Sequence[int]) -> Command:
    servers = "\n".join(f"  server r{n} 127.0.0.1:{replica}" for n, replica in enumerate(replicas))
    (folder / "haproxy.cfg").write_text(f"""
global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 2s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  option http-keep-alive
  option http-no-delay
  option abortonclose
  http-reuse always
frontend in
  bind 127.0.0.1:{port} backlog 4096
  default_backend ollama
backend ollama
  balance leastconn
  default-server maxconn 9000 pool-max-conn 1024
{servers}
""")
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


def _aiohttp(_folder: Path, port: int, replicas: Sequence[int]) -> Command:
    return [sys.executable, str(Path(__file__).with_name("reference_aiohttp.py")), str(port), *map(str, replicas)]


def _corral(folder: Path, port: int, replicas: Sequence[int]) -> Command:
    listed = "\n".join(
        f'  - {{id: r{n}, url: "http://127.0.0.1:{replica}", slots: {SLOTS}}}' for n, replica in enumerate(replicas)
    )
    config = folder / "corral.yaml"
    config.write_text(f"listen: 127.0.0.1:{port}\nadmin_listen: 127.0.0.1:{free_port()}\nreplicas:\n{listed}\n")
    return [sys.executable, "-m", "corral", "serve", "--config", str(config)]


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(
            "nginx",
            "nginx",
            "one worker, least_conn, HTTP/1.1 with upstream keepalive 1024, proxy_buffering off (streams"
            " and small requests share one path, so one location), access_log off, no limit on requests per connection",
            lambda: _first_line_of(["nginx", "-v"]),
            _nginx,
        ),
        Contender(
            "haproxy",
            "HAProxy",
            "one thread, leastconn, http-keep-alive, http-reuse always, http-no-delay, abortonclose, no log",
            lambda: _first_line_of(["haproxy", "-v"]),
            _haproxy,
        ),
        Contender(
            "aiohttp",
            "aiohttp reference",
            "bench/reference_aiohttp.py: low-level server and ClientSession on uvloop, no connection limit, no"
            " decompression, no access log, chunks relayed as read, least in flight; no queue, no accounting",
            lambda: f"aiohttp {package_version('aiohttp')}, uvloop {package_version('uvloop')}",
            _aiohttp,
        ),
        Contender(
            "corral",
            "Corral",
            f"`corral serve` with its default configuration (all accounting on), three replicas of {SLOTS} slots",
            lambda: f"corral {package_version('corral')}, uvloop {package_version('uvloop')}",
            _corral,
        ),
    )
}


def free_port() -> int:
    """A loopback port that nobody listens on now; the proxies cannot all be told to choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _become_child(core: int | None) -> None:
    """Runs in the child: one core, all the files the system allows, and no life without the driver."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Proxy:
    """One running contender on one core; ``core`` None: on any."""

    def __init__(
        self,
        contender: Contender,
        folder: Path,
        core: int | None,
        replicas: Sequence[int],
        prefix: Command | None = None,
    ) -> None:
        self.contender = contender
        self.port = free_port()
        self.log = folder / f"{contender.name}.out"
        command = contender.command(folder, self.port, replicas)
        if prefix:  # a profiler in place of the bare interpreter
            command = [*prefix, *command[1:]]
        with self.log.open("wb") as log:
            began_s = time.monotonic()
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=lambda: _become_child(core)
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.monotonic() - began_s

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_ready(self, timeout_s: float = 20) -> None:
        deadline_s = time.monotonic() + timeout_s
        last = "nothing listened"
        while time.monotonic() < deadline_s:
            if (status := self.process.poll()) is not None:
                raise NotReady(f"{self.contender.name} ended with status {status}: {self.printed()}")
            last = _ask_version(self.port) or last
            if last.startswith("HTTP/1.1 200"):
                return
            time.sleep(0.002)
        raise NotReady(f"{self.contender.name} was not ready in {timeout_s:g} s ({last}): {self.printed()}")

    def printed(self) -> str:
        return self.log.read_text(errors="replace")[-2000:].strip()

    def stop(self) -> None:
        """Ends it and what it started; whoever does not go in ten seconds is killed."""
        members = machine.process_tree(self.pid) if self.process.poll() is None else []
        if members:
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            for member in members:
                os.kill(member, signal.SIGKILL)
            self.process.wait()


def _ask_version(port: int) -> str | None:
    """The status line that GET /api/version got; None while nobody listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as asking:
            asking.sendall(READY_REQUEST)
            return asking.recv(4096).split(b"\r\n", 1)[0].decode("latin-1")
    except OSError:
        return None
