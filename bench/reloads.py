"""`python -m bench.reloads`: the configuration changes again and again under load, and no client may notice.

A real gateway before emulated replicas. Each reload takes replicas away and brings others back, and changes weights,
slots, policy, queue and timeouts; every other one is a SIGHUP, the rest are POST /reload. Meanwhile each short request
comes on a new connection, and long streams run from the beginning to the end.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from tests.e2e.fleets import Fleet
from tests.e2e.processes import Emulator, ask, emulators, gateway, until
from tests.e2e.shapes import GENERATE, STREAMS, Verdict
from tests.e2e.streaming import MODEL, SLOW, WHOLE_AND_SAID, Open, load_everywhere
from tests.e2e.traffic import Client

from bench import machine

REPLICAS: Final = 4
TOKENS_PER_S: Final = 40
LIMIT_S: Final = 600.0
POLICIES: Final = ("weighted-least-load", "round-robin", "random", "least-inflight", "power-of-two", "prefer-loaded")


@dataclass(slots=True)
class Tally:
    """What clients and reloads came to."""

    answers: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    reload_s: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each short request, its connection included."""

    def lost(self) -> dict[str, int]:
        """How many were refused, reset and cut."""
        kinds = {"refused": ("ConnectionRefusedError", "REFUSED"), "reset": ("ConnectionResetError", "LOST")}
        counted = {kind: sum(self.answers[each] for each in names) for kind, names in kinds.items()}
        whole = self.answers["COMPLETE"] + sum(counted.values())
        streams = self.streams.total() - self.streams["whole"]
        return counted | {"cut": self.answers.total() - whole + streams}


def written(path: Path, replicas: Sequence[Emulator], number: int, rng: Random) -> None:
    """The configuration of one reload: at least two of the replicas, and everything else anew."""
    kept = [each for each in replicas if each.name != f"r{number % (len(replicas) + 1)}"]
    listed = "".join(
        f'  - {{id: {each.name}, url: "{each.url}", slots: {rng.randint(12, 16)}, weight: {rng.choice((0.5, 1, 3))}}}\n'
        for each in rng.sample(kept, len(kept))
    )
    path.write_text(
        f"listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n{listed}"
        f"policy: {{name: {POLICIES[number % len(POLICIES)]}}}\n"
        f"queue: {{max_requests: {500 + number % 7}, order: {('fcfs', 'wspt')[number % 2]}}}\n"
        f"timeouts: {{connect_s: {2 + number % 3}, idle_s: {60 + number % 5}, stall_s: {30 + number % 2}}}\n"
        f"placement: {{enabled: {('true', 'false')[number % 3 == 2]}}}\n"
        f"probes: {{ollama_interval_s: {(0.5, 1)[number % 2]}}}\n"
    )


async def reload(running: Fleet, number: int, tally: Tally) -> None:
    """Signal or ask, and wait until it is in force."""
    front, began_s = running.gateway, time.monotonic()
    if number % 2:
        status, page = await ask(front.admin_port, "POST", "/reload")
        assert status == 200, page
        tally.changes += len(page["changes"])
    else:
        before = front.said().count("reloaded changes=")
        front.signal(signal.SIGHUP)
        await until(lambda: front.said().count("reloaded changes=") > before, 10, "the reload")
    tally.reload_s.append(time.monotonic() - began_s)


async def one(port: int, number: int, tally: Tally) -> None:
    """A short request on a connection of its own."""
    client, began_s = Client(port), time.monotonic()
    try:
        answer = await client.ask((*STREAMS, GENERATE)[number % 5], MODEL, tokens=2)
        tally.answers[answer.verdict.name] += 1
        if answer.verdict is Verdict.COMPLETE:
            tally.seconds.append(time.monotonic() - began_s)
    except (OSError, TimeoutError) as error:
        tally.answers[type(error).__name__] += 1
    finally:
        client.close()


async def arrive(port: int, rate: float, tally: Tally, stop: asyncio.Event) -> None:
    """Requests at a fixed rate, whatever became of the last ones."""
    began_s, number = time.monotonic(), 0
    async with asyncio.TaskGroup() as group:
        while not stop.is_set():
            group.create_task(one(port, number, tally))
            number += 1
            await asyncio.sleep(max(0.0, began_s + number / rate - time.monotonic()))


async def follow(stream: Open, tally: Tally) -> None:
    try:
        tally.streams["whole" if await stream.end(LIMIT_S) == WHOLE_AND_SAID else "cut"] += 1
    except (OSError, TimeoutError) as error:
        tally.streams[type(error).__name__] += 1


async def play(args: argparse.Namespace, folder: Path) -> Tally:
    tally, rng = Tally(), Random(args.seed)
    options = (*SLOW[:-4], "--parallel", "16", "--context-length", "16384")
    async with emulators(folder, REPLICAS, *options) as replicas:
        config = folder / "corral.yaml"
        written(config, replicas, REPLICAS, rng)
        async with gateway(config) as front:
            running = Fleet(front, replicas)
            await load_everywhere(running)
            await _play(args, running, tally, rng)
            await front.until_idle()
            assert "Traceback" not in front.said(), front.said()
            assert "bug where" not in front.said(), front.said()
    return tally


async def _play(args: argparse.Namespace, running: Fleet, tally: Tally, rng: Random) -> None:
    port, stop = running.gateway.port, asyncio.Event()
    tokens = int(args.reloads * args.every * TOKENS_PER_S * 1.1)
    shapes = [STREAMS[number % len(STREAMS)] for number in range(args.streams)]
    begun = await asyncio.gather(*(Open(port, shape, tokens).begin() for shape in shapes))
    following = [asyncio.create_task(follow(each, tally)) for each in begun]
    arriving = asyncio.create_task(arrive(port, args.rate, tally, stop))
    for number in range(args.reloads):
        next_s = time.monotonic() + args.every
        written(running.gateway.config, running.emulators, number, rng)
        await reload(running, number, tally)
        await asyncio.sleep(max(0.0, next_s - time.monotonic()))
    ended_early = sum(each.done() for each in following)
    stop.set()
    await arriving
    await asyncio.gather(*following)
    tally.streams["ended before the last reload"] += ended_early


def report(tally: Tally, args: argparse.Namespace) -> str:
    early = tally.streams.pop("ended before the last reload", 0)
    lost = tally.lost()
    reload_ms = sorted(each * 1000 for each in tally.reload_s)
    short_ms = sorted(each * 1000 for each in tally.seconds)
    lines = [
        " · ".join(f"{name}: {what}" for name, what in machine.describe().items()),
        f"{args.reloads} reloads, {tally.changes} changed values in those by POST; "
        f"{statistics.median(reload_ms):.0f} ms each (median), {reload_ms[-1]:.0f} ms at most",
        f"{tally.answers.total()} requests on new connections, {args.rate:g} a second: {dict(tally.answers)}; "
        f"{statistics.median(short_ms):.0f} ms (median), {short_ms[len(short_ms) * 99 // 100]:.0f} ms (p99)",
        f"{args.streams} long streams: {dict(tally.streams)}; ended before the last reload: {early}",
        " · ".join(f"{kind}: {count}" for kind, count in lost.items()),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reloads", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--every", type=float, default=0.3, help="seconds between two reloads")
    parser.add_argument("--rate", type=float, default=100, help="new connections a second")
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corral-reloads-") as folder:
        tally = asyncio.run(play(args, Path(folder)))
    print(report(tally, args))
    return 1 if any(tally.lost().values()) else 0


if __name__ == "__main__":
    sys.exit(main())
