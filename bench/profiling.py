"""Where Corral's time goes under the benchmark's two loads, by py-spy (sampling) or cProfile (every call, slower)."""

from __future__ import annotations

import pstats
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench.contenders import CONTENDERS, Proxy
from bench.load import Client
from bench.rounds import CONNECTIONS, LINES_PER_S, RAMP_S, STREAMS, Bench

SAMPLES_PER_S = 400
TOP = 40


def profile(bench: Bench, profiler: str) -> int:
    """Prints one profile for streams and one for small requests; returns an exit code."""
    with tempfile.TemporaryDirectory(prefix="corral-profile-") as name:
        folder = Path(name)
        sampler = _py_spy(folder) if profiler == "py-spy" else None
        if profiler == "py-spy" and sampler is None:
            print("py-spy could not be installed: using cProfile, whose own cost distorts the picture", file=sys.stderr)
        for title, load in (("200 streams of 100 lines/s", _streams), ("small requests, 32 connections", _small)):
            print(f"\n## {title}")
            if sampler:
                _sampled(bench, folder, sampler, load)
            else:
                _traced(bench, folder, load)
    return 0


def _streams(bench: Bench, port: int) -> Client:
    lines = int(LINES_PER_S * (RAMP_S + bench.seconds + 5))
    return Client.streams(
        bench.load, port, count=STREAMS, lines=lines, rate=LINES_PER_S, ramp_s=RAMP_S, core=bench.load_core
    )


def _small(bench: Bench, port: int) -> Client:
    return Client.small(bench.load, port, connections=CONNECTIONS, core=bench.load_core)


def _py_spy(folder: Path) -> str | None:
    if found := shutil.which("py-spy"):
        return found
    venv.create(folder / "venv", with_pip=True)
    done = subprocess.run([folder / "venv/bin/pip", "install", "--quiet", "py-spy"], capture_output=True)
    return str(folder / "venv/bin/py-spy") if done.returncode == 0 else None


def _busy(client: Client) -> None:
    client.until(lambda seen: seen.least_lines >= 20 or seen.answers >= 2000, "under load", 20)


def _sampled(bench: Bench, folder: Path, sampler: str, load: Callable[[Bench, int], Client]) -> None:
    stacks = folder / "stacks.txt"
    with (
        Proxy(CONTENDERS["corral"], folder, bench.proxy_core, bench.upstream.ports) as proxy,
        load(bench, proxy.port) as client,
    ):
        _busy(client)
        command = [
            sampler,
            "record",
            "--native",
            "--pid",
            str(proxy.pid),
            "--duration",
            str(max(1, round(bench.seconds))),
        ]
        command += ["--rate", str(SAMPLES_PER_S), "--format", "raw", "--output", str(stacks)]
        subprocess.run(command, check=True, capture_output=True)
    own, whole, samples = _fold(stacks.read_text())
    print(f"{samples} samples, epoll_pwait partly waiting: share in the function itself, and in it or below")
    for frame, count in own.most_common(TOP):
        print(f"{100 * count / samples:6.1f} %  {100 * whole[frame] / samples:6.1f} %  {frame}")
    print("\nby all that happens below them (without the frames that hold nearly everything)")
    for frame, count in [shared for shared in whole.most_common(2 * TOP) if shared[1] < 0.95 * samples][:TOP]:
        print(f"{100 * own[frame] / samples:6.1f} %  {100 * count / samples:6.1f} %  {frame}")


def _fold(text: str) -> tuple[Counter[str], Counter[str], int]:
    """Own and inclusive sample counts by function, from lines of `outer;…;inner COUNT`; line numbers are dropped."""
    own, whole, samples = Counter[str](), Counter[str](), 0
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_function(frame) for frame in stack.split(";")]
        samples += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    return own, whole, max(1, samples)


def _function(frame: str) -> str:
    name, bracket, place = frame.rpartition(" (")
    return f"{name} ({place.rstrip(')').rpartition(':')[0] or place.rstrip(')')})" if bracket else frame


def _traced(bench: Bench, folder: Path, load: Callable[[Bench, int], Client]) -> None:
    """The profile is written when Corral ends on SIGTERM, so this needs it to end cleanly."""
    written = folder / "corral.prof"
    prefix = [sys.executable, "-m", "cProfile", "-o", str(written)]
    traced = Proxy(CONTENDERS["corral"], folder, bench.proxy_core, bench.upstream.ports, prefix)
    with traced as proxy, load(bench, proxy.port) as client:
        _busy(client)
        time.sleep(bench.seconds)
    pstats.Stats(str(written)).sort_stats("tottime").print_stats(TOP)
