"""What the scheduler keeps of one replica: its leases, what its samples said, and the view a policy gets of it."""

from __future__ import annotations

from typing import Generic, TypeVar

from corral.gateway.schedule.health import Change, HealthRecord, HealthRules
from corral.gateway.schedule.ticket import Lease, Ticket
from corral.model import Health, Hold, OllamaSample, Replica, ReplicaState, ReplicaView

T = TypeVar("T", bound=Ticket)

LOADED_FRESH_S = 30.0
"""After this long without a reading, what is in a replica's memory is not known any more."""


class Member(Generic[T]):
    """One replica in rotation. Only the roster and the scheduler write to it."""

    def __init__(self, replica: Replica, rules: HealthRules, turn: float) -> None:
        self.replica = replica
        self.id = replica.id
        self.slots = replica.slots or 1
        self.enabled = True
        self.held: Hold | None = None
        self._rules = rules
        self.health = HealthRecord(rules)
        self.leases: dict[T, Lease] = {}
        self.inflight: dict[str, int] = {}
        """Slots taken, by model; no zeros."""
        self.taken = 0
        """Their sum."""
        self.turn = turn
        self.probation: T | None = None
        """The one request that an ejected replica, its time over, is tried with."""
        self.shut = False
        """Ejected, and not to be tried with a request now."""
        self.version: str | None = None
        self.installed: frozenset[str] = frozenset()
        self.remote: frozenset[str] = frozenset()
        self.installed_at_s: float | None = None
        """When the reading of :attr:`installed` began; None: never read, it may have anything."""
        self._loaded: frozenset[str] = frozenset()
        self._loaded_at_s: float | None = None
        self._sampled_at_s: float | None = None
        self._view: ReplicaView | None = None
        self._view_model: str | None = None

    def reconfigure(self, replica: Replica) -> None:
        self.replica, self.slots, self._view = replica, replica.slots or 1, None

    def has_room(self, model: str | None) -> bool:
        """Whether a slot is free for ``model``; a request without a model needs none."""
        return model is None or self.inflight.get(model, 0) < self.slots

    def lease(self, ticket: T, model: str | None, now_s: float) -> Lease:
        """Count the ticket in. ``model`` is the one it runs, None if none; a stub of a cloud model runs elsewhere."""
        key = None if model is None or model in self.remote else model
        lease = self.leases[ticket] = Lease(self.replica, ticket, key, now_s)
        if key is not None:
            self.inflight[key] = self.inflight.get(key, 0) + 1
            self.taken += 1
        self._view = None
        return lease

    def release(self, ticket: T) -> Lease:
        lease = self.leases.pop(ticket)
        key = lease.key
        if key is not None:
            count = self.inflight[key] - 1
            if count:
                self.inflight[key] = count
            else:
                del self.inflight[key]
            self.taken -= 1
        self._view = None
        return lease

    def view(self, model: str | None) -> ReplicaView:
        """What a policy may know of it now, for a request for ``model``."""
        view = self._view
        if view is None or self._view_model != model:
            loaded = None if self._loaded_at_s is None else self._loaded.union(self.inflight)
            held = 0 if model is None else self.inflight.get(model, 0)
            view = ReplicaView(self.id, self.replica.weight, self.slots, self.taken, held, loaded, self.turn)
            self._view, self._view_model = view, model
        return view

    def sampled(self, sample: OllamaSample) -> bool:
        """Take in a reading; True: which models are installed changed. A part that is None leaves the last standing."""
        taken_s = sample.taken_at_s
        self._sampled_at_s = taken_s if self._sampled_at_s is None else max(taken_s, self._sampled_at_s)
        self.version = sample.version or self.version
        if sample.loaded is not None and (self._loaded_at_s is None or taken_s >= self._loaded_at_s):
            loaded = frozenset(model.name for model in sample.loaded)
            if self._loaded_at_s is None or loaded != self._loaded:
                self._view = None
            self._loaded, self._loaded_at_s = loaded, taken_s
        if sample.installed is None or (self.installed_at_s is not None and taken_s < self.installed_at_s):
            return False
        installed = frozenset(model.name for model in sample.installed)
        remote = frozenset(model.name for model in sample.installed if model.remote)
        changed = self.installed_at_s is None or (installed, remote) != (self.installed, self.remote)
        self.installed, self.remote, self.installed_at_s = installed, remote, taken_s
        return changed

    def forget_old(self, now_s: float) -> None:
        """Drop what was read too long ago to compare replicas by."""
        if self._loaded_at_s is not None and now_s - self._loaded_at_s > LOADED_FRESH_S:
            self._loaded, self._loaded_at_s, self._view = frozenset(), None, None

    def trial(self) -> Change | None:
        """It is back in rotation once the one request that it is tried with is being answered."""
        begun = self.probation is not None and self.leases[self.probation].committed
        return self.health.request_begun() if begun else None

    def state(self, now_s: float) -> ReplicaState:
        return ReplicaState(
            id=self.id,
            weight=self.replica.weight,
            slots=self.replica.slots,
            health=self.health.state,
            enabled=self.enabled,
            held=None if self.held is None else self.held.reason,
            reason=self.health.reason,
            inflight=len(self.leases),
            inflight_by_model=dict(self.inflight),
            version=self.version,
            installed=None if self.installed_at_s is None else tuple(sorted(self.installed)),
            loaded=None if self._loaded_at_s is None else tuple(sorted(self._loaded)),
            sample_age_s=None if self._sampled_at_s is None else max(0.0, now_s - self._sampled_at_s),
            models=None if self.replica.models is None else tuple(sorted(self.replica.models)),
            gpus=self.replica.gpus,
        )

    def hold(self, hold: Hold | None) -> bool:
        """Take it out of the rotation, or back in as a new one; True: whether it may have requests changed."""
        before, self.held = self.held, hold
        if before is not None and hold is None:  # another process answers now: what was seen of the last one is past
            self.health = HealthRecord(self._rules)
            self.probation, self.shut = None, False
            self._loaded, self._loaded_at_s, self._view = frozenset(), None, None
        return before != hold

    @property
    def is_usable(self) -> bool:
        """Requests may be sent to it, if only as a last resort."""
        return self.enabled and self.held is None and self.health.state is not Health.DOWN
