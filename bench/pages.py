"""`python -m bench.pages`: how long the pages take that the gateway makes itself, beside the same pages of one Ollama.

A real gateway stands in front of four emulators with fifty models each. Each round asks every page of one emulator and
of the gateway, one after the other in an order of the round's own, on connections that stay open. Then the same of the
gateway right after requests that touched the replicas, while one of the four is stopped (SIGSTOP) in the middle of it
all, and, with requests for a model that only this one has in memory, while one answers ``/api/ps`` two seconds late.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any

from bench import machine
from bench.contenders import free_port
from bench.live.play import first_in_line

REPLICAS, MODELS = 4, 50
SLOW_PS = "slow-ps,count=all,seconds=2"
TARGET_MS = 5.0
_START_S = 30.0
_WARM_UP = 20
NAMES = [f"model-{number:02}:7b" for number in range(MODELS)]
SHOW = json.dumps({"model": NAMES[0]}).encode()
PAGES: dict[str, tuple[str, str, bytes | None]] = {
    "GET /": ("GET", "/", None),
    "GET /api/version": ("GET", "/api/version", None),
    "GET /api/tags": ("GET", "/api/tags", None),
    "HEAD /api/tags": ("HEAD", "/api/tags", None),
    "GET /api/tags?corral=1": ("GET", "/api/tags?corral=1", None),
    "GET /api/ps": ("GET", "/api/ps", None),
    "GET /v1/models": ("GET", "/v1/models", None),
    "GET /v1/models/:id": ("GET", f"/v1/models/{NAMES[0]}", None),
    "POST /api/show": ("POST", "/api/show", SHOW),
}
Times = dict[str, list[float]]
"""By page: seconds."""


class Connection:
    """To one server; stays open."""

    def __init__(self, port: int) -> None:
        self._http = HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None) -> float:
        """Seconds until the answer was read whole."""
        began_s = time.perf_counter()
        self._http.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = self._http.getresponse()
        response.read()
        took_s = time.perf_counter() - began_s
        if response.status != 200:
            raise SystemExit(f"{method} {path}: status {response.status}")
        return took_s

    def read(self, path: str) -> Any:
        self._http.request("GET", path)
        return json.loads(self._http.getresponse().read())

    def close(self) -> None:
        self._http.close()


@contextmanager
def process(command: Sequence[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A child that answers on ``port``, and is ended whatever state it is in."""
    child = subprocess.Popen(
        [sys.executable, "-m", "corral", *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        _until_it_answers(port)
        yield child
    finally:
        child.kill()
        child.wait()


def _until_it_answers(port: int) -> None:
    until_s = time.monotonic() + _START_S
    while True:
        try:
            with closing(Connection(port)) as connection:
                connection.ask("GET", "/api/tags")
            return
        except (OSError, SystemExit):
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Box:
    """A gateway in front of replicas of which the first and the last have a model in memory, each another."""

    gateway: Connection
    first: Connection
    last: subprocess.Popen[bytes]

    def touch(self, number: int) -> Callable[[], None]:
        """Makes a request that only has the model loaded, which it is."""
        return partial(_load, self.gateway, number)


def _load(connection: Connection, number: int) -> None:
    connection.ask("POST", "/api/generate", json.dumps({"model": NAMES[number], "stream": False}).encode())


@contextmanager
def box(*, fault: str | None = None) -> Iterator[Box]:
    """The last replica has the fault."""
    models = [option for name in NAMES for option in ("--model", f"{name}=1")]
    with ExitStack() as stack:
        ports = [free_port() for _ in range(REPLICAS + 2)]
        replicas, (port, admin) = ports[:REPLICAS], ports[REPLICAS:]
        children = []
        for at in replicas:
            options = ["--fault", fault] if fault and at == replicas[-1] else []
            command = ["emulate", "--listen", f"127.0.0.1:{at}", "--speed", "50", *models, *options]
            children.append(stack.enter_context(process(command, at)))
        config = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "corral.yaml"
        listed = "".join(f"  - {{id: r{n}, url: 'http://127.0.0.1:{at}', slots: 4}}\n" for n, at in enumerate(replicas))
        config.write_text(f"listen: 127.0.0.1:{port}\nadmin_listen: 127.0.0.1:{admin}\nreplicas:\n{listed}")
        stack.enter_context(process(["serve", "--config", str(config)], port))
        first, last, gateway = (
            stack.enter_context(closing(Connection(at))) for at in (replicas[0], replicas[-1], port)
        )
        _load(first, 0)
        _load(last, 1)
        while len(gateway.read("/api/ps")["models"]) < 2:
            time.sleep(0.1)
        timed(gateway, _WARM_UP, Random(0))
        yield Box(gateway, first, children[-1])


def timed(connection: Connection, rounds: int, random: Random, before: Callable[[], object] = lambda: None) -> Times:
    times: Times = defaultdict(list)
    for _ in range(rounds):
        for page in random.sample(list(PAGES), len(PAGES)):
            before()
            times[page].append(connection.ask(*PAGES[page]))
    return times


def interleaved(gateway: Connection, direct: Connection, rounds: int, random: Random) -> tuple[Times, Times]:
    through: Times = defaultdict(list)
    beside: Times = defaultdict(list)
    for _ in range(rounds):
        for connection, times in random.sample([(gateway, through), (direct, beside)], 2):
            for page, taken in timed(connection, 1, random).items():
                times[page] += taken
    return through, beside


def measure(rounds: int, random: Random) -> dict[str, Times]:
    """By what was going on."""
    found: dict[str, Times] = {}
    with box() as well:
        found["gateway"], found["one Ollama"] = interleaved(well.gateway, well.first, rounds, random)
        found["right after a request"] = timed(well.gateway, rounds, random, well.touch(0))
        os.kill(well.last.pid, signal.SIGSTOP)
        found["one frozen"] = timed(well.gateway, rounds, random, lambda: time.sleep(0.002))
    with box(fault=SLOW_PS) as slow:
        found["after requests to one that is late"] = timed(slow.gateway, rounds, random, slow.touch(1))
    return found


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(found: dict[str, Times]) -> str:
    """p50, p99 and the longest, in ms."""
    columns = ["one Ollama", *(name for name in found if name != "one Ollama")]
    lines = [f"| p50 / p99 / longest, ms | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for page in PAGES:
        cells = []
        for name in columns:
            times = [1000 * each for each in found[name][page]]
            cells.append(f"{quantile(times, 0.5):.2f} / {quantile(times, 0.99):.2f} / {max(times):.1f}")
        lines.append(f"| `{page}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__)
    parser.add_argument("--rounds", type=int, default=500, metavar="N", help="how often each page is asked for (500)")
    parser.add_argument("--seed", type=int, default=1, help="of the order (1)")
    parser.add_argument(
        "--real-time", action="store_true", help="go before whatever else runs on this machine (needs root)"
    )
    options = parser.parse_args(argv)
    with machine.cores_to_ourselves(), first_in_line() if options.real_time else nullcontext():
        found = measure(options.rounds, Random(options.seed))
    print(" · ".join(machine.describe().values()))
    print(table(found))
    slowest = max(quantile(found["gateway"][page], 0.99) for page in PAGES) * 1000
    print(f"\nslowest page's p99 on a quiet box: {slowest:.2f} ms (wanted: ≤ {TARGET_MS:g} ms)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
