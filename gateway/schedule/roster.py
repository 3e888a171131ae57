"""Who could serve a request: the replicas in their configured order, and which of them a ticket may go to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from corral.gateway.schedule.below import Below
from corral.gateway.schedule.health import HealthRules
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.memory import Memory
from corral.gateway.schedule.ticket import Lease, Ticket
from corral.model import Health, Hold, Replica, RequestKind, is_cloud_model

T = TypeVar("T", bound=Ticket)

LEADER_KINDS = (RequestKind.STORE, RequestKind.BLOB)
FREEZING_KINDS = (RequestKind.INFERENCE, RequestKind.SHOW, RequestKind.UNLOAD)
"""Those that wait while their model is being changed in a store."""


class Roster(Generic[T]):
    """The members. :meth:`refresh` must follow every change of a member's health, ``enabled``, ``shut`` or models."""

    def __init__(self, rules: HealthRules) -> None:
        self.members: dict[str, Member[T]] = {}
        self._store_work: dict[str, dict[T, Member[T]]] = {}
        """By store: what is being changed in it now, and by whom; no empty ones."""
        self._rules = rules
        self._leaving: dict[str, Member[T]] = {}
        """Removed by a reload, with leases still running."""
        self._usable: list[Member[T]] = []
        self._any_shut = False
        self._having: dict[str, list[Member[T]]] = {}
        """By model, the usable members known to have it; only models that somebody has."""
        self._stubs: set[str] = set()
        """Of these, the models that all of them have as stubs only: they run in Ollama's cloud."""
        self._turn = 0.0
        self._holds: dict[str, Hold] = {}
        """By id: a replica may be held before it is there; a hold ends with its replica."""
        self.frozen: frozenset[str] = frozenset()
        """Models that are being changed in a store: requests for them wait."""
        self._listed: frozenset[str] = frozenset()
        """Models that some member lists as its own."""
        self._any_kept_off = False
        self.mentioned: frozenset[str] = frozenset()
        """Models that the configuration of some member names."""

    def set_replicas(self, replicas: Sequence[Replica]) -> None:
        """Take over a new list; a replica whose address did not change keeps its leases and what is known of it."""
        known = self._leaving | self.members
        for gone in self.members.keys() - {replica.id for replica in replicas}:
            self._holds.pop(gone, None)
        self.members = {replica.id: self._member(known.pop(replica.id, None), replica) for replica in replicas}
        self._leaving = {member.id: member for member in known.values() if member.leases}
        for member in self._leaving.values():
            member.memory = Memory()  # nobody tells it any more what becomes of a change
        self._listed = frozenset().union(*(replica.models or () for replica in replicas))
        self._any_kept_off = any(replica.kept_off for replica in replicas)
        self.mentioned = self._listed.union(*(replica.pinned | replica.kept_off for replica in replicas))
        self.refresh()

    def hold(self, replica_id: str, hold: Hold | None) -> bool:
        """Hold the replica, or (None) let it have requests again; True: that changed something."""
        if hold is None:
            self._holds.pop(replica_id, None)
        else:
            self._holds[replica_id] = hold
        member = self.members.get(replica_id)
        changed = member is not None and member.hold(hold)
        if changed:
            self.refresh()
        return changed

    def _member(self, known: Member[T] | None, replica: Replica) -> Member[T]:
        if known is None or (known.replica.host, known.replica.port) != (replica.host, replica.port):
            member: Member[T] = Member(replica, self._rules, self._turn)
            member.below = None if replica.admin is None else Below(member, self._rules)
            member.held = self._holds.get(replica.id)
            if known is not None:
                member.enabled = known.enabled
                known.memory = Memory()  # as below: its leases may finish, and nothing else is asked of it
            return member
        known.reconfigure(replica)
        if (known.below is None) != (replica.admin is None):
            known.below = None if replica.admin is None else Below(known, self._rules)
        return known

    def refresh(self) -> None:
        self._usable = [member for member in self.members.values() if member.is_usable]
        self._any_shut = any(member.shut for member in self._usable)
        self._having = {}
        self._stubs = set()

    def usable(self) -> Sequence[Member[T]]:
        """Those that requests may be sent to, ejected ones among them."""
        return self._usable

    def may_eject(self, member: Member[T]) -> bool:
        """Whether another one is left that is neither down nor drained nor ejected."""
        return any(other is not member and other.health.state is not Health.EJECTED for other in self._usable)

    def read_since_s(self) -> float:
        """Every usable replica's list of models was read at this instant or later."""
        never = float("-inf")
        reads = (member.installed_at_s for member in self._usable)
        return min((never if read_s is None else read_s for read_s in reads), default=never)

    def serving(self, ticket: T) -> list[Member[T]] | None:
        """Those that could serve the ticket, free or busy; None: first ask the replicas who has its model.

        1. Usable: enabled and not down. Requests that change a store, and blobs: only the store's leader.
        2. Of these, the ones known to have the model. If none is: ask; after that it may be on those whose list
           could not be read, or, if there are none, anywhere: then Ollama itself says that it is not found. Where the
           only ones that have it are down or drained, nobody can serve it.
        3. Where replicas list models as their own: for such a model only they, for any other only the others. None that
           it is kept off.
        4. Without those that failed the ticket.
        5. Of these, the ones not ejected; if there are none, the ejected ones (last resort).
        6. To let go of a model: of these, the ones that hold it; if there are none, all the same.
        7. What is done in Ollama's cloud is done in the name of a replica's account: of these, always the first.
        """
        pool = self._usable
        kind, model = ticket.request.kind, ticket.request.model
        if kind in LEADER_KINDS:
            leader = self.leader(ticket.request.store, ticket.excluded)
            return [leader] if leader else []
        if model is not None and kind is not RequestKind.OTHER:
            having = self._having.get(model) or self._find(model)
            if having:
                pool = having
            elif not self._is_for_account(kind, model):
                if pool and not ticket.asked:
                    return None
                pool = self._who_else(model)
        if (self._listed or self._any_kept_off) and kind is RequestKind.INFERENCE:
            pool = [member for member in pool if self._takes(member, model)]
        if ticket.excluded:
            pool = [member for member in pool if member.id not in ticket.excluded]
        if self._any_shut:
            pool = [member for member in pool if not member.shut] or pool
        if kind is RequestKind.UNLOAD:
            pool = [member for member in pool if model in member.memory.models] or pool
        return pool[:1] if self._is_for_account(kind, model) else pool

    def _is_for_account(self, kind: RequestKind, model: str | None) -> bool:
        """Whether Ollama's cloud answers, in the name of the account that the replica is signed in with."""
        if kind is RequestKind.CLOUD or model in self._stubs:
            return kind is not RequestKind.OTHER
        return kind is RequestKind.SHOW and model is not None and is_cloud_model(model)

    def is_coming(self, ticket: T) -> bool:
        """Whether one that is held only for now could serve the ticket."""
        kind, model = ticket.request.kind, ticket.request.model
        nobody_has_it = not any(model in member.installed for member in self.members.values())
        for member in self.members.values():
            hold = member.held
            if hold is None or not hold.coming or not member.enabled or member.id in ticket.excluded:
                continue
            if kind in LEADER_KINDS:
                if ticket.request.store in (None, member.replica.store):
                    return True
                continue
            if kind is RequestKind.INFERENCE and not self._takes(member, model):
                continue
            if nobody_has_it or member.installed_at_s is None or model in member.installed:
                return True
        return False

    def _takes(self, member: Member[T], model: str | None) -> bool:
        own = member.replica.models
        if model is None:
            return True
        return model not in member.replica.kept_off and (model in own if own is not None else model not in self._listed)

    def _find(self, model: str) -> list[Member[T]]:
        having = [member for member in self._usable if model in member.installed]
        if having:
            self._having[model] = having
            if all(model in member.remote for member in having):
                self._stubs.add(model)
        return having

    def _who_else(self, model: str) -> list[Member[T]]:
        if any(model in member.installed for member in self.members.values()):
            return []
        return [member for member in self._usable if member.installed_at_s is None] or self._usable

    def leader(self, store: str | None = None, excluded: Sequence[str] = ()) -> Member[T] | None:
        """The first usable replica of the store in configuration order, an ejected one only if there is no other.

        While something is being changed in a store its leader stays: two Ollamas at one download would spoil it, and
        blobs must reach those that make something of them. ``store`` None: the first replica's.
        """
        if store is None:
            store = next((member.replica.store for member in self.members.values()), "")
        for sticky in self._store_work.get(store, {}).values():
            if sticky in self._usable and sticky.id not in excluded:
                return sticky
        pool = [member for member in self._usable if member.replica.store == store and member.id not in excluded]
        return next((member for member in pool if not member.shut), pool[0] if pool else None)

    def lease(self, member: Member[T], ticket: T, now_s: float) -> Lease:
        """Send the ticket to the member: count it in and move the rotation on."""
        kind = ticket.request.kind
        lease = member.lease(ticket, ticket.request.model if kind is RequestKind.INFERENCE else None, now_s)
        if lease.is_cloud:
            return lease  # it is no work of the replica's, and no trial of one that was ejected
        # A replica that was busy or away does not get the turns it missed all at once: it starts from the present.
        self._turn = max(self._turn, member.turn)
        member.turn = self._turn + 1.0 / member.replica.weight
        if kind is RequestKind.STORE:
            self._store_work.setdefault(member.replica.store, {})[ticket] = member
        if member.health.state is Health.EJECTED and not member.shut and kind is not RequestKind.STORE:
            member.probation, member.shut = ticket, True
            self.refresh()
        return lease

    def release(self, member: Member[T], ticket: T, now_s: float) -> Lease:
        lease = member.release(ticket, now_s)
        if ticket.request.kind is RequestKind.STORE:
            for store, work in list(self._store_work.items()):  # a reload may have given its replica another store
                work.pop(ticket, None)
                if not work:
                    del self._store_work[store]
        if member.probation is ticket:
            member.probation = None
        if not member.leases and self._leaving.get(member.id) is member:
            del self._leaving[member.id]
        return lease
