"""`python -m bench.soak`: half an hour of load while each minute a replica is killed, frozen, reset or talks nonsense.

What must be: no request lost that had not had a byte, no false end, no foreign text; memory and the event loop's lag
stay where they are; and when it is over, everything is as before the first request: leases, descriptors, tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Final

import psutil
from tests.e2e.chaos import EMBEDDING, LEAVING, MIX, MODELS, PROMPTS, expected_texts
from tests.e2e.fleets import Fleet, fleet
from tests.e2e.processes import Emulator, ask
from tests.e2e.shapes import EMBED, Shape, Verdict
from tests.e2e.traffic import Answer, Client, Leave

from bench import machine

FAULTS: Final = ("kill", "freeze", "reset", "nonsense-head")
REPLICAS: Final = 4
FROZEN_S: Final = 15.0
LOOK_S: Final = 5.0
OPTIONS: Final = (
    *(option for model in (*MODELS, EMBEDDING) for option in ("--model", model)),
    *("--speed", "12", "--parallel", "4", "--context-length", "4096"),
)


@dataclass(slots=True)
class Tally:
    asked: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)
    """(seconds since the start, resident bytes)."""
    healthz_s: list[float] = field(default_factory=list)


class Soak:
    """A fleet under an open load: requests come at random moments, whatever became of the last ones."""

    def __init__(self, running: Fleet, texts: dict[tuple[bool, str], str], rate: float, seed: int) -> None:
        self._fleet = running
        self._texts = texts
        self._rate = rate
        self._random = Random(seed)
        self._idle: list[Client] = []
        self.tally = Tally()

    async def run(self, seconds: float, fault_every_s: float) -> None:
        began_s = time.monotonic()
        watching = asyncio.create_task(self._watch(began_s))
        troubling = asyncio.create_task(self._trouble(fault_every_s))
        try:
            async with asyncio.TaskGroup() as group:
                while time.monotonic() - began_s < seconds:
                    await asyncio.sleep(self._random.expovariate(self._rate))
                    group.create_task(self._one())
        finally:
            for task in (watching, troubling):
                task.cancel()
            await asyncio.wait((watching, troubling))
        for each in self._fleet.emulators:
            each.thaw()
            await each.clear_faults()
        for client in self._idle:
            client.close()

    # -- requests

    async def _one(self) -> None:
        random = self._random
        shape = random.choices([shape for shape, _ in MIX], [weight for _, weight in MIX])[0]
        prompt, tokens = random.choice(PROMPTS)
        model = EMBEDDING if shape is EMBED else random.choice(MODELS)
        leave = random.choice(list(Leave)) if random.random() < LEAVING else None
        client = self._idle.pop() if self._idle else Client(self._fleet.gateway.port)
        answer = await client.ask(shape, model, prompt, tokens, leave)
        self._idle.append(client)
        self.tally.asked += 1
        self.tally.verdicts[answer.verdict.name.lower()] += 1
        problem = self._problem(answer, self._texts[shape is EMBED, prompt])
        if problem:
            self.tally.wrong.append(f"{_name(shape)}: {problem}: {answer.status} {answer.body[-200:]!r}")

    @staticmethod
    def _problem(answer: Answer, expected: str) -> str:
        match answer.verdict:
            case Verdict.LEFT:
                return ""
            case Verdict.LOST | Verdict.REFUSED | Verdict.FALSE_END:
                return answer.verdict.name.lower()
            case Verdict.COMPLETE:
                return "" if answer.text == expected else "foreign text"
            case _:
                return "" if expected.startswith(answer.text) else "foreign text"

    # -- troubles, one at a time

    async def _trouble(self, every_s: float) -> None:
        for kind in cycle(FAULTS):
            await asyncio.sleep(every_s * 0.6)
            victim = self._random.choice(self._fleet.emulators)
            self.tally.faults[kind] += 1
            await self._strike(kind, victim)
            await asyncio.sleep(every_s * 0.4)
            await victim.clear_faults()

    async def _strike(self, kind: str, victim: Emulator) -> None:
        if kind == "kill":
            victim.kill()
            await victim.restart()
        elif kind == "freeze":
            victim.freeze()
            await asyncio.sleep(FROZEN_S)
            victim.thaw()
        else:
            await victim.fault(kind, count=20)

    # -- what is watched

    async def _watch(self, began_s: float) -> None:
        process = psutil.Process(self._fleet.gateway.pid)
        while True:
            self.tally.memory.append((time.monotonic() - began_s, process.memory_info().rss))
            asked_s = time.monotonic()
            await ask(self._fleet.gateway.admin_port, "GET", "/healthz")
            self.tally.healthz_s.append(time.monotonic() - asked_s)
            await asyncio.sleep(LOOK_S)


@dataclass(frozen=True, slots=True)
class Rest:
    """What a gateway has when nothing is asked of it."""

    in_flight: int
    queued: int
    descriptors: int
    tasks: int
    clients: int
    busy: int
    """Connections to replicas in use."""

    @classmethod
    async def of(cls, running: Fleet) -> Rest:
        in_flight, queued = await running.gateway.requests()
        page = await metrics(running)
        descriptors = running.gateway.descriptors(running.ports)
        open_now = {kind: int(page[f'corral_held_open{{kind="{kind}"}}']) for kind in KINDS}
        return cls(in_flight, queued, descriptors, *open_now.values())


async def metrics(running: Fleet) -> dict[str, float]:
    """Every sample of the page, by its name with its labels."""
    _, text = await ask(running.gateway.admin_port, "GET", "/metrics")
    found = re.findall(r"^([a-z_]+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


KINDS: Final = ("tasks", "client connections", "busy replica connections")
LAG: Final = "corral_event_loop_lag_seconds"


def lag_p99_s(before: dict[str, float], after: dict[str, float]) -> float:
    """The edge of the bucket below which 99 of 100 looks at the loop were late."""
    edges = {}
    for name, count in after.items():
        if name.startswith(f"{LAG}_bucket"):
            edges[float(re.findall(r'le="([^"]+)"', name)[0])] = count - before.get(name, 0.0)
    whole = edges[float("inf")]
    return next(edge for edge in sorted(edges) if edges[edge] >= 0.99 * whole)


def growth_bytes(memory: Sequence[tuple[float, int]], warm_up_s: float) -> float:
    """Between the first and the last fifth of what follows the warm-up, by medians."""
    warm = [resident for at_s, resident in memory if at_s >= warm_up_s]
    fifth = max(1, len(warm) // 5)
    return statistics.median(warm[-fifth:]) - statistics.median(warm[:fifth])


async def at_rest(running: Fleet, before: Rest) -> Rest:
    """As it was before, or what it is after half a minute."""
    until_s = time.monotonic() + 30
    while (rest := await Rest.of(running)) != before and time.monotonic() < until_s:
        await asyncio.sleep(0.25)
    return rest


async def measure(options: argparse.Namespace, folder: Path) -> int:
    async with fleet(folder, REPLICAS, *OPTIONS, slots=4, more="timeouts: {stall_s: 5}\n") as running:
        texts = await expected_texts(running.emulators[0])
        await asyncio.sleep(2)
        before, page = await Rest.of(running), await metrics(running)
        soak = Soak(running, texts, options.rate, options.seed)
        await soak.run(options.minutes * 60, options.fault_every_s)
        page_after = await metrics(running)
        after = await at_rest(running, before)
        said = running.gateway.said()
    return report(options, soak.tally, (before, after), lag_p99_s(page, page_after), said)


def report(options: argparse.Namespace, tally: Tally, rests: tuple[Rest, Rest], lag_s: float, said: str) -> int:
    grown = growth_bytes(tally.memory, options.warm_up_s)
    bugs = sum(word in said for word in ("Traceback", "bug where", "task_failed"))
    facts = {
        "requests": f"{tally.asked} in {options.minutes:g} min ({dict(tally.verdicts)})",
        "faults": str(dict(tally.faults)),
        "lost, false ends, foreign text": str(len(tally.wrong)),
        "event-loop lag, p99": f"<= {lag_s * 1000:g} ms",
        "/healthz, median": f"{statistics.median(tally.healthz_s) * 1000:.1f} ms",
        "memory growth after the warm-up": f"{grown / 1e6:.2f} MB (from {tally.memory[0][1] / 1e6:.0f} MB at start)",
        "before": str(rests[0]),
        "after": str(rests[1]),
        "bugs in the log": str(bugs),
        **machine.describe(),
    }
    for name, fact in facts.items():
        print(f"- {name}: {fact}")
    for wrong in tally.wrong[:20]:
        print(f"WRONG {wrong}")
    kept = not tally.wrong and rests[0] == rests[1] and not bugs
    return 0 if kept and lag_s < 0.02 and grown < 5e6 else 1


def _name(shape: Shape) -> str:
    return shape.name


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (20)")
    parser.add_argument("--fault-every-s", type=float, default=60.0)
    parser.add_argument("--warm-up-s", type=float, default=300.0, help="memory counts from then on (300)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="corral-soak-") as folder:
        return asyncio.run(measure(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
