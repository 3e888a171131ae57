"""`python -m bench.probe`: what reading eight GPUs every second costs, in CPU time and in lateness of the event loop.

The GPUs are the stand-in's for NVIDIA's library, called as the real one is. It reads its files anew at each call, so
its own work is part of every figure; a real driver's calls cost other amounts, mostly in the kernel. CPU time is that
of all threads of this process, less that of the same process idle. Lateness is how much later than asked for a sleep
of 1 ms ended, on uvloop.

What else the machine does shows in the lateness. So runs with and without reading take turns; and of the runs with it,
the sleeps that met a round of readings are told apart from those in as long a time half an interval later.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import ctypes
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from corral.emulator.nvml import machines, state
from corral.emulator.nvml.build import build
from corral.model import GpuMiss, GpuSample, GpuXid
from corral.probes.nvml import NvmlSource
from corral.probes.reader import GpuReader

CPU_TARGET_RATIO = 0.01
LATENESS_TARGET_S = 0.005
TICK_S = 0.001
CLOCK = time.monotonic


@dataclass(slots=True)
class Feed:
    """Counts what it is fed, and keeps when each round was."""

    samples: int = 0
    misses: int = 0
    rounds: list[tuple[float, float]] = field(default_factory=list)
    """From the beginning of the first reading to the end of the last."""
    _began_s: float | None = None

    def gpu_sampled(self, sample: GpuSample) -> None:
        self.samples += 1
        self._began_s = self._began_s or sample.taken_at_s

    def gpu_missed(self, miss: GpuMiss) -> None:
        self.misses += 1

    def gpu_reported(self, xid: GpuXid) -> None: ...

    def gpus_read(self, seconds: float) -> None:
        if self._began_s is not None:
            self.rounds.append((self._began_s, CLOCK()))
        self._began_s = None


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement, with or without reading."""

    cpu_ratio: float
    """Of one core, in the process's threads together."""
    sleeps: Sequence[tuple[float, float]]
    """When each was to end, and how late it did; empty where not measured, since that itself takes CPU time."""
    feed: Feed

    def late_s(self, quantile: float) -> float:
        late = sorted(late_s for _, late_s in self.sleeps)
        return late[min(len(late) - 1, int(quantile * len(late)))]

    def largest_s(self, after_s: float) -> float:
        """The largest lateness at so long after the rounds; 0: while they were."""
        rounds = [(began_s + after_s, ended_s + after_s) for began_s, ended_s in self.feed.rounds]
        late = [late_s for due_s, late_s in self.sleeps if _meets(rounds, due_s - TICK_S, due_s + late_s)]
        return max(late, default=0.0)


def _meets(rounds: Sequence[tuple[float, float]], from_s: float, to_s: float) -> bool:
    """Whether a time overlaps the last round that began before its end."""
    at = bisect.bisect_left(rounds, (to_s, to_s))
    return at > 0 and rounds[at - 1][1] > from_s


@dataclass(frozen=True, slots=True)
class Results:
    """Runs in turns: without reading, with reading."""

    cpu: Sequence[tuple[Run, Run]]
    lateness: Sequence[tuple[Run, Run]]
    call_s: float
    """One call of the stand-in, by ctypes alone."""
    empty_call_s: float
    """The same of a function that reads no file."""


def measure(seconds: float, runs: int, interval_s: float) -> Results:
    """Raises :class:`corral.errors.OperatorError` where there is no C compiler."""
    with tempfile.TemporaryDirectory(prefix="corral-probe-") as name:
        folder = Path(name) / "state"
        library = str(build(Path(name)))
        _write_gpus(folder)
        os.environ[state.VARIABLE] = str(folder)

        def pair(*, ticks: bool) -> tuple[Run, Run]:
            idle = uvloop.run(_run(None, seconds, interval_s, ticks))
            return idle, uvloop.run(_run(NvmlSource(library, folder), seconds, interval_s, ticks))

        cpu = [pair(ticks=False) for _ in range(runs)]
        lateness = [pair(ticks=True) for _ in range(runs)]
        return Results(cpu, lateness, *_call_costs(library))


def _write_gpus(folder: Path) -> None:
    """Eight that are at work."""
    state.write_machine(folder, *machines.eight_mixed())
    for number in range(8):
        values: dict[str, state.Value] = {
            "utilisation": 97,
            "temperature": 71,
            "memory_used": 20 << 30,
            "processes": "4001:9000 4002:9000",
        }
        state.update(folder, f"gpu{number}", **values)


