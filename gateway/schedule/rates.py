"""How long a unit of work takes on each replica for each key, learned from what was measured."""

from __future__ import annotations

from math import exp, log
from typing import Final

_FORGET: Final = 0.98
"""What a measurement weighs after the next one: about fifty count."""
_KEY_STEP: Final = 0.02
_PAIR_STEP: Final = 0.1
_LATELY_STEP: Final = 0.2
_FADED: Final = 0.1
_FAR: Final = 1.1
"""A logarithm: what is more than three times off moves an estimate no further than this."""
_PRIOR: Final = 0.5
"""What the expectation weighs beside one measurement, at either of its two points."""


class Line:
    """Seconds against company: a straight line through what was measured lately, and a prior through nothing else.

    The prior is a GPU that works off its streams one after the other: with one more beside it, twice as long.
    """

    __slots__ = ("_prior", "_w", "_wx", "_wxx", "_wxy", "_wy", "lately", "level", "slope", "usual")

    def __init__(self, level: float) -> None:
        self._prior = self.level = level
        self.slope = level
        self.usual: float | None = None
        """How slow it is at full clocks; None: not measured."""
        self.lately = level
        """How slow it is now, with whatever slows it."""
        self._w, self._wx, self._wxx = 2 * _PRIOR, _PRIOR, _PRIOR
        self._wy, self._wxy = 3 * _PRIOR * level, 2 * _PRIOR * level

    def observe(self, x: float, y: float) -> None:
        self._w = self._w * _FORGET + 1.0
        self._wx = self._wx * _FORGET + x
        self._wxx = self._wxx * _FORGET + x * x
        self._wy = self._wy * _FORGET + y
        self._wxy = self._wxy * _FORGET + x * y
        self._fit()

    def _fit(self) -> None:
        spread = self._w * self._wxx - self._wx * self._wx
        mean_x, mean_y = self._wx / self._w, self._wy / self._w
        slope = (self._w * self._wxy - self._wx * self._wy) / spread if spread > 1e-9 else self.slope
        # company never makes anything quicker, and a stream alone is never free
        self.slope = min(max(slope, 0.0), mean_y / (mean_x + 0.2))
        self.level = mean_y - self.slope * mean_x

    def fade(self) -> None:
        """Most of what was measured counts no more: nothing has been measured for long."""
        prior = Line(self._prior)
        for name in ("_w", "_wx", "_wxx", "_wxy", "_wy"):
            setattr(self, name, _FADED * getattr(self, name) + (1.0 - _FADED) * getattr(prior, name))
        self._fit()

    def at(self, x: float) -> float:
        return self.level + self.slope * x


class _Level:
    """A factor that is learned as a logarithm, by shares of the error."""

    __slots__ = ("count", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self.count = 0

    def move(self, error: float, step: float, *, quick: bool) -> float:
        """``quick``: in larger steps at first. What is left of the error."""
        self.count += 1
        moved = _clip(error) * (max(step, 1.0 / (self.count + 1)) if quick else step)
        self.value *= exp(moved)
        return error - moved


def _clip(error: float) -> float:
    return -_FAR if error < -_FAR else _FAR if error > _FAR else error


class Rates:
    """Seconds per unit = (what the key costs) × (how slow the replica is in company) × (what is special to the two).

    So a key that a replica never had is predicted from the others', and a replica without history from its weight.
    """  # noqa: RUF002

    def __init__(self) -> None:
        self._keys: dict[str, _Level] = {}
        self._replicas: dict[str, Line] = {}
        self._pairs: dict[tuple[str, str], _Level] = {}
        self._weights: dict[str, float] = {}

    def set_weights(self, weights: dict[str, float]) -> None:
        """The replicas there are; one whose weight changed is learned anew."""
        for replica_id in [one for one, weight in self._weights.items() if weights.get(one) != weight]:
            self.forget(replica_id)
        self._weights = weights

    def forget(self, replica_id: str) -> None:
        """Another process answers there, or none."""
        self._replicas.pop(replica_id, None)
        for pair in [pair for pair in self._pairs if pair[0] == replica_id]:
            del self._pairs[pair]

    def knows(self, key: str) -> bool:
        """Whether anything was measured of the key, on any replica."""
        return key in self._keys

    def key_s(self, key: str) -> float:
        """Seconds per unit alone on a replica of weight 1; the key must be known."""
        return self._keys[key].value

    def crowd(self, streams: int) -> float:
        """How many times as long a unit takes with so many streams at once, on an average replica."""
        lines = self._replicas.values()
        if not lines:
            return float(streams)
        return sum(1.0 + (streams - 1) * line.slope / line.level for line in lines) / len(lines)

    def speed(self, replica_id: str, weight: float) -> float:
        """How fast the replica is alone, where one of weight 1 is 1; ``weight``: what is thought without history."""
        line = self._replicas.get(replica_id)
        return weight if line is None else 1.0 / line.level

    def line(self, replica_id: str, key: str) -> tuple[float, float]:
        """(seconds per unit alone, what each stream beside it adds); the key must be known."""
        line = self._replicas.get(replica_id)
        if line is None:
            line = self._replicas[replica_id] = Line(1.0 / self._weights.get(replica_id, 1.0))
        scale = self._keys[key].value
        pair = self._pairs.get((replica_id, key))
        if pair is not None:
            scale *= pair.value
        return line.level * scale, line.slope * scale

    def absorbed(self, replica_id: str) -> float:
        """How many times as slow as at full clocks the replica is by what was learned of it; 1: not known."""
        line = self._replicas.get(replica_id)
        return 1.0 if line is None or line.usual is None else line.lately / line.usual

    def observe(self, replica_id: str, key: str, company: float, seconds: float, *, is_throttled: bool = False) -> None:
        """A unit took so long beside so many other streams; ``is_throttled``: on GPUs that said that they were slow."""
        if not seconds > 0.0:
            return
        line = self._replicas.get(replica_id)
        if line is None:
            line = self._replicas[replica_id] = Line(1.0 / self._weights.get(replica_id, 1.0))
        known = self._keys.get(key)
        if known is None:
            known = self._keys[key] = _Level(seconds / line.at(company))
        pair = self._pairs.get((replica_id, key))
        if pair is None:
            pair = self._pairs[replica_id, key] = _Level(1.0)
        # the replica's share of the error first, then the key's; what is left is special to the two: otherwise nothing
        # would be learned of the replica for the keys that it never had
        expected = line.at(company)
        error = log(seconds / (known.value * pair.value * expected))
        line.observe(company, expected * exp(_clip(error)))
        error = known.move(error - log(line.at(company) / expected), _KEY_STEP, quick=True)
        pair.move(error, _PAIR_STEP, quick=False)
        slow = line.level * pair.value
        line.lately += (slow - line.lately) * _LATELY_STEP
        if not is_throttled:
            line.usual = slow if line.usual is None else line.usual + (slow - line.usual) * _KEY_STEP

    def fade(self, replica_id: str) -> None:
        """The replica had nothing to do for long, maybe because it once was slow: what is thought of it moves towards
        what its weight says, so that it is tried again."""
        line = self._replicas.get(replica_id)
        if line is not None:
            line.fade()
        for pair, level in self._pairs.items():
            if pair[0] == replica_id:
                level.value **= 0.5

    def forget_keys(self, kept: set[str]) -> None:
        """Keys come from clients: only these are remembered."""
        for key in [key for key in self._keys if key not in kept]:
            del self._keys[key]
        for pair in [pair for pair in self._pairs if pair[1] not in kept]:
            del self._pairs[pair]
