"""`python -m bench.scrape`: what one scrape of ``/metrics`` holds the event loop up for, and what counting costs.

The scheduler is a real one with all slots in use and requests waiting; the counters are filled by requests of all
models, classes and the usual outcomes, so that nearly every series there can be is on the page. Between two scrapes
requests go on ending, so that no scrape finds the page of the last one.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle, islice
from random import Random
from statistics import median

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from bench import machine
from bench.live.play import first_in_line
from bench.policies.busy import Busy
from corral.errors import CorralError
from corral.gateway.ended import Attempt, Ended
from corral.gateway.serve.admin import make_admin, make_runner
from corral.gateway.serve.metrics import Metrics
from corral.gateway.serve.metrics_page import MetricsPage
from corral.model import (
    Choice,
    Figures,
    Gpu,
    GpuCondition,
    GpuSample,
    GpuState,
    GpuVendor,
    Order,
    Prediction,
    ProcessState,
    ProcessStatus,
    Snapshot,
)

REPLICAS, MODELS, QUEUED = 16, 50, 200
WANTED_MS = 5.0
REASONS = ("least time", "least load", "only candidate", "in memory")
OUTCOMES = ("ok",) * 16 + ("client_gone", "client_gone", "broken", "error_4xx")
WARM_UP = 20_000
REST_S = 0.005
BETWEEN = 200
"""Requests that end between two scrapes."""


class Box:
    """A gateway, as the admin port sees one, with much to show."""

    version = "1.2.3"

    def __init__(self, replicas: int, models: int, queued: int, seed: int = 0) -> None:
        self.metrics = Metrics()
        self.busy = Busy(replicas, models, seed=seed)
        self.busy.fill(queued)
        self.ids = [f"gpu{number}" for number in range(replicas)]
        self._rng = Random(seed)
        self.metrics.know_models(self.busy.models)
        self._gpus = tuple(_gpu(number) for number in range(replicas))
        self._processes = tuple(
            ProcessStatus(id, ProcessState.RUNNING, "answers", 1, 2, 0, 0.0, False, "log", None) for id in self.ids
        )

    def snapshot(self) -> Snapshot:
        return self.summary()

    def summary(self) -> Snapshot:
        made = self.busy.scheduler.snapshot(self.busy.now_s)
        uuids = [state.gpu.uuid for state in self._gpus]
        return replace(
            made,
            replicas=tuple(replace(one, gpus=(uuid,)) for one, uuid in zip(made.replicas, uuids, strict=True)),
            gpus=self._gpus,
            processes=self._processes,
        )

    def ready(self) -> tuple[bool, str]:
        return any(one.enabled for one in self.busy.scheduler.snapshot(self.busy.now_s).replicas), "ready"

    def explain(self) -> tuple[Choice, ...]:
        return ()

    def set_enabled(self, replica_id: str, enabled: bool) -> None:
        raise CorralError("not here")

    def order(self, order: Order, replica_id: str) -> None:
        raise CorralError("not here")

    def restart_all(self) -> None:
        raise CorralError("not here")

    def ended(self) -> Iterator[Ended]:
        """Requests without end."""
        rng = self._rng
        for model in cycle(self.busy.models):
            replica, outcome = rng.choice(self.ids), rng.choice(OUTCOMES)
            first_s, tokens = rng.random(), rng.randrange(2, 500)
            yield Ended(
                id="r-1",
                at=0.0,
                kind=rng.choice(("chat", "openai_chat")),
                method="POST",
                path="/api/chat",
                outcome=outcome,
                status=200,
                model=model,
                rank=rng.randrange(3),
                replica=replica,
                predicted=Prediction(0.1, 0.2, 1.0, 0.0, 0.0, 1.0, 1.3),
                failed=(Attempt(rng.choice(self.ids), "reset", 0.0, 0.1),) if rng.random() < 0.01 else (),
                queue_s=rng.random(),
                first_byte_s=1.0 + first_s,
                total_s=2.0 + rng.random() * 30,
                lines=tokens,
                figures=Figures(100, tokens, 0.0, 0.0, 0.2, 5.0) if outcome == "ok" else None,
            )

    def count(self, requests: Sequence[Ended]) -> None:
        for one in requests:
            self.metrics.request_done(one)
            self.metrics.decided(one.replica or "", self._rng.choice(REASONS))

    def probe(self) -> None:
        for id in self.ids:
            for part in ("version", "tags", "ps"):
                self.metrics.probe(id, part, self._rng.random(), True)
            self.metrics.load_ended(id, self._rng.choice(self.busy.models), 3.0, ok=True)
            self.metrics.unload_ended(id, self._rng.choice(self.busy.models), ok=True)


def _gpu(number: int) -> GpuState:
    sample = GpuSample(
        f"GPU-{number:036d}",
        0.0,
        0.5,
        6 << 30,
        24 << 30,
        61.0,
        88.0,
        310.5,
        450.0,
        1e6 + number,
        2.5e9,
        2.6e9,
        frozenset(),
        0,
    )
    gpu = Gpu(sample.uuid, number, GpuVendor.NVIDIA, "RTX 4090", 24 << 30)
    return GpuState(gpu, str(number), GpuCondition.OK, "is read", sample, 0.5)


class _Parsed(Collector):
    """The same page as Prometheus' own library holds it."""

    def __init__(self, page: bytes) -> None:
        self._families = [_family(each) for each in text_string_to_metric_families(page.decode())]

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _family(parsed: Metric) -> Metric:
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    family: Metric = kinds[parsed.type](parsed.name, parsed.documentation)
    family.samples = parsed.samples
    return family


