"""A gateway's side of discovery that only notes what it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from corral.model import Hold, Replica


class Notes:
    """What discovery said last."""

    def __init__(self) -> None:
        self.replicas: tuple[Replica, ...] = ()
        self.holds: dict[str, str] = {}
        self.told = 0

    @property
    def ids(self) -> list[str]:
        return sorted(replica.id for replica in self.replicas)

    @property
    def serving(self) -> list[str]:
        return [id for id in self.ids if id not in self.holds]

    def set_discovered(self, replicas: tuple[Replica, ...]) -> None:
        self.replicas = replicas
        self.told += 1

    def hold_discovered(self, replica_id: str, hold: Hold | None) -> None:
        if hold is None:
            self.holds.pop(replica_id, None)
        else:
            self.holds[replica_id] = hold.reason


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    ends_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends_s, "it did not come"
        await asyncio.sleep(0.005)
