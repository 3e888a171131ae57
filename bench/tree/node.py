"""One Corral below another: the laboratory's front, with a part of the GPUs, that is sent requests by the one above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from msgspec import structs

from corral.laboratory.clock import Clock
from corral.laboratory.engine import World
from corral.laboratory.ours import LabTicket, Ours, route_request
from corral.laboratory.replica import VirtualReplica
from corral.laboratory.requests import Request
from corral.laboratory.types import Arrival, BoxReplica
from corral.model import Figures

ABOVE = "above"
"""The run of the Corral above."""


class Above(Protocol):
    """Who sends requests to a node."""

    def node_closed(self, request: Request, *, ok: bool) -> None: ...


class Part:
    """A node's share of the world: its GPUs, and requests that end at the node first."""

    def __init__(self, world: World, name: str, replicas: Sequence[BoxReplica], above: Above) -> None:
        self.box = replace(world.box, name=name, replicas=tuple(replicas), incidents=())
        self.clock: Clock = world.clock
        self.replicas: dict[str, VirtualReplica] = {each.id: world.replicas[each.id] for each in replicas}
        self._world = world
        self._above = above
        self._preloads: dict[Request, tuple[str, Callable[[bool], None]]] = {}

    @property
    def now_s(self) -> float:
        return self._world.now_s

    def expect(self, request: Request, model: str, done: Callable[[bool], None]) -> None:
        """It only has the model loaded; ``done`` is told whether it is."""
        self._preloads[request] = model, done

    def send(self, request: Request, replica_id: str) -> bool:
        preload = self._preloads.get(request)
        if preload is None:
            return self._world.send(request, replica_id)
        self._world.load(replica_id, *preload)
        return True

    def abandon(self, request: Request) -> None:
        self._world.abandon(request)

    def close(self, request: Request, *, ok: bool) -> None:
        preload = self._preloads.pop(request, None)
        if preload is None:
            self._above.node_closed(request, ok=ok)

    def load(self, replica_id: str, model: str, done: Callable[[bool], None]) -> None:
        self._world.load(replica_id, model, done)

    def unload(self, replica_id: str, model: str, done: Callable[[bool], None]) -> None:
        self._world.unload(replica_id, model, done)


class Node(Ours):
    """The scheduler of a node, unchanged."""

    def __init__(self, part: Part, policy: str, seed: int) -> None:
        super().__init__(part, policy, {}, seed)
        self.part = part

    def send(self, request: Request, leaf: str) -> None:
        """From the Corral above, which thinks that it goes to that replica."""
        asked = structs.replace(route_request(request.arrival), via=ABOVE, prefer=leaf)
        ticket = LabTicket(request, asked, self._world.now_s)
        self._tickets[request] = ticket
        self.decide(lambda now_s: self.scheduler.submit(ticket, now_s))

    def preload(self, model: str, leaf: str, told: Callable[[bool], None]) -> None:
        """Somebody asks for nothing but the model."""
        request = Request(Arrival(-1, self._world.now_s, model, 0, 0))

        def done(ok: bool) -> None:
            ticket = self._tickets[request]
            self.scheduler.first_byte(ticket, self._world.now_s)
            self.decide(lambda now_s: self.scheduler.finish(ticket, now_s, ok=ok, figures=Figures() if ok else None))
            self._close(ticket, ok=ok)
            told(ok)

        self.part.expect(request, model, done)
        self.send(request, leaf)
