"""`python -m bench.listeners`: what it costs to tell of a request: metrics, access log, traces, load report.

One whole request (head, routing, queue, lease, answer, record) is driven through the gateway's own objects in one
process, without sockets: what the kernel does with bytes would only add noise. Variants take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any, Final

import uvloop

from corral.gateway.carrier import Carrier
from corral.gateway.config import Config, build_policy, parse_config
from corral.gateway.gateway import Gateway
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.serve.metrics import Metrics
from corral.gateway.wire.client import ClientConnection
from corral.gateway.wire.outbox import Outbox
from corral.gateway.wire.pool import Pool
from corral.gateway.wire.upstream import UpstreamConnection
from corral.model import InstalledModel, OllamaSample, ProbeResult

MODEL: Final = "llama3.1:8b"
BODY: Final = json.dumps(
    {"model": MODEL, "messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": False}
).encode()
HEAD: Final = (
    b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1:11434\r\nAccept: application/json\r\nUser-Agent: bench\r\n"
    b"Content-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
)
PARENT: Final = b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-%b\r\n"
DONE: Final = json.dumps(
    {
        "model": MODEL,
        "message": {"role": "assistant", "content": "It scatters."},
        "done": True,
        "total_duration": 5_000_000,
        "load_duration": 500_000,
        "prompt_eval_count": 26,
        "prompt_eval_duration": 1_000_000,
        "eval_count": 4,
        "eval_duration": 2_000_000,
    }
).encode()
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(DONE), DONE)
TURN: Final = 50
"""Requests in one turn of the loop."""


class Nowhere(asyncio.Transport):
    """Counts answers and forgets them."""

    answers = 0

    def fileno(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == "socket" else ("127.0.0.1", 1)

    def write(self, data: Any) -> None:
        self.answers += data.startswith(b"HTTP/1.1 200 ")

    def writelines(self, list_of_data: object) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class Box:
    """A gateway in front of one replica, and one client of it."""

    def __init__(self, config: Config) -> None:
        loop = asyncio.get_running_loop()
        limits = QueueLimits(max_requests=512, max_wait_s=300.0)
        scheduler: Any = Scheduler(build_policy(config, None), config.policy.name, limits, Random(1))
        self.metrics = Metrics()
        carrier = Carrier(scheduler, self.metrics, loop.time)
        pool = Pool(loop, Outbox(loop), 1.0)
        self.gateway = Gateway(config, carrier, self.metrics, pool, loop)
        replica = config.replicas[0].to_replica()
        carrier.apply(scheduler.set_placement(False, loop.time()))
        carrier.apply(scheduler.set_replicas([replica], loop.time()))
        carrier.apply(scheduler.probed(replica.id, ProbeResult.ANSWERED, loop.time()))
        sample = OllamaSample(replica.id, loop.time(), "0.32.15", (InstalledModel(MODEL, "d" * 64),), ())
        self.gateway.sampled(sample)
        self.upstream = UpstreamConnection(pool, (replica.host, replica.port))
        self.upstream.connection_made(Nowhere())
        pool.take = lambda replica: self.upstream  # type: ignore[method-assign]
        pool.put = lambda connection: None  # type: ignore[method-assign]
        self.client = ClientConnection(self.gateway)
        self.answered = Nowhere()
        self.client.connection_made(self.answered)

    def ask(self, request: bytes) -> None:
        self.client.data_received(request)
        self.upstream.data_received(ANSWER)


Variant = tuple[str, str, bytes]
"""Its name, what it adds to the configuration, and a header line of its requests."""


def variants(folder: Path, port: int) -> list[Variant]:
    traced = f"tracing: {{endpoint: 'http://127.0.0.1:{port}'}}\n"
    return [
        ("metrics and the ring of the last requests, as always", "", b""),
        ("access log, text", f"access_log: {{format: text, path: {folder}/text.log}}\n", b""),
        ("access log, JSON", f"access_log: {{format: json, path: {folder}/json.log}}\n", b""),
        ("load report", "load_report: always\n", b""),
        ("traces, client's trace is not kept", traced, PARENT % b"00"),
        ("traces, sample_ratio 0.01", traced.replace("}", ", sample_ratio: 0.01}"), b""),
        ("traces, all kept", traced, b""),
    ]


class Accepting(BaseHTTPRequestHandler):
    """Says 200 to everything."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def collect() -> int:
    """Be the collector, until standard input closes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Accepting)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    return 0


@contextmanager
def collector() -> Iterator[int]:
    """One in another process, so that its work is not counted."""
    command = [sys.executable, "-m", "bench.listeners", "--collect"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        yield int(child.stdout.readline())
        child.stdin.close()


async def timed(box: Box, request: bytes, count: int) -> float:
    """CPU of the loop's thread, in µs per request."""
    before, began_s = box.answered.answers, time.thread_time()
    for number in range(count):
        box.ask(request)
        if number % TURN == TURN - 1:
            await asyncio.sleep(0)
    took_s = time.thread_time() - began_s
    box.gateway.outbox.flush()
    if box.answered.answers - before != count:
        raise SystemExit("requests were not answered: these are no figures")
    return took_s / count * 1e6


