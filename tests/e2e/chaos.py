"""Chaos in rounds: seeded clients that leave, replicas that fail, die and freeze, and one that each round spares.

Theory of operation. In a round, trouble strikes some replicas, never all: the one that is spared can serve, and so no
request that has not had a byte may be lost. Between two rounds everything comes to rest, so that no request meets the
troubles of two rounds: only then is *zero lost* the right expectation, and not a probable one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from tests.e2e.fleets import Fleet
from tests.e2e.processes import Emulator
from tests.e2e.shapes import ANTHROPIC, CHAT, EMBED, GENERATE, OPENAI, WHOLE, Shape, Verdict
from tests.e2e.traffic import Answer, Client, Leave

MODELS: Final = ("llama3.2:1b", "llama3.2:3b")
EMBEDDING: Final = "all-minilm"
PROMPTS: Final = tuple((f"question {number}", 3 + number) for number in range(18))
"""Each with the length of its answer in tokens."""
MIX: Final = ((CHAT, 6), (WHOLE, 4), (GENERATE, 3), (OPENAI, 4), (ANTHROPIC, 3), (EMBED, 3))
LEAVING: Final = 0.15
UNKNOWN: Final = 0.005
CLIENTS: Final = 64

ARRIVAL_FAULTS: Final = ("busy", "reset", "nonsense-head", "double-content-length")
RUN_FAULTS: Final = (
    "crash-runner",
    "reset-mid-stream",
    "end-without-done",
    "error-mid-stream",
    "bad-chunk",
    "truncate",
    "data-after-end",
    "oom",
)


@dataclass(slots=True)
class Tally:
    """What came of all requests."""

    asked: int = 0
    left: Counter[Leave] = field(default_factory=Counter)
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    broken_by: Counter[str] = field(default_factory=Counter)
    """Answers that ended in an error or were cut, by shape."""
    not_found: int = 0
    wrong: list[str] = field(default_factory=list)
    """What must never be: lost requests, false ends, foreign text."""
    faults: Counter[str] = field(default_factory=Counter)
    """How often each fault was hit (a replica that is killed takes its count along)."""
    kills: int = 0
    freezes: int = 0


class Chaos:
    """One storm over a fleet whose replicas all have MODELS and EMBEDDING."""

    def __init__(self, fleet: Fleet, seed: int, expected: dict[tuple[bool, str], str]) -> None:
        self.fleet = fleet
        self.tally = Tally()
        self._random = Random(seed)
        self._expected = expected
        self._clients = [(Client(fleet.gateway.port), Random(seed * 1000 + number)) for number in range(CLIENTS)]

    async def round(self, requests: int, *, kills: int, freeze: bool) -> None:
        """``requests`` requests while trouble strikes all but one replica; returns when everything is at rest."""
        health = await self._gathered()
        up = [each for each in self.fleet.emulators if health[each.name] == "up"]
        spared = self._random.choice(up)
        others = [each for each in self.fleet.emulators if each is not spared]
        self._random.shuffle(others)
        others.sort(key=lambda each: each in up)  # so that the dead and frozen ones were serving
        troubles = self._troubles(others, kills, freeze)
        moments = sorted(self._random.randrange(requests // 2) for _ in troubles)
        await self._traffic(requests, dict(zip(moments, troubles, strict=True)))
        for each in self.fleet.emulators:
            await self._calm(each)
        await self.fleet.gateway.until_idle()

    async def _gathered(self) -> dict[str, str]:
        """The health of all once none is down any more, and one at least serves."""

        def is_so(page: dict[str, Any]) -> bool:
            health = {each["health"] for each in page["replicas"]}
            return "up" in health and not health & {"down", "unknown"}

        await self.fleet.gateway.until(is_so, 15, "the return of the replicas")
        return await self.fleet.gateway.health()

    def _troubles(self, victims: Sequence[Emulator], kills: int, freeze: bool) -> list[Callable[[], Awaitable[None]]]:
        """Kills and a freeze for the first victims, one or two kinds of faults for each of the others."""
        left = list(victims)
        troubles: list[Callable[[], Awaitable[None]]] = []
        if freeze:
            frozen = left.pop()
            troubles.append(lambda: self._freeze(frozen))
        for _ in range(kills):
            killed = left.pop()
            troubles.append(lambda killed=killed: self._kill(killed))  # type: ignore[misc]
        for victim in left:
            for _ in range(self._random.randint(1, 2)):
                kind = self._random.choice(self._random.choice((ARRIVAL_FAULTS, RUN_FAULTS)))
                count, after = self._random.randint(2, 12), self._random.randrange(4)
                troubles.append(
                    lambda victim=victim, kind=kind, count=count, after=after: victim.fault(  # type: ignore[misc]
                        kind, count=count, after=after
                    )
                )
        self._random.shuffle(troubles)
        return troubles

    async def _kill(self, victim: Emulator) -> None:
        victim.kill()
        self.tally.kills += 1
        await victim.restart()

    async def _freeze(self, victim: Emulator) -> None:
        """Until the gateway has seen it; what waited there for its first byte is answered by others meanwhile."""
        victim.freeze()
        self.tally.freezes += 1
        try:
            await self.fleet.gateway.until_health(victim.name, "down", within_s=10)
        finally:
            victim.thaw()

    async def _calm(self, emulator: Emulator) -> None:
        for fault in await emulator.faults():
            self.tally.faults[fault["kind"]] += fault["hits"]
        await emulator.clear_faults()

    def close(self) -> None:
        for client, _ in self._clients:
            client.close()

    # -- traffic

    async def _traffic(self, requests: int, troubles: dict[int, Callable[[], Awaitable[None]]]) -> None:
        left = iter(range(requests))
        async with asyncio.TaskGroup() as group:

            async def strike(trouble: Callable[[], Awaitable[None]]) -> None:
                await trouble()

            async def work(client: Client, random: Random) -> None:
                for number in left:
                    if number in troubles:
                        group.create_task(strike(troubles[number]))
                    await self._one(client, random)

            for client, random in self._clients:
                group.create_task(work(client, random))

    async def _one(self, client: Client, random: Random) -> None:
        shape = random.choices([shape for shape, _ in MIX], [weight for _, weight in MIX])[0]
        model = EMBEDDING if shape is EMBED else random.choice(MODELS)
        prompt, tokens = random.choice(PROMPTS)
        leave = random.choice(list(Leave)) if random.random() < LEAVING else None
        unknown = leave is None and random.random() < UNKNOWN
        answer = await client.ask(shape, "nobody-has-this" if unknown else model, prompt, tokens, leave)
        self._count(answer, shape, prompt, leave, unknown)

    def _count(self, answer: Answer, shape: Shape, prompt: str, leave: Leave | None, unknown: bool) -> None:
        tally = self.tally
        tally.asked += 1
        if answer.verdict is Verdict.LEFT:
            assert leave is not None
            tally.left[leave] += 1
            return
        if unknown and answer.status == 404:
            tally.not_found += 1
            return
        tally.verdicts[answer.verdict] += 1
        problem = self._problem(answer, shape, prompt)
        if problem:
            tally.wrong.append(f"{shape.name} {leave}: {problem}: {answer.status} {answer.body[-300:]!r}")
        if answer.verdict in (Verdict.ERROR, Verdict.CUT):
            tally.broken_by[shape.name] += 1

    def _problem(self, answer: Answer, shape: Shape, prompt: str) -> str:
        """What must not be: nothing (but from a client that leaves mid-stream), a false end, somebody else's text."""
        expected = self._expected[shape is EMBED, prompt]
        match answer.verdict:
            case Verdict.LOST | Verdict.REFUSED | Verdict.FALSE_END:
                return answer.verdict.name
            case Verdict.COMPLETE:
                return "" if answer.text == expected else "foreign text"
            case _:
                return "" if expected.startswith(answer.text) else "foreign text"


async def expected_texts(emulator: Emulator) -> dict[tuple[bool, str], str]:
    """What every replica answers to each prompt, asked of one directly; key: whether embeddings, and the prompt."""
    client = Client(emulator.port)
    found = {}
    for prompt, tokens in PROMPTS:
        found[False, prompt] = (await client.ask(CHAT, MODELS[0], prompt, tokens)).text
        found[True, prompt] = (await client.ask(EMBED, EMBEDDING, prompt)).text
    client.close()
    return found