async def _run(source: NvmlSource | None, seconds: float, interval_s: float, ticks: bool) -> Run:
    """The first round, which also reads what hardly changes, is part of it; the search for GPUs is not."""
    async with _reading(source, interval_s) as feed:
        began_s, began_cpu_s = CLOCK(), time.process_time()
        late = await _lateness(seconds) if ticks else []
        if not ticks:
            await asyncio.sleep(seconds)
        took_s, cpu_s = CLOCK() - began_s, time.process_time() - began_cpu_s
    return Run(cpu_s / took_s, late, feed)


@asynccontextmanager
async def _reading(source: NvmlSource | None, interval_s: float) -> Any:
    feed = Feed()
    reader = GpuReader(() if source is None else (source,), feed, CLOCK, interval_s)
    await reader.start()
    yield feed
    await reader.close()


async def _lateness(seconds: float) -> list[tuple[float, float]]:
    sleeps = []
    end_s = CLOCK() + seconds
    while (due_s := CLOCK() + TICK_S) < end_s:
        await asyncio.sleep(TICK_S)
        sleeps.append((due_s, CLOCK() - due_s))
    return sleeps


def _call_costs(library: str, calls: int = 5000) -> tuple[float, float]:
    """Seconds for a call that reads a sensor, and for one that reads nothing."""
    nvml, handle, out = ctypes.CDLL(library), ctypes.c_void_p(), ctypes.c_uint()
    nvml.nvmlInit_v2()
    nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle))
    costs = []
    for function, line in (
        (nvml.nvmlDeviceGetTemperature, (handle, 0, ctypes.byref(out))),
        (nvml.nvmlErrorString, (0,)),
    ):
        began_s = CLOCK()
        for _ in range(calls):
            function(*line)
        costs.append((CLOCK() - began_s) / calls)
    nvml.nvmlShutdown()
    return costs[0], costs[1]


def report(results: Results, interval_s: float) -> str:
    """The figures and whether they meet their targets, as Markdown."""
    added = [reading.cpu_ratio - idle.cpu_ratio for idle, reading in results.cpu]
    feeds = [reading.feed for _, reading in results.cpu]
    rounds = [ended_s - began_s for feed in feeds for began_s, ended_s in feed.rounds]
    largest = [(idle.late_s(1), reading.late_s(1)) for idle, reading in results.lateness]
    often = [(idle.late_s(0.99), reading.late_s(0.99)) for idle, reading in results.lateness]
    worse = [reading - idle for idle, reading in largest]
    near = [(reading.largest_s(interval_s / 2), reading.largest_s(0)) for _, reading in results.lateness]
    lines = [
        f"Eight GPUs (stand-in), read every {interval_s:g} s; {len(added)} runs each, in turns",
        "",
        "| figure | best run | median | worst run | target | met |",
        "|---|---:|---:|---:|---:|---|",
        _row("CPU, added to an idle process, % of a core", added, 100, CPU_TARGET_RATIO),
        _row("CPU of one round, ms", [ratio * interval_s for ratio in added], 1e3),
        _row("one round, ms", rounds, 1e3),
        _row("largest lateness, idle, ms", [idle for idle, _ in largest], 1e3),
        _row("largest lateness, reading, ms", [reading for _, reading in largest], 1e3),
        _row("largest lateness, reading less idle, ms", worse, 1e3, LATENESS_TARGET_S),
        _row("largest lateness in a round, ms", [during for _, during in near], 1e3),
        _row("largest lateness between rounds, as long, ms", [between for between, _ in near], 1e3),
        _row("in a round less between, ms", [during - between for between, during in near], 1e3, LATENESS_TARGET_S),
        _row("p99 lateness, idle, ms", [idle for idle, _ in often], 1e3),
        _row("p99 lateness, reading, ms", [reading for _, reading in often], 1e3),
        "",
        f"{len(rounds)} rounds, {sum(feed.samples for feed in feeds)} readings, "
        f"{sum(feed.misses for feed in feeds)} of them failed. A call of the stand-in takes "
        f"{results.call_s * 1e6:.1f} µs, one that reads no file {results.empty_call_s * 1e6:.1f} µs: "
        "the difference is the stand-in's own work.",
    ]
    return "\n".join(lines)


def _row(title: str, values: Sequence[float], scale: float, target: float | None = None) -> str:
    cells = " | ".join(f"{value * scale:.3f}" for value in (min(values), median(values), max(values)))
    if target is None:
        return f"| {title} | {cells} | | |"
    met = "yes" if max(values) < target else "in the median" if median(values) < target else "no"
    return f"| {title} | {cells} | < {target * scale:g} | {met} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.probe", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="each run's length")
    parser.add_argument("--runs", type=int, default=3, help="of each kind")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds from one reading of a GPU to the next")
    options = parser.parse_args(arguments)
    print(report(measure(options.seconds, options.runs, options.interval), options.interval))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