def with_tellers(box: Box, config: Config) -> Callable[[], Any]:
    """Everybody who tells of requests; a gateway from before they were there has none."""
    with suppress(ImportError):
        from corral.gateway.serve.lately import Ring

        ring: Any = Ring()
        box.gateway.listeners.append(ring.add)
    with suppress(ImportError):
        from corral.gateway.serve.tellers import Tellers

        tellers = Tellers(box.gateway, config, {}, Random(1))
        tellers.use(config)
        return tellers.close
    return lambda: asyncio.sleep(0)


class Contender:
    """One variant, ready to be asked."""

    def __init__(self, variant: Variant) -> None:
        self.name, more, line = variant
        base = "replicas:\n  - {id: a, url: 'http://127.0.0.1:1', slots: 4}\nplacement: {enabled: false}\n"
        config = parse_config(base + more, "bench")
        self.box = Box(config)
        self.close = with_tellers(self.box, config)
        self.request = HEAD % (line, len(BODY)) + BODY
        self.figures: list[float] = []
        self.everything = 0.0
        """CPU of all threads, the last words included, in µs per request."""

    async def slice(self, count: int) -> float:
        return await timed(self.box, self.request, count)


async def measure(names: list[Variant], rounds: int, count: int) -> list[Contender]:
    """Many short slices in turn, so that what else the machine does falls on all alike; then each alone."""
    contenders = [Contender(variant) for variant in names]
    for contender in contenders:
        await contender.slice(count)
    for _ in range(rounds):
        for contender in contenders:
            contender.figures.append(await contender.slice(count))
            await asyncio.sleep(0)
    for contender in contenders:
        await contender.close()
    for variant, contender in zip(names, contenders, strict=True):
        alone = Contender(variant)
        began_s = time.process_time()
        for _ in range(rounds):
            await alone.slice(count)
            await asyncio.sleep(0.001)
        await alone.close()
        contender.everything = (time.process_time() - began_s) / (rounds * count) * 1e6
    return contenders


def report(contenders: list[Contender]) -> None:
    usual = contenders[0]
    print("| CPU per request, µs | loop's thread | added to it: median (quartiles) | all threads |")
    print("|---|---:|---:|---:|")
    for each in contenders:
        added = [figure - other for figure, other in zip(each.figures, usual.figures, strict=True)]
        low, middle, high = quantiles(added, n=4)
        shown = "" if each is usual else f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"
        print(f"| {each.name} | {median(each.figures):.1f} | {shown} | {each.everything:.1f} |")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.listeners", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--requests", type=int, default=200, help="in each round, of each variant")
    parser.add_argument("--plain", action="store_true", help="only what is always on: runs on older versions, too")
    parser.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.collect:
        return collect()
    with tempfile.TemporaryDirectory(prefix="corral-listeners-") as folder, collector() as port:
        names = variants(Path(folder), port)[: 1 if given.plain else None]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report(runner.run(measure(names, given.rounds, given.requests)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
