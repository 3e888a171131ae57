"""A rival in front of the replicas: sends each request when it arrives, and hears of deaths and returns at once."""

from __future__ import annotations

from collections import Counter, deque
from typing import Protocol

from corral.errors import Fault
from corral.laboratory.replica import VirtualReplica
from corral.laboratory.requests import Request, Stopwatch
from corral.laboratory.types import Box, Router, Sight

ATTEMPTS = 2
"""A request that was lost before its first token is routed once more."""


class Sender(Protocol):
    """The part of the world that it needs."""

    box: Box
    replicas: dict[str, VirtualReplica]

    @property
    def now_s(self) -> float: ...

    def send(self, request: Request, replica_id: str) -> bool: ...

    def close(self, request: Request, *, ok: bool) -> None: ...


class Pushing:
    """Keeps the counts that a router may see. What it holds waits in one queue, first come first served."""

    def __init__(self, world: Sender, router: Router) -> None:
        self.name = router.name
        self.stopwatch = Stopwatch()
        self.decisions = 0
        self._world = world
        self._router = router
        self._held: deque[Request] = deque()
        self._inflight: Counter[str] = Counter()
        self._inflight_model: Counter[tuple[str, str]] = Counter()

    def start(self) -> None:
        return

    def arrived(self, request: Request) -> None:
        if self._held or not self._place(request):
            self._held.append(request)

    def first_token(self, request: Request) -> None:
        arrival, replica_id, now_s = request.arrival, _home(request), self._world.now_s
        self.stopwatch.time(lambda: self._router.began(arrival, replica_id, now_s))

    def ended(self, request: Request) -> None:
        self._ended(request, ok=True)
        self._world.close(request, ok=True)
        self._drain()

    def broke(self, request: Request) -> None:
        self._ended(request, ok=False)
        self._world.close(request, ok=False)
        self._drain()

    def failed(self, request: Request, fault: Fault) -> None:
        self._ended(request, ok=False)
        # an answer, if only 503, is passed on to the client
        if fault is Fault.BUSY or request.outcome.attempts >= ATTEMPTS:
            self._world.close(request, ok=False)
        elif not self._place(request):
            self._held.appendleft(request)
        self._drain()

    def revived(self, replica_id: str) -> None:
        self._drain()

    def _drain(self) -> None:
        while self._held and self._place(self._held[0]):
            self._held.popleft()

    def _place(self, request: Request) -> bool:
        """Ask the router; False: it, or that nobody is up, lets the request wait."""
        sights = self._sights(request.arrival.model)
        if not sights:
            return False
        arrival, now_s = request.arrival, self._world.now_s
        replica_id = self.stopwatch.time(lambda: self._router.choose(arrival, sights, now_s))
        self.decisions += 1
        if replica_id is None:
            return False
        self._inflight[replica_id] += 1
        self._inflight_model[replica_id, arrival.model] += 1
        if not self._world.send(request, replica_id):
            raise LookupError(f"{self.name} chose {replica_id!r}, which is not up")
        return True

    def _sights(self, model: str) -> list[Sight]:
        box, replicas = self._world.box, self._world.replicas.values()
        return [self._sight(each, model) for each in replicas if each.is_alive and box.serves(each.box, model)]

    def _sight(self, replica: VirtualReplica, model: str) -> Sight:
        box = replica.box
        return Sight(
            id=box.id,
            weight=box.weight,
            slots=box.slots,
            inflight=self._inflight[box.id],
            inflight_model=self._inflight_model[box.id, model],
            loaded=replica.loaded(),
        )

    def _ended(self, request: Request, *, ok: bool) -> None:
        arrival, replica_id, now_s = request.arrival, _home(request), self._world.now_s
        self._inflight[replica_id] -= 1
        self._inflight_model[replica_id, arrival.model] -= 1
        self.stopwatch.time(lambda: self._router.ended(arrival, replica_id, now_s, ok=ok))


def _home(request: Request) -> str:
    replica_id = request.outcome.replica_id
    assert replica_id is not None
    return replica_id
