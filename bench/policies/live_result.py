"""What a live run through the gateway came to, beside what the laboratory says of the same contenders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from corral.errors import OperatorError

FILE = "live.json"
WITHIN = 0.25
"""How far a live ratio may be from the laboratory's."""


@dataclass(frozen=True, slots=True)
class Live:
    """Mean seconds until the first token by contender; both hold the same contenders."""

    ours: str
    live_s: Mapping[str, float]
    lab_s: Mapping[str, float]

    @property
    def is_same_order(self) -> bool:
        return sorted(self.live_s, key=self.live_s.__getitem__) == sorted(self.lab_s, key=self.lab_s.__getitem__)

    @property
    def farthest(self) -> float:
        """Of all ratios to ours the one that differs most, as a share of the laboratory's."""
        rivals = [name for name in self.live_s if name != self.ours]
        return max(
            (abs(self._ratio(self.live_s, name) / self._ratio(self.lab_s, name) - 1) for name in rivals), default=0.0
        )

    def _ratio(self, times_s: Mapping[str, float], name: str) -> float:
        return times_s[name] / times_s[self.ours]


def saved(path: Path) -> Live | None:
    """``{"ours": NAME, "live_s": {NAME: seconds, …}, "lab_s": {NAME: seconds, …}}``; None where there is no file."""
    if not path.exists():
        return None
    try:
        said = json.loads(path.read_text())
        live = Live(said["ours"], said["live_s"], said["lab_s"])
        if live.live_s.keys() != live.lab_s.keys() or live.ours not in live.live_s or min(live.lab_s.values()) <= 0:
            raise ValueError("live_s and lab_s are not of the same contenders")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OperatorError(f"{path} is not what a live run writes: {error!r}") from error
    return live
