"""What the gateway itself began or ended at the replicas of late: so much of what was read of their memory is past."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

SETTLES_S: Final = 1.0
"""An Ollama that agreed to let go of a model may list it for a moment more."""
_FORGET_S: Final = 10.0
"""A reading of a replica's memory takes half as long at most."""


class Recent:
    """Told by the carrier, asked by the watches and the pages."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.touched: set[str] = set()
        """Ids of replicas where something was begun or ended since the last reading of their memory began: requests,
        loads, unloads. On the path of every request, so nothing but a set."""
        self.leaving: dict[tuple[str, str], float] = {}
        """By replica and model: when the gateway had it let go of that, unless it was sent something for it since."""
        self._clock = clock

    def let_go(self, replica_id: str, model: str) -> None:
        """The replica was told to let go of the model, and agreed or will."""
        now_s = self._clock()
        self.touched.add(replica_id)
        for key in [key for key, at_s in self.leaving.items() if now_s > at_s + _FORGET_S]:
            del self.leaving[key]
        self.leaving[replica_id, model] = now_s

    def wanted(self, replica_id: str, *names: str | None) -> None:
        """It is sent something for the model of these names: whether that is in memory only a reading can tell."""
        for name in names:
            self.leaving.pop((replica_id, name or ""), None)

    def has_left(self, replica_id: str, model: str, read_at_s: float) -> bool:
        """Whether a model that was listed by a reading that began at ``read_at_s`` is as good as gone."""
        at_s = self.leaving.get((replica_id, model))
        if at_s is None:
            return False
        now_s = self._clock()
        return now_s < at_s + SETTLES_S or (read_at_s < at_s and now_s < at_s + _FORGET_S)
