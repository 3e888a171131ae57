"""Carries a change of who is whose alias through all that goes by names: tickets, leases and memory.

Between two events every live ticket asks for what :meth:`Aliases.of` makes of the request that its client made, waits
in the lane of that, and holds a slot of that.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from corral.gateway.schedule.aliases import Aliases, Unknown, Weights
from corral.gateway.schedule.dispatcher import Dispatcher
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.roster import Roster
from corral.gateway.schedule.ticket import Ticket
from corral.model import LoadedModel, OllamaSample, RequestKind, RouteRequest

T = TypeVar("T", bound=Ticket)

_OF_RUNNERS: Final = (RequestKind.INFERENCE, RequestKind.UNLOAD)
"""All others are about a name."""


class Naming(Generic[T]):
    """Knows what models are called, and what they are asked for as."""

    def __init__(self, roster: Roster[T], dispatcher: Dispatcher[T]) -> None:
        self._roster = roster
        self._dispatcher = dispatcher
        self._aliases = Aliases()
        self.by_name = self._aliases.by_name
        """Only names that are asked for as another; empty where there are no aliases."""

    @property
    def unknown(self) -> tuple[Unknown, ...]:
        """Models of which it should be known what they are made of."""
        return self._aliases.unknown

    def know(self, digest: str, weights: Weights, now_s: float) -> bool:
        """What a manifest is made of; True: that changed what something is asked for as."""
        self._aliases.know(digest, weights)
        return self.regroup(now_s)

    def names(self, model: str) -> tuple[str, ...]:
        """All that its runner is called."""
        return self._aliases.names(model)

    def runner(self, model: str) -> str:
        """The name that its runner goes by."""
        return self._aliases.runner(model)

    def of(self, request: RouteRequest) -> RouteRequest:
        """The request as it is asked of the runner."""
        return self._aliases.of(request) if request.kind in _OF_RUNNERS else request

    def name(self, ticket: T) -> None:
        """Have a new ticket ask for its runner."""
        request = ticket.request
        if request.model in self.by_name and request.kind in _OF_RUNNERS:
            ticket.given, ticket.request = request, self._aliases.of(request)

    def read(self, sample: OllamaSample) -> OllamaSample:
        """A reading of memory by the names that runners go by."""
        by_name = self.by_name
        if not by_name or sample.loaded is None or not any(model.name in by_name for model in sample.loaded):
            return sample
        loaded = tuple(self._loaded(model) for model in sample.loaded)
        return OllamaSample(sample.replica_id, sample.taken_at_s, sample.version, sample.installed, loaded)

    def _loaded(self, model: LoadedModel) -> LoadedModel:
        name = self._aliases.runner(model.name)
        return LoadedModel(name, model.size_bytes, model.size_vram_bytes, model.context_length)

    def regroup(self, now_s: float) -> bool:
        """Lists of models changed, or what is known of them, or what is to stand apart; True: so did what something is
        asked for as. Then all lanes are to be drained."""
        members = self._roster.members
        lists = {id: member.listed for id, member in members.items() if member.installed_at_s is not None}
        moves = self._aliases.group(lists, self._roster.mentioned | self._roster.frozen)
        if moves is None:
            return False
        self.by_name = self._aliases.by_name
        for member in members.values():
            member.memory.rename(moves)
            member.memory_changed()
            for leaf in () if member.below is None else member.below.leaves.values():
                leaf.memory.rename(moves)
        self._dispatcher.placer.rename(moves)
        self._rename_waiting()
        self._rename_running(now_s)
        return True

    def _rename_waiting(self) -> None:
        waiting = self._dispatcher.waiting
        for ticket in waiting:
            request = self._asked_now(ticket)
            if request is not None:
                waiting.move(ticket, request)

    def _rename_running(self, now_s: float) -> None:
        """What is in flight holds slots under the names of now; while that changed it teaches nothing."""
        concerned: dict[Member[T], None] = {}
        for ticket, member in self._dispatcher.homes.items():
            request = self._asked_now(ticket)
            if request is None:
                continue
            ticket.request = request
            lease = member.leases[ticket]
            if lease.key is not None:
                lease.key = request.model
            concerned[member] = None
            if lease.leaf is not None:
                lease.leaf.leases[ticket].key = lease.key
                concerned[lease.leaf] = None
        for member in concerned:
            member.recount(now_s)

    def _asked_now(self, ticket: T) -> RouteRequest | None:
        """What it is to ask for from now on; None: what it does. What its client asked for is kept."""
        given = ticket.given or ticket.request
        request = self.of(given)
        if request is given and ticket.given is None:
            return None
        if (request.model, request.signature) == (ticket.request.model, ticket.request.signature):
            return None
        ticket.given = None if request is given else given
        return request
