"""One live run: fresh emulators, one front before them, the requests of one seed, and what it took of the machine."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from urllib.request import urlopen

import uvloop

from bench import machine
from bench.contenders import Proxy
from bench.live.client import Load, send
from bench.live.fronts import Front
from bench.live.replica import Orders, ReplicaProcess
from corral.errors import OperatorError
from corral.laboratory.campaign import Scenario, stage
from corral.laboratory.spread import percentile
from corral.laboratory.types import Box, Run


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run took of the machine: where its cores are busy, times are theirs and not the emulated machines'."""

    emulators_cores: float
    """CPU seconds a second."""
    front_cores: float
    client_cores: float
    busy_ratio: float
    """Of all cores, by whomever."""
    late_p99_s: float
    """How late requests were sent, in seconds of the emulated machines."""


@dataclass(frozen=True, slots=True)
class Played:
    run: Run
    usage: Usage


class Meter:
    """CPU time of the driver, of its emulators and of the front, from its making on."""

    def __init__(self, emulators: Iterable[int], front: int) -> None:
        self._emulators, self._front = list(emulators), front
        self._cores = sorted(os.sched_getaffinity(0))
        self._began_s, self._before, self._times = time.monotonic(), self._cpu_s(), self._core_times()

    def usage(self, late_s: Iterable[float]) -> Usage:
        took_s = time.monotonic() - self._began_s
        emulators, front, client = (
            (now - before) / took_s for now, before in zip(self._cpu_s(), self._before, strict=True)
        )
        pairs = zip(self._core_times(), self._times, strict=True)
        busy_ratio = fmean(now.busy_ratio_since(before) for now, before in pairs)
        return Usage(emulators, front, client, busy_ratio, _p99(late_s))

    def _cpu_s(self) -> tuple[float, float, float]:
        return sum(map(machine.cpu_s, self._emulators)), machine.cpu_s(self._front), time.process_time()

    def _core_times(self) -> list[machine.CoreTimes]:
        return [machine.core_times(core) for core in self._cores]


@contextmanager
def first_in_line() -> Iterator[None]:
    """This process, and whatever it starts meanwhile, before all others of the machine: about one core in all."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        raise OperatorError("--real-time: not allowed; run it as root, or with CAP_SYS_NICE") from None
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def play(scenario: Scenario, front: Front, seed: int, speed: float, patience_s: float) -> Played:
    """Everything that it starts has ended when it returns or raises. ``patience_s``: see :func:`client.send`."""
    set_up = stage(scenario, seed)
    with ExitStack() as stack:
        replicas = [
            _replica(stack, Orders(scenario.box, n, speed, front.is_fast)) for n in range(len(set_up.box.replicas))
        ]
        for replica in replicas:
            replica.wait_ready()
        ports = [replica.port for replica in replicas]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corral-live-")))
        proxy = stack.enter_context(Proxy(front.make(set_up.box, speed), folder, None, ports))
        meter = Meter([replica.process.pid for replica in replicas], proxy.pid)
        gc.collect()
        gc.freeze()
        load = uvloop.run(send(set_up.scaled.arrivals, proxy.port, speed, patience_s))
        gc.unfreeze()
        return Played(_run(set_up.box, front, seed, load, _loads(ports)), meter.usage(load.late_s))


def _replica(stack: ExitStack, orders: Orders) -> ReplicaProcess:
    replica = ReplicaProcess(orders)
    stack.callback(replica.stop)
    return replica


def _loads(ports: Iterable[int]) -> int:
    """Models that the emulators loaded."""
    total = 0
    for port in ports:
        with urlopen(f"http://127.0.0.1:{port}/emulator/stats", timeout=10) as answer:
            total += json.load(answer)["loads"]
    return total


def _run(box: Box, front: Front, seed: int, load: Load, loads: int) -> Run:
    """What the laboratory says of its runs; what only it can see stays empty."""
    end_s = max((outcome.end_s for outcome in load.outcomes if outcome.end_s is not None), default=0.0)
    return Run(box, front.name, seed, load.outcomes, end_s, {}, loads, 0, 0)


def _p99(values: Iterable[float]) -> float:
    return percentile(sorted(values), 0.99)
