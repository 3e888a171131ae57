"""The measurements of one round, each on a freshly started proxy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.contenders import Proxy
from bench.load import Client, Counters, LoadError, Upstream

Figures = dict[str, float]

STREAMS, LINES_PER_S = 200, 100
CONNECTIONS = 32
WARM_UP_S = 0.5
RAMP_S = 1.0
STEP_US = 1000


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement needs."""

    load: Path
    upstream: Upstream
    proxy_core: int
    load_core: int
    seconds: float
    open_streams: int


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two marks."""

    cpu_s: float
    others_ratio: float
    """Share of the proxy's or the load's core, whichever is greater, that something else used or a hypervisor took."""
    load_core_ratio: float
    before: Counters
    after: Counters


@dataclass(frozen=True, slots=True)
class Relayed:
    """What relaying the streams took."""

    cpu_us: float
    """Per line."""
    lines_per_s: float
    others_pct: float
    load_core_pct: float


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that is read at one mark."""

    proxy_cpu_s: float
    load_cpu_s: float
    counters: Counters
    proxy_core: machine.CoreTimes
    load_core: machine.CoreTimes


def read_all(bench: Bench, proxy: Proxy, client: Client) -> Reading:
    return Reading(
        proxy_cpu_s=machine.cpu_s(proxy.pid),
        load_cpu_s=machine.cpu_s(client.process.pid) + machine.cpu_s(bench.upstream.process.pid),
        counters=client.mark(),
        proxy_core=machine.core_times(bench.proxy_core),
        load_core=machine.core_times(bench.load_core),
    )


def measure_window(bench: Bench, proxy: Proxy, client: Client) -> Window:
    before = read_all(bench, proxy, client)
    time.sleep(bench.seconds)
    after = read_all(bench, proxy, client)
    seconds = after.proxy_core.at_s - before.proxy_core.at_s
    cpu_s = after.proxy_cpu_s - before.proxy_cpu_s
    proxy_core_ratio = after.proxy_core.busy_ratio_since(before.proxy_core)
    load_core_ratio = after.load_core.busy_ratio_since(before.load_core)
    load_ratio = (after.load_cpu_s - before.load_cpu_s) / seconds
    return Window(
        cpu_s=cpu_s,
        others_ratio=max(0.0, proxy_core_ratio - cpu_s / seconds, load_core_ratio - load_ratio),
        load_core_ratio=load_core_ratio,
        before=before.counters,
        after=after.counters,
    )


def streams(bench: Bench, proxy: Proxy) -> Figures:
    """CPU per streamed line where lines come in steps, as a GPU decodes its batch: twenty at a time."""
    relayed = _relay(bench, proxy, STEP_US)
    return {
        "line_cpu_us": relayed.cpu_us,
        "lines_per_s": relayed.lines_per_s,
        "others_pct": relayed.others_pct,
        "line_load_core_pct": relayed.load_core_pct,
    }


def scattered(bench: Bench, proxy: Proxy) -> Figures:
    """CPU per streamed line where each line comes at its own time, which wakes the proxy for almost every one."""
    relayed = _relay(bench, proxy, 0)
    return {"lone_line_cpu_us": relayed.cpu_us, "others_pct": relayed.others_pct}


def _relay(bench: Bench, proxy: Proxy, step_us: int) -> Relayed:
    """Measures while all streams are open; then every stream must end as it should."""
    bench.upstream.pace(step_us)
    lines = int(LINES_PER_S * (RAMP_S + WARM_UP_S + bench.seconds + 3))
    opened = Client.streams(
        bench.load, proxy.port, count=STREAMS, lines=lines, rate=LINES_PER_S, ramp_s=RAMP_S, core=bench.load_core
    )
    with opened as client:
        client.until(lambda seen: seen.open == STREAMS and seen.least_lines >= 3, "all streaming", 20)
        time.sleep(WARM_UP_S)
        window = measure_window(bench, proxy, client)
        if window.after.open != STREAMS:
            raise LoadError(f"{STREAMS - window.after.open} streams ended inside the window")
        ended = client.counters(60)
    if ended.event != "finished" or ended.done != STREAMS:
        raise LoadError(f"{ended.done} of {STREAMS} streams ended well")
    lines_seen = window.after.lines - window.before.lines
    return Relayed(
        cpu_us=window.cpu_s / lines_seen * 1e6,
        lines_per_s=lines_seen / (window.after.at_s - window.before.at_s),
        others_pct=window.others_ratio * 100,
        load_core_pct=window.load_core_ratio * 100,
    )


