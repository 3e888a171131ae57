"""What is in memory where, and how busy everybody is with it: what moves are weighed by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from corral.gateway.schedule.below import units
from corral.gateway.schedule.demand import Arrivals, queues, spread
from corral.gateway.schedule.forecast import Forecast
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.memory import Held

HORIZON_S: Final = 60.0
"""So far ahead moves are weighed."""


class Wanted(NamedTuple):
    """A key that requests wait for, or may soon."""

    key: str
    model: str
    signature: str
    waiting: int
    waited_s: float
    present: int
    """Those that wait, and those in flight."""


def key_of(model: str, held: Held) -> str:
    return f"{model} {held.signature}" if held.signature else model


class Standing:
    """Which keys are where, and how busy the replicas are with them."""

    def __init__(
        self,
        homes: dict[str, list[str]],
        speeds: dict[str, float],
        demands: dict[str, float],
        requests_s: dict[str, float],
        models: dict[tuple[str, str], str],
    ) -> None:
        self.homes = homes
        self.speeds = speeds
        self._demands = demands
        self._requests_s = requests_s
        self._keys = models
        self.queues = queues(spread(demands, homes, speeds), speeds)

    def request_s(self, key: str) -> float:
        """Seconds that one request takes of a busy replica of speed 1."""
        return self._requests_s.get(key, 1.0)

    def is_elsewhere(self, key: str, model: str, home: str) -> bool:
        """Whether another one has it already; a copy that is coming may yet fail."""
        return any(each != home and self._keys.get((each, model)) == key for each in self.homes.get(key, ()))

    def queues_with(self, key: str, home: str, victims: Sequence[str]) -> float:
        """As :attr:`queues`, if the key was there, too, and the victims were not."""
        homes = dict(self.homes)
        for victim in victims:
            gone = self._keys.get((home, victim))
            if gone is not None:
                homes[gone] = [each for each in homes[gone] if each != home]
        homes[key] = [*homes.get(key, []), home]
        return self._queues(homes)

    def queues_without(self, key: str, home: str) -> float:
        return self._queues({**self.homes, key: [each for each in self.homes[key] if each != home]})

    def _queues(self, homes: dict[str, list[str]]) -> float:
        there = {key: each for key, each in homes.items() if each}
        return queues(spread(self._demands, there, self.speeds), self.speeds)


def standing_of(
    members: Sequence[Member[Any]],
    forecast: Forecast,
    arrivals: Mapping[str, Arrivals],
    wanted: Wanted,
    now_s: float,
) -> Standing:
    """What is where, or will be when the changes under way are done, and how busy that makes everybody."""
    homes: dict[str, list[str]] = {}
    speeds: dict[str, float] = {}
    models: dict[tuple[str, str], str] = {}
    for member in units(members):
        memory, swap = member.memory, member.memory.swap
        foreign = 0.0 if member.gpu is None else member.gpu.foreign
        speeds[member.id] = forecast.speed(member) / (1.0 + foreign)
        for model, held in memory.models.items():
            if swap is None or model not in swap.leaving:
                key = key_of(model, held)
                homes.setdefault(key, []).append(member.id)
                models[member.id, model] = key
        if swap is not None:
            homes.setdefault(swap.key, []).append(member.id)
    slots = max((member.slots_of(wanted.model) for member in units(members)), default=1)
    # of what is asked for only that which somebody has counts: other names and options may be as many as clients like
    requests_s = {key: forecast.request_s(key, slots) for key in {*homes, wanted.key}}
    demands = {key: arrivals[key].hertz(now_s) * each_s for key, each_s in requests_s.items() if key in arrivals}
    demands[wanted.key] = demands.get(wanted.key, 0.0) + wanted.waiting * requests_s[wanted.key] / HORIZON_S
    return Standing(homes, speeds, demands, requests_s, models)
