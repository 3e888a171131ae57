"""Notices the replica that has much more to do than the others for long, although they could help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from corral.gateway.schedule.member import Member

ABOVE: Final = 1.5
"""Times the mean."""
FOR_S: Final = 30.0
_BELOW: Final = 1.2
_LEAST_S: Final = 1.0
"""Less than this of work is nothing to share."""


class Balance:
    """Load is seconds of work that was sent and is not done, as predicted."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}
        """By replica: since when it is above."""

    def observe(self, members: Sequence[Member[Any]], now_s: float) -> list[Member[Any]]:
        """Some times a second: marks those that have been above for long enough, and gives them."""
        loads = {member.id: member.load_s for member in members}
        mean_s = sum(loads.values()) / len(loads) if loads else 0.0
        for replica_id in [each for each in self._since_s if each not in loads]:
            del self._since_s[replica_id]
        overloaded = []
        for member in members:
            load_s = loads[member.id]
            limit = _BELOW if member.is_overloaded else ABOVE
            if len(members) < 2 or load_s < _LEAST_S or load_s <= limit * mean_s:
                self._since_s.pop(member.id, None)
                member.is_overloaded = False
                continue
            since_s = self._since_s.setdefault(member.id, now_s)
            member.is_overloaded = now_s - since_s >= FOR_S
            if member.is_overloaded:
                overloaded.append(member)
        return overloaded
