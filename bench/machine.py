"""What the machine is, and what its processes and cores have used so far, read from /proc."""

from __future__ import annotations

import fcntl
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """What one core did up to a moment, in seconds."""

    at_s: float
    idle_s: float

    def busy_ratio_since(self, earlier: CoreTimes) -> float:
        """Share of the time in which the core was not idle; what a hypervisor took counts as busy.

        Taken from the idle time, which the kernel clocks: its busy times are sampled at ticks and miss short bursts.
        """
        return 1 - (self.idle_s - earlier.idle_s) / (self.at_s - earlier.at_s)


def process_tree(pid: int) -> list[int]:
    """The process and all its descendants that are alive."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        try:
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
            found.append(current)
        except OSError:
            continue  # it ended while we looked
    return found


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process tree, in seconds (resolution: one clock tick, usually 10 ms)."""
    ticks = 0
    for member in process_tree(pid):
        # The second field, the name in brackets, may itself hold spaces and brackets.
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def memory_bytes(pid: int) -> int:
    """Proportional set size of a process tree: resident pages, shared ones divided among their sharers."""
    total = 0
    for member in process_tree(pid):
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def core_times(core: int) -> CoreTimes:
    for line in Path("/proc/stat").read_text().splitlines():
        name, *rest = line.split()
        if name == f"cpu{core}":
            idle, waiting = int(rest[3]), int(rest[4])
            return CoreTimes(time.monotonic(), (idle + waiting) / TICKS_PER_S)
    raise LookupError(f"core {core} is not in /proc/stat")


def two_cores() -> tuple[int, int]:
    """One core for the proxy, another for the load."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise SystemExit("bench.wire needs two cores: one for the proxy, one for its load; this process may use one")
    return allowed[0], allowed[1]


@contextmanager
def cores_to_ourselves() -> Iterator[None]:
    """Waits until no other benchmark of this user runs: two at once would measure each other."""
    with (Path(tempfile.gettempdir()) / f"corral-bench-{os.getuid()}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another benchmark is running; waiting for its end", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def describe() -> dict[str, str]:
    """The machine in the words a reader needs to compare figures."""
    information: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        information.setdefault(key.strip(), value.strip())
    virtual = ", virtual machine" if "hypervisor" in information.get("flags", "").split() else ""
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "CPU": f"{information.get('model name', 'unknown')}, {os.cpu_count()} cores{virtual}",
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }
