"""How much of each model is asked for lately, and how it spreads over the replicas that hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import Final

_WINDOW_S: Final = 60.0
_YOUNG_S: Final = 5.0
_GONE: Final = 1e-3
_FULL: Final = 0.9


class Arrivals:
    """How often requests for one key come, over about a minute."""

    __slots__ = ("_at_s", "_since_s", "_sum")

    def __init__(self, now_s: float) -> None:
        self._since_s = self._at_s = now_s
        self._sum = 0.0

    def arrived(self, now_s: float) -> None:
        self._fade(now_s)
        self._sum += 1.0

    def hertz(self, now_s: float) -> float:
        self._fade(now_s)
        age_s = max(_YOUNG_S, now_s - self._since_s)
        return self._sum / (_WINDOW_S * (1.0 - exp(-age_s / _WINDOW_S)))

    def is_gone(self, now_s: float) -> bool:
        self._fade(now_s)
        return self._sum < _GONE

    def _fade(self, now_s: float) -> None:
        passed_s = now_s - self._at_s
        if passed_s > 0:
            self._at_s = now_s
            self._sum *= exp(-passed_s / _WINDOW_S)


def spread(
    demands: Mapping[str, float], homes: Mapping[str, Sequence[str]], speeds: Mapping[str, float]
) -> dict[str, float]:
    """How busy each replica is where every key's work (seconds of a replica of speed 1, per second) goes to the least
    busy of its homes, as the dispatcher sends it. Those with the fewest homes are spread first: they have no choice.
    """
    used = dict.fromkeys(speeds, 0.0)
    for key in sorted(homes, key=lambda key: len(homes[key])):
        left = demands.get(key, 0.0)
        if left > 0.0:
            _pour(left, sorted(homes[key], key=used.__getitem__), used, speeds)
    return used


def _pour(work: float, homes: Sequence[str], used: dict[str, float], speeds: Mapping[str, float]) -> None:
    """Fill up the least busy ones to a common level, as water does."""
    speed = 0.0
    level = 0.0
    for number, home in enumerate(homes):
        speed += speeds[home]
        level = (work + sum(used[each] * speeds[each] for each in homes[: number + 1])) / speed
        if number + 1 == len(homes) or level <= used[homes[number + 1]]:
            break
    for home in homes:
        used[home] = max(used[home], level)


def queues(used: Mapping[str, float], speeds: Mapping[str, float]) -> float:
    """Seconds of work that wait on average, on all replicas together; where more comes than is done, what comes to wait
    for each second."""
    return sum(speeds[home] * _queue(share) for home, share in used.items())


def _queue(share: float) -> float:
    if share < _FULL:
        return share * share / (1.0 - share)
    edge = _FULL * _FULL / (1.0 - _FULL)
    return edge + (share - _FULL) * 100.0
