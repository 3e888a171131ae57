"""`python -m bench.probe`: what reading the GPUs costs, in CPU time and in how late the event loop gets to its work."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import uvloop
from bench import machine

from corral.emulator.nvml import machines, state
from corral.emulator.nvml.build import build
from corral.model import GpuMiss, GpuSample, GpuXid
from corral.probes.nvml import NvmlSource
from corral.probes.reader import GpuReader

MAX_CPU_PCT = 1.0
MAX_DELAY_MS = 5.0
STAMP = struct.Struct("d")
PINGER = """
import os, struct, sys, time
while True:
    time.sleep(0.001)
    os.write(1, struct.pack("d", time.monotonic()))
"""
"""Another process, so that it does not wait for this one's interpreter lock. Both read the same clock."""


@dataclass(slots=True)
class Rounds:
    """A feed that notes when the rounds were."""

    seconds: list[float] = field(default_factory=list)
    """In the driver, of each round."""
    spans: list[tuple[float, float]] = field(default_factory=list)
    """From the first reading to the end."""
    misses: int = 0
    _began_s: float | None = None

    def gpu_sampled(self, sample: GpuSample) -> None:
        if self._began_s is None:
            self._began_s = sample.taken_at_s

    def gpu_missed(self, miss: GpuMiss) -> None:
        self.misses += 1

    def gpu_reported(self, xid: GpuXid) -> None: ...

    def gpus_read(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if self._began_s is not None:
            self.spans.append((self._began_s, time.monotonic()))
        self._began_s = None


@dataclass(frozen=True, slots=True)
class Ping:
    """One message to the event loop."""

    sent_s: float
    late_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured."""

    gpus: int
    rounds: int
    misses: int
    cpu_pct: float
    idle_cpu_pct: float
    round_us: float
    round_max_us: float
    idle_delays_ms: tuple[float, float]
    """Of the event loop, with nothing else to do: p99 and the longest."""
    delays_ms: tuple[float, float]
    """The same while the GPUs are read, of all messages."""
    round_delays_ms: tuple[float, float]
    """The same, of the messages that came during a round."""


@asynccontextmanager
async def reading(source: Callable[[], NvmlSource] | None, interval_s: float) -> AsyncIterator[Rounds]:
    """Reads the GPUs meanwhile; without a source nothing is read."""
    rounds = Rounds()
    if source is None:
        yield rounds
        return
    reader = GpuReader([source()], rounds, time.monotonic, interval_s)
    try:
        survey = await reader.start()
        if not survey.gpus:
            raise SystemExit(f"bench.probe: no GPU was found. {' '.join(survey.problems)}")
        await asyncio.sleep(0.2)  # the first round asks for what does not change, too
        rounds.seconds.clear()
        rounds.spans.clear()
        yield rounds
    finally:
        await reader.close()


async def cpu_share(source: Callable[[], NvmlSource] | None, seconds: float, interval_s: float) -> tuple[float, Rounds]:
    """Share of a core that this process took, all its threads counted."""
    async with reading(source, interval_s) as rounds:
        began_s, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - cpu_s) / (time.monotonic() - began_s), rounds


async def delays(
    source: Callable[[], NvmlSource] | None, seconds: float, interval_s: float
) -> tuple[list[Ping], Rounds]:
    """How late the event loop took up each of about a thousand messages a second."""
    pings: list[Ping] = []
    loop = asyncio.get_running_loop()
    async with reading(source, interval_s) as rounds:
        with _pinger() as pipe:
            loop.add_reader(pipe, lambda: pings.extend(_received(pipe)))
            await asyncio.sleep(seconds)
            loop.remove_reader(pipe)
        return pings, rounds


def _received(pipe: int) -> Iterator[Ping]:
    now_s = time.monotonic()
    stamps = os.read(pipe, 512 * STAMP.size)
    for (sent_s,) in STAMP.iter_unpack(stamps[: len(stamps) // STAMP.size * STAMP.size]):
        yield Ping(sent_s, now_s - sent_s)


@contextmanager
def _pinger() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", PINGER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.fileno()
        finally:
            process.kill()


def summary(pings: Sequence[Ping]) -> tuple[float, float]:
    """p99 and the longest delay, in ms."""
    late = sorted(ping.late_s * 1e3 for ping in pings)
    return (late[int(len(late) * 0.99)], late[-1]) if late else (0.0, 0.0)


def during(pings: Sequence[Ping], spans: Sequence[tuple[float, float]]) -> list[Ping]:
    """Those that were sent, or waited for, in one of ``spans``."""
    return [
        ping for ping in pings if any(ping.sent_s < end and ping.sent_s + ping.late_s > begin for begin, end in spans)
    ]


def measure(source: Callable[[], NvmlSource], gpus: int, seconds: float, interval_s: float) -> Figures:
    """Nothing and reading in turn: first the CPU time, then the delays, as listening for these costs CPU time itself."""
    idle_cpu, _ = uvloop.run(cpu_share(None, seconds, interval_s))
    cpu, rounds = uvloop.run(cpu_share(source, seconds, interval_s))
    idle_pings, _ = uvloop.run(delays(None, seconds, interval_s))
    pings, while_pinged = uvloop.run(delays(source, seconds, interval_s))
    if not rounds.seconds or not while_pinged.spans:
        raise SystemExit("bench.probe: no round was finished")
    return Figures(
        gpus=gpus,
        rounds=len(rounds.seconds) + len(while_pinged.seconds),
        misses=rounds.misses + while_pinged.misses,
        cpu_pct=(cpu - idle_cpu) * 100,
        idle_cpu_pct=idle_cpu * 100,
        round_us=median(rounds.seconds) * 1e6,
        round_max_us=max(rounds.seconds) * 1e6,
        idle_delays_ms=summary(idle_pings),
        delays_ms=summary(pings),
        round_delays_ms=summary(during(pings, while_pinged.spans)),
    )


def render(figures: Figures, interval_s: float) -> str:
    cpu_met, delay_met = figures.cpu_pct < MAX_CPU_PCT, figures.round_delays_ms[1] <= MAX_DELAY_MS
    rows = [
        ("what", "measured", "target"),
        ("---", "---", "---"),
        (
            "CPU, beyond an idle process's",
            f"{figures.cpu_pct:.2f} % of a core",
            f"< {MAX_CPU_PCT:g} %: {_said(cpu_met)}",
        ),
        (
            "longest delay of the event loop in a round",
            f"{figures.round_delays_ms[1]:.2f} ms",
            f"≤ {MAX_DELAY_MS:g} ms: {_said(delay_met)}",
        ),
        ("p99 in a round", f"{figures.round_delays_ms[0]:.2f} ms", ""),
        ("p99 / longest delay, all the time", "{:.2f} / {:.2f} ms".format(*figures.delays_ms), ""),
        ("p99 / longest delay without reading", "{:.2f} / {:.2f} ms".format(*figures.idle_delays_ms), ""),
        (
            f"one round over {figures.gpus} GPUs in the driver, median / longest",
            f"{figures.round_us:.0f} / {figures.round_max_us:.0f} µs",
            "",
        ),
        ("rounds / failed readings", f"{figures.rounds} / {figures.misses}", ""),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\nEvery {interval_s:g} s one round."


def _said(met: bool) -> str:
    return "met" if met else "**missed**"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.probe", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="length of each of the four runs (default 20)")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of the emulated machine (default 8)")
    parser.add_argument("--interval", type=float, default=1, metavar="S", help="seconds between rounds (default 1)")
    parser.add_argument("--real", action="store_true", help="read this machine's own NVIDIA GPUs")
    parser.add_argument("--quick", action="store_true", help="at once, whatever else runs: a check, not a figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def prepared(options: argparse.Namespace, folder: Path) -> Callable[[], NvmlSource]:
    """The source to measure, anew at each call."""
    if options.real:
        return NvmlSource
    library = str(build(folder / "library"))
    state.write_machine(folder / "state", *machines.nvswitch(options.gpus))
    for number in range(options.gpus):
        state.update(folder / "state", f"gpu{number}", processes="4711:8589934592 4712:1073741824", utilisation=87)
    os.environ[state.VARIABLE] = str(folder / "state")
    return lambda: NvmlSource(library, sysfs=folder / "sys")


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    alone = nullcontext() if options.quick else machine.cores_to_ourselves()
    with alone, tempfile.TemporaryDirectory(prefix="corral-bench-") as folder:
        source = prepared(options, Path(folder))
        gpus = len([gpu for gpu in source().survey().gpus if gpu.parent_uuid is None])
        figures = measure(source, gpus, options.seconds, options.interval)
    facts = machine.describe() | {
        "driver": "NVIDIA's own"
        if options.real
        else "the stand-in library, which reads its files anew at every call: what that takes is counted above"
    }
    print(f"`{shlex.join(['python', '-m', 'bench.probe', *argv])}`, {time.strftime('%Y-%m-%d')}\n")
    print(render(figures, options.interval) + "\n")
    print("\n".join(f"- {name}: {fact}" for name, fact in facts.items()))
    if options.json:
        content = {"figures": {name: getattr(figures, name) for name in Figures.__slots__}, "machine": facts}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
