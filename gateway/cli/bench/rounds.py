"""How requests are sent: so many streams at a time, in rounds that take turns between the addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from corral.errors import OperatorError
from corral.gateway.cli.bench.client import Clock, Question, Target
from corral.gateway.cli.bench.record import Ending, Record

ROUNDS: Final = 3
EACH: Final = 6
LEAST: Final = 12
"""Requests of each stream, and in all, where nothing else is asked for."""
FLOODER: Final = "corral-bench-flood"
LIGHT: Final = "corral-bench-light"
"""Two API keys, which make two tenants."""
_PAUSE_S: Final = 0.1
"""Between two requests of the one who asks now and then."""
_LEAD_S: Final = 0.5
"""How long the flood lasts before somebody else asks."""
_MOST_WAIT_S: Final = 10.0
"""Longer nobody waits, whatever a refusal asks for."""
_RETRY_S: Final = 1.0
"""Where a refusal does not say."""
_LEAST_WAIT_S: Final = 0.05
_HOPELESS: Final = 5

Ask = Callable[[], Awaitable[Record]]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is asked of an address at one concurrency: in requests, or in seconds; neither: some of each stream."""

    requests: int | None = None
    seconds: float | None = None

    def part(self, concurrency: int) -> Amount:
        """Of one round; every stream asks at least once."""
        if self.seconds is not None:
            return Amount(None, self.seconds / ROUNDS)
        requests = self.requests or max(LEAST, EACH * concurrency)
        return Amount(max(concurrency, -(-requests // ROUNDS)))


@dataclass(slots=True)
class Round:
    """What a round gave."""

    records: list[Record]
    took_s: float


@dataclass(slots=True)
class Level:
    """Everything of one address at one concurrency."""

    target: str
    concurrency: int
    rounds: list[Round] = field(default_factory=list)


async def streams(ask: Ask, concurrency: int, amount: Amount, clock: Clock) -> Round:
    """``concurrency`` streams at a time; each asks again when it has its answer.

    When the time is over nobody asks anew, and what is under way is waited for. Ends early where only errors come.
    """
    began_s = clock()
    until_s = None if amount.seconds is None else began_s + amount.seconds
    supply = _Supply(amount.requests, until_s, clock)
    records: list[Record] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(_stream(ask, records, supply, concurrency))
    return Round(records, clock() - began_s)


class _Supply:
    """How much may still be asked."""

    def __init__(self, requests: int | None, until_s: float | None, clock: Clock) -> None:
        self.clock = clock
        self._requests = requests
        self._until_s = until_s

    def take(self) -> bool:
        if self._until_s is not None and self.clock() >= self._until_s:
            return False
        if self._requests is not None:
            self._requests -= 1
            return self._requests >= 0
        return True


async def _stream(ask: Ask, records: list[Record], supply: _Supply, concurrency: int) -> None:
    while supply.take():
        sent_s = supply.clock()
        try:
            record = await ask()
        except asyncio.CancelledError:
            records.append(Record(Ending.UNFINISHED, sent_s, supply.clock()))
            raise
        records.append(record)
        if _is_hopeless(records, concurrency):
            return
        if record.ending is Ending.REFUSED:
            wait_s = _RETRY_S if record.retry_after_s is None else record.retry_after_s
            await asyncio.sleep(min(_MOST_WAIT_S, max(_LEAST_WAIT_S, wait_s)))


def _is_hopeless(records: Sequence[Record], concurrency: int) -> bool:
    return len(records) >= max(_HOPELESS, concurrency) and all(one.ending is Ending.ERROR for one in records)


def hopeless(target: str, rounds: Sequence[Round]) -> None:
    """Raises OperatorError where a round came to nothing: there is no use in going on."""
    for each in rounds:
        whys = [one.why for one in each.records if one.ending is Ending.ERROR]
        if whys and len(whys) == len(each.records):
            raise OperatorError(f"{target} answers none of the requests ({max(set(whys), key=whys.count)})")


async def measure(
    targets: Sequence[Target],
    question: Question,
    concurrencies: Sequence[int],
    amount: Amount,
    rng: Random,
    clock: Clock,
    told: Callable[[str], None],
) -> list[Level]:
    """Every address at every concurrency, in turns. Raises OperatorError where one answers nothing."""
    levels = []
    for concurrency in concurrencies:
        here = [Level(target.name, concurrency) for target in targets]
        for number in range(ROUNDS):
            turns = list(zip(targets, here, strict=True))
            for target, level in turns if number % 2 == 0 else reversed(turns):  # nobody is always first
                told(f"{concurrency} at a time, round {number + 1} of {ROUNDS}: {target.url}")
                ask = _asking(target, question, rng)
                level.rounds.append(await streams(ask, concurrency, amount.part(concurrency), clock))
                hopeless(target.url, level.rounds)
        levels += here
    return levels


def _asking(target: Target, question: Question, rng: Random, tenant: str | None = None) -> Ask:
    return lambda: target.ask(question, rng, tenant)


@dataclass(slots=True)
class Fairness:
    """One who asks now and then, alone and beside one who floods."""

    target: str
    alone: list[Record]
    flooded: list[Record]
    flood: list[Record]
    flood_streams: int


async def fairness(
    target: Target, question: Question, flood_streams: int, count: int, rng: Random, clock: Clock
) -> Fairness:
    """Two tenants by two API keys."""
    light, flooder = _asking(target, question, rng, LIGHT), _asking(target, question, rng, FLOODER)
    alone, flood = await _now_and_then(light, count), list[Record]()
    async with asyncio.TaskGroup() as group:
        supply = _Supply(None, None, clock)
        tasks = [group.create_task(_stream(flooder, flood, supply, flood_streams)) for _ in range(flood_streams)]
        await asyncio.sleep(_LEAD_S)
        flooded = await _now_and_then(light, count)
        for task in tasks:
            task.cancel()
    return Fairness(target.name, alone, flooded, flood, flood_streams)


async def _now_and_then(ask: Ask, count: int) -> list[Record]:
    records = []
    for _ in range(count):
        records.append(await ask())
        await asyncio.sleep(_PAUSE_S)
    return records