def timed(rounds: int, before: Callable[[], object], work: Callable[[], object]) -> list[float]:
    """Milliseconds of each round. Between them the process sleeps: a kernel lets nobody go first all the time."""
    taken = []
    for _ in range(rounds):
        before()
        time.sleep(REST_S)
        began_s = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began_s) * 1e3)
    return taken


def words(name: str, taken: Sequence[float]) -> str:
    ordered = sorted(taken)
    return f"| {name} | {median(ordered):.2f} | {ordered[int(len(ordered) * 0.99)]:.2f} | {ordered[-1]:.2f} |"


async def over_http(box: Box, rounds: int, before: Callable[[], object]) -> list[float]:
    """The admin port and its client in one loop: more than the loop of a gateway has to do."""
    runner = make_runner(make_admin(box, box.metrics))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    taken = []
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
            for _ in range(rounds):
                before()
                await asyncio.sleep(REST_S)
                began_s = time.perf_counter()
                async with session.get(url) as answer:
                    await answer.read()
                taken.append((time.perf_counter() - began_s) * 1e3)
                assert answer.status == 200
    finally:
        await runner.cleanup()
    return taken


def request_cost_us(box: Box, requests: Sequence[Ended], rounds: int) -> float:
    """The best round: whatever else runs can only make it longer."""
    best = float("inf")
    for _ in range(rounds):
        began_s = time.perf_counter()
        for one in requests:
            box.metrics.request_done(one)
        best = min(best, time.perf_counter() - began_s)
    return best / len(requests) * 1e6


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scrape", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="requests counted before the first scrape")
    parser.add_argument(
        "--real-time", action="store_true", help="go before whatever else runs on this machine (needs root)"
    )
    options = parser.parse_args(argv)
    with machine.cores_to_ourselves(), first_in_line() if options.real_time else nullcontext():
        box = Box(REPLICAS, MODELS, QUEUED)
        stream = box.ended()
        box.count([*islice(stream, options.warm_up)])
        box.probe()
        page = MetricsPage(box.metrics, box.version)
        between = [[*islice(stream, BETWEEN)] for _ in range(options.rounds)]
        gc.collect()
        gc.freeze()
        cold = timed(1, lambda: None, lambda: page.render(box.summary(), ready=True))
        todo = iter(cycle(between))
        go_on: Callable[[], None] = lambda: box.count(next(todo))  # noqa: E731
        print(_size(page.render(box.summary(), ready=True)))
        print("| one scrape, ms | median | p99 | worst |\n| --- | ---: | ---: | ---: |")
        whole = timed(options.rounds, go_on, lambda: page.render(box.summary(), ready=box.ready()[0]))
        print(words("all that the event loop does for it: two summaries and the page", whole))
        print(words("of these the summaries", timed(options.rounds, go_on, lambda: (box.summary(), box.ready()))))
        snapshot = box.summary()
        print(words("of these the page", timed(options.rounds, go_on, lambda: page.render(snapshot, ready=True))))
        print(words("the first page", cold))
        print(words("over HTTP, its client on the same loop", asyncio.run(over_http(box, options.rounds, go_on))))
        registry = CollectorRegistry()
        registry.register(_Parsed(page.render(snapshot, ready=True)))
        few = max(3, options.rounds // 30)
        print(
            words("the same samples written by prometheus_client", timed(few, go_on, lambda: generate_latest(registry)))
        )
        print(f"\ncounting one request: {request_cost_us(box, [*islice(stream, 2_000)], 20):.2f} µs")
        met = median(whole) <= WANTED_MS
        print(f"wanted: ≤ {WANTED_MS:g} ms a scrape: {'met' if met else 'missed'}")
    return 0


def _size(page: bytes) -> str:
    samples = sum(not line.startswith(b"#") for line in page.splitlines())
    return f"{REPLICAS} replicas and GPUs, {MODELS} models, 3 classes: {samples:,} samples, {len(page) / 1e6:.2f} MB\n"


if __name__ == "__main__":
    sys.exit(main())
