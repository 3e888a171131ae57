"""How long people wait for the command line: ``python -m bench.startup [--rounds N]``.

Each figure is of real child processes, one after the other, in turn; the table has the median, the least and the
greatest. ``python`` alone is there to judge the machine by. A measurement during which others used more than a tenth
of the machine is repeated, up to ``--tries`` times; what share they had in those that count is in the table, too.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, NamedTuple

from bench.machine import cpu_s

CORRAL: Final = [sys.executable, "-m", "corral"]
LIMIT_S: Final = 30.0


class Took(NamedTuple):
    """Seconds by the clock, and of the processor."""

    wall_s: float
    cpu_s: float


Measure = Callable[[], Took]
QUIET_RATIO: Final = 0.1


def undisturbed(measure: Measure, tries: int) -> tuple[Took, float]:
    """The one of so many with the least of others beside it, and their share of the machine; the first quiet one."""
    best: tuple[Took, float] | None = None
    for _ in range(tries):
        began_s, busy_s = time.perf_counter(), machine_busy_s()
        took = measure()
        wall_s = time.perf_counter() - began_s
        others = max(0.0, (machine_busy_s() - busy_s - took.cpu_s) / (wall_s * (os.cpu_count() or 1)))
        if best is None or others < best[1]:
            best = took, others
        if others <= QUIET_RATIO:
            break
        time.sleep(1.0)
    assert best is not None
    return best


def machine_busy_s() -> float:
    """Of all its cores together: all but idle time and waiting for disks."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def took(line: list[str], **env: str) -> Took:
    """From the start of a command to its end."""
    began_s, used_s = time.perf_counter(), children_cpu_s()
    subprocess.run(line, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=LIMIT_S)
    return Took(time.perf_counter() - began_s, children_cpu_s() - used_s)


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Ollama(BaseHTTPRequestHandler):
    """As much of one as a gateway asks of a replica."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        page = {"/api/version": {"version": "0.32.15"}, "/api/tags": {"models": []}, "/api/ps": {"models": []}}
        body = json.dumps(page.get(self.path, {})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A gateway that was killed leaves broken connections."""


@contextlib.contextmanager
def ollama() -> Iterator[int]:
    """Its port."""
    server = Server(("127.0.0.1", 0), Ollama)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request("GET", "/api/version")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start(folder: Path, replica: int, is_so: Callable[[int], bool]) -> Took:
    """From the start of ``corral serve`` until something is so of its port."""
    port = free_port()
    config, log = folder / "corral.yaml", folder / "log"
    listed = f'replicas: [{{id: a, url: "http://127.0.0.1:{replica}"}}]'
    config.write_text(f"listen: 127.0.0.1:{port}\nadmin_listen: 127.0.0.1:0\n{listed}\n")
    began_s = time.perf_counter()
    line = [*CORRAL, "serve", "--config", str(config)]
    with log.open("wb") as said, subprocess.Popen(line, stdout=said, stderr=said) as gateway:
        try:
            while not is_so(port):
                if gateway.poll() is not None or time.perf_counter() - began_s > LIMIT_S:
                    raise SystemExit(f"corral serve did not start:\n{log.read_text()}")
                time.sleep(0.001)
            return Took(time.perf_counter() - began_s, cpu_s(gateway.pid))
        finally:
            gateway.kill()


def measures(folder: Path, replica: int) -> dict[str, Measure]:
    line = "corral dr"
    asked = {"_CORRAL_COMPLETE": "bash_complete", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    return {
        "`python -c pass`": lambda: took([sys.executable, "-c", "pass"]),
        "`corral --help`": lambda: took([*CORRAL, "--help"]),
        "`corral --version`": lambda: took([*CORRAL, "--version"]),
        "`corral serve --help`": lambda: took([*CORRAL, "serve", "--help"]),
        "`corral status`, no gateway": lambda: took([*CORRAL, "status", "--admin", "127.0.0.1:1"]),
        "a Tab for a command's name": lambda: took(CORRAL, **asked),
        "`corral serve` to its port accepting": lambda: start(folder, replica, accepts),
        "`corral serve` to its first answer": lambda: start(folder, replica, answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tries", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ollama() as replica:
        known = measures(Path(folder), replica)
        for measure in known.values():
            measure()  # fills the caches of the disk
        found: dict[str, list[tuple[Took, float]]] = {name: [] for name in known}
        for _ in range(asked.rounds):
            for name, measure in known.items():
                found[name].append(undisturbed(measure, asked.tries))
    print("| ms | median | least | greatest | processor, median | others, median |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, figures in found.items():
        walls = [took.wall_s for took, _ in figures]
        cpu = statistics.median(took.cpu_s for took, _ in figures)
        shown = [f"{value * 1000:.0f}" for value in (statistics.median(walls), min(walls), max(walls), cpu)]
        others = statistics.median(others for _, others in figures)
        print(f"| {name} | {' | '.join(shown)} | {others:.0%} |")


if __name__ == "__main__":
    main()