def small(bench: Bench, proxy: Proxy) -> Figures:
    """CPU per small request, and how many a second, in a closed loop."""
    with Client.small(bench.load, proxy.port, connections=CONNECTIONS, core=bench.load_core) as client:
        client.until(lambda seen: seen.answers >= CONNECTIONS, "answering", 20)
        time.sleep(WARM_UP_S)
        window = measure_window(bench, proxy, client)
    answers = window.after.answers - window.before.answers
    if not answers:
        raise LoadError("no answer in the window")
    return {
        "small_cpu_us": window.cpu_s / answers * 1e6,
        "small_per_s": answers / (window.after.at_s - window.before.at_s),
        "small_p50_us": window.after.p50_us,
        "small_p99_us": window.after.p99_us,
        "others_pct": window.others_ratio * 100,
        "small_load_core_pct": window.load_core_ratio * 100,
    }


def latency(bench: Bench, proxy: Proxy) -> Figures:
    """What the proxy adds to the median of a small request on one connection."""
    direct_us = _median_latency_us(bench, bench.upstream.ports[0])
    through_us = _median_latency_us(bench, proxy.port)
    return {"added_p50_us": through_us - direct_us, "direct_p50_us": direct_us}


def _median_latency_us(bench: Bench, port: int) -> float:
    with Client.small(bench.load, port, connections=1, core=bench.load_core) as client:
        client.until(lambda seen: seen.answers >= 50, "answering", 20)
        time.sleep(WARM_UP_S)
        client.mark()
        time.sleep(bench.seconds / 2)
        return client.mark().p50_us


def memory(bench: Bench, proxy: Proxy) -> Figures:
    """Growth of the resident memory per open stream; then all clients leave at once and no upstream stream may stay."""
    _warm_up_memory(bench, proxy)
    count, before = bench.open_streams, machine.memory_bytes(proxy.pid)
    opened = Client.streams(
        bench.load, proxy.port, count=count, lines=120, rate=1, ramp_s=count / 1000, core=bench.load_core
    )
    with opened as client:
        client.until(lambda seen: seen.open == count and seen.least_lines >= 3, f"{count} streams open", 60)
        grown = machine.memory_bytes(proxy.pid) - before
        if (seen := client.mark()).open != count:
            raise LoadError(f"only {seen.open} of {count} streams were open at once")
        if (held := bench.upstream.state()[0]) != count:
            raise LoadError(f"the replicas held {held} streams, not {count}")
    _await_streams_gone(bench)
    return {"stream_bytes": grown / count, "idle_bytes": before}


def _warm_up_memory(bench: Bench, proxy: Proxy) -> None:
    with Client.streams(
        bench.load, proxy.port, count=100, lines=20, rate=100, ramp_s=0.2, core=bench.load_core
    ) as client:
        client.counters(20)
    with Client.small(bench.load, proxy.port, connections=CONNECTIONS, core=bench.load_core) as client:
        client.until(lambda seen: seen.answers >= 1000, "answering", 20)
    time.sleep(WARM_UP_S)


def _await_streams_gone(bench: Bench, timeout_s: float = 10) -> None:
    deadline_s = time.monotonic() + timeout_s
    while left := bench.upstream.state()[0]:
        if time.monotonic() > deadline_s:
            raise LoadError(f"{left} upstream streams ran on {timeout_s:g} s after their clients had gone")
        time.sleep(0.05)


MEASUREMENTS: dict[str, Callable[[Bench, Proxy], Figures]] = {
    "streams": streams,
    "scattered": scattered,
    "small": small,
    "latency": latency,
    "memory": memory,
}
