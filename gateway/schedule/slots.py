"""Finds out how many requests a replica serves at once, where nobody said so: from the time they wait inside it."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

_LOOKS: Final = 5
"""So many answers with all slots taken decide."""
_QUICK_S: Final = 0.03
_QUICK_SHARE: Final = 0.05
_LATE_SHARE: Final = 0.1
_AGAIN_S: Final = 600.0
"""A limit that was found is tried again after this long."""
MOST: Final = 64


class SlotFinder:
    """For one model on one replica. Starts at one and dares half as many more while nobody waits in there."""

    __slots__ = ("_limit_s", "_queued", "_served", "slots")

    def __init__(self) -> None:
        self.slots = 1
        self._limit_s: float | None = None
        """When a limit was found."""
        self._queued: deque[float] = deque(maxlen=_LOOKS)
        self._served: deque[float] = deque(maxlen=_LOOKS)

    def observe(self, inflight: int, queued_s: float, service_s: float, now_s: float) -> bool:
        """A request ended that was sent as one of ``inflight``; True: the number of slots changed."""
        if self._limit_s is not None and now_s - self._limit_s > _AGAIN_S:
            self._limit_s = None
        if inflight != self.slots:  # more: it was sent when there were thought to be more
            return False
        self._queued.append(queued_s)
        self._served.append(max(service_s - queued_s, 1e-3))
        if len(self._queued) < _LOOKS:
            return False
        waited_s, served_s = median(self._queued), median(self._served)
        if waited_s > _LATE_SHARE * served_s and self.slots > 1:
            self.slots -= 1
            self._limit_s = now_s
        elif self._limit_s is None and waited_s <= _QUICK_S + _QUICK_SHARE * served_s and self.slots < MOST:
            self.slots = min(MOST, self.slots + max(1, self.slots // 2))
        else:
            return False
        self._queued.clear()
        self._served.clear()
        return True
