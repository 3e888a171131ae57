"""What the scheduler keeps of one replica: its leases, what its samples said, and the view a policy gets of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from corral.gateway.schedule.health import Change, HealthRecord, HealthRules
from corral.gateway.schedule.memory import Memory
from corral.gateway.schedule.slots import SlotFinder
from corral.gateway.schedule.ticket import Lease, Ticket
from corral.model import (
    GpuLoad,
    Health,
    Hold,
    InstalledModel,
    OllamaSample,
    Prediction,
    Replica,
    ReplicaState,
    ReplicaView,
)

if TYPE_CHECKING:
    from corral.gateway.schedule.below import Below

T = TypeVar("T", bound=Ticket)

_LISTED_AFTER_S = 1.0
"""A model that was in memory when a request for it was sent is listed this long after."""
_UNREAD_TICKS = 8
"""Two seconds."""
LOADED_FRESH_S = 30.0
"""After this long without a reading, what is in a replica's memory is not known any more."""


class Use(NamedTuple):
    """What the gateway knows of how one model is used on one replica."""

    slots: int | None = None
    """How many requests for it are served at once; None: not known yet."""
    inflight: int = 0
    used_s: float | None = None
    """When a request for it was last sent or ended there; None: none was, since it came into memory."""
    since_s: float | None = None
    """When it came into memory, or was first seen there; None: it is not there."""


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
        self.listed: dict[str, InstalledModel] = {}
        """The models in its store, by name."""
        self.installed: frozenset[str] = frozenset()
        self.remote: frozenset[str] = frozenset()
        self.installed_at_s: float | None = None
        """When the reading of :attr:`installed` began; None: never read, it may have anything."""
        self.memory = Memory()
        self.gpu: GpuLoad | None = None
        self.is_overloaded = False
        """It has had much more to do than the others for long."""
        self.decoding = 0
        """Requests whose answer has begun."""
        self._decode_s = 0.0
        """What their answers were predicted to take, added up."""
        self._pending_s = 0.0
        """What the prompts of the others were predicted to take, added up."""
        self._pending_since_s = 0.0
        """Since when the first of these is being worked off."""
        self._areas: dict[str, float] = {}
        """By model in flight: its requests, integrated over time."""
        self._area = 0.0
        """The models in flight, integrated over time."""
        self._area_at_s = 0.0
        self._found_slots: dict[str, SlotFinder] = {}
        self._is_readable = False
        """What is in its memory could be read once."""
        self._unread_ticks = 0
        """For so many ticks more it is waited for that."""
        self.left: list[str] = []
        """Models that left its memory since the scheduler last looked."""
        self._sampled_at_s: float | None = None
        self._view: ReplicaView | None = None
        self._view_model: str | None = None
        self.below: Below[T] | None = None
        """Of one that is a Corral: the replicas there."""

    def reconfigure(self, replica: Replica) -> None:
        self.replica, self.slots, self._view = replica, replica.slots or 1, None
        swap = self.memory.swap
        if swap is not None and not swap.is_begun and not swap.suits(replica):
            self.memory.swap = None

    def slots_of(self, model: str) -> int:
        """How many requests for it are served at once: as configured, or as was found out."""
        if self.below is not None and self.below.usable:
            return self.below.slots_of(model)
        if self.replica.slots is not None:
            return self.replica.slots
        found = self._found_slots.get(model)
        return 1 if found is None else found.slots

    def found_slots(self, lease: Lease, queued_s: float, now_s: float) -> bool:
        """A request told how long it waited inside the replica; True: there are more or fewer slots than thought."""
        model = lease.key
        if self.replica.slots is not None or model is None or self.below is not None:
            return False
        found = self._found_slots.get(model)
        if found is None:
            found = self._found_slots[model] = SlotFinder()
        return found.observe(lease.inflight, queued_s, now_s - lease.sent_at_s, now_s)

    def use_of(self, model: str) -> Use:
        """How the model is used there, as far as that is known."""
        found, held = self._found_slots.get(model), self.memory.models.get(model)
        slots = self.replica.slots or (None if found is None else found.slots)
        inflight = self.inflight.get(model, 0)
        used = held is not None and (held.served_s > 0 or inflight > 0)
        since_s = None if held is None else held.since_s
        return Use(slots, inflight, held.used_s if held is not None and used else None, since_s)

    @property
    def is_unsettled(self) -> bool:
        """Whether what is in its memory may change at any moment by what it was asked."""
        swap = self.memory.swap
        if swap is not None and swap.is_begun:
            return True
        return any(lease.key is not None and not lease.committed for lease in self.leases.values())

    def is_loading(self, model: str) -> bool:
        """Whether it was asked to load the model, or was sent a request for it that has had no byte yet."""
        swap = self.memory.swap
        if swap is not None and swap.is_loading and swap.model == model:
            return True
        return any(lease.key == model and not lease.committed for lease in self.leases.values())

    def may_have(self, model: str, signature: str) -> bool:
        """Whether a request for it may be sent, under a policy that places models: it is in memory, or that is not
        known, or it is not the replica's to run, so that Ollama itself answers at once."""
        memory, below = self.memory, self.below
        holds = memory.holds(model, signature) if below is None or not below.usable else below.holding(model, signature)
        if holds or model in self.remote:
            return True
        if self._unread_ticks and self.may_run(model):
            return False
        return not (self.places(model) or memory.is_changing(model))

    def places(self, model: str) -> bool:
        """Whether it is known that the replica has the model, and whether that is in memory now."""
        return self.memory.is_known and model in self.installed and model not in self.remote

    def may_run(self, model: str) -> bool:
        """Whether it has the model, as far as that is known."""
        return model in self.installed or self.installed_at_s is None

    def has_room(self, model: str | None) -> bool:
        """Whether a slot is free for ``model``; a request without a model needs none, nor does one for a stub."""
        if model is not None and self.below is not None and self.below.usable and model not in self.remote:
            return self.below.has_room(model)
        return model is None or self.inflight.get(model, 0) < self.slots_of(model) or model in self.remote

    def lease(self, ticket: T, model: str | None, now_s: float) -> Lease:
        """Count the ticket in. ``model`` is the one it runs, None if none; a stub of a cloud model runs elsewhere."""
        key = None if model is None or model in self.remote else model
        lease = self.leases[ticket] = Lease(self.replica, ticket, key, now_s)
        if key is not None:
            self._account(now_s)
            count = self.inflight.get(key, 0) + 1
            self.inflight[key] = lease.inflight = count
            self.taken += 1
            if count == 1:
                self._areas[key] = 0.0
            lease.models_at_start = float(len(self.inflight))
            if self.may_run(key):  # others are names that a client made up
                self.memory.use(key, ticket.request.signature, now_s)
        self._view = None
        return lease

    def taken_up(self, lease: Lease) -> None:
        """The replica has worked on the request: its model stays for as long as that said."""
        keep_alive_s = lease.ticket.request.keep_alive_s
        if keep_alive_s is not None and lease.key is not None:
            self.memory.keep(lease.key, keep_alive_s)

    def predicted(self, lease: Lease, prediction: Prediction, now_s: float) -> None:
        """What the request that was just counted in is thought to take."""
        lease.predicted = prediction
        lease.waited_at_start_s = prediction.wait_s
        if lease.key is not None:
            if self._pending_s <= 0.0:
                self._pending_s, self._pending_since_s = 0.0, now_s
            self._pending_s += prediction.prefill_s

    def committed(self, lease: Lease, now_s: float) -> None:
        """Its answer begins."""
        lease.committed, lease.first_at_s = True, now_s
        if lease.leaf is not None:
            lease.leaf.committed(lease.leaf.leases[lease.ticket], now_s)
        if lease.key is None:
            return
        self._account(now_s)
        self.decoding += 1
        lease.mark = (now_s, self._area, self._areas.get(lease.key, 0.0))
        if lease.predicted is not None:
            self._pending_s -= lease.predicted.prefill_s
            self._pending_since_s = now_s
            self._decode_s += lease.predicted.decode_s

    def release(self, ticket: T, now_s: float) -> Lease:
        lease = self.leases.pop(ticket)
        if lease.leaf is not None:
            lease.leaf.release(ticket, now_s)
        key = lease.key
        if key is not None:
            self._account(now_s)
            count = self.inflight[key] - 1
            if count:
                self.inflight[key] = count
            else:
                del self.inflight[key], self._areas[key]
            self.taken -= 1
            self.memory.served(key, now_s - lease.sent_at_s, now_s)
            if not count:
                self._idle(key, now_s)
            self._uncount(lease)
        self._view = None
        return lease

    def _idle(self, model: str, now_s: float) -> None:
        """Nobody uses the model there any more."""
        if not self.memory.is_known:
            self.memory.models.pop(model, None)
        elif self.memory.leaves_when_idle(model):
            self.memory.unloaded(model, now_s)
            self.left.append(model)

    def recount(self, now_s: float) -> None:
        """Its leases go by other names: slots are counted anew, and what was going on in company is not known."""
        self._account(now_s)
        self.inflight = dict(Counter(lease.key for lease in self.leases.values() if lease.key is not None))
        self._areas = dict.fromkeys(self.inflight, 0.0)
        for lease in self.leases.values():
            lease.mark = lease.ask = None
        self._view = None

    def _uncount(self, lease: Lease) -> None:
        predicted = lease.predicted
        if lease.committed:
            self.decoding -= 1
            self._decode_s -= predicted.decode_s if predicted is not None else 0.0
        elif predicted is not None:
            self._pending_s -= predicted.prefill_s
        if not self.taken:  # no rounding error outlives its cause
            self._pending_s = self._decode_s = 0.0

    def _account(self, now_s: float) -> None:
        passed_s = now_s - self._area_at_s
        if passed_s > 0:
            self._area_at_s = now_s
            self._area += passed_s * len(self.inflight)
            for model, count in self.inflight.items():
                self._areas[model] += passed_s * count

    def company(self, lease: Lease, now_s: float) -> tuple[float, float]:
        """Since its answer began, on average: (models at work there, its own among them; streams of its own model
        beside it). It must still be counted in."""
        if lease.mark is None or lease.key is None or now_s <= lease.mark[0]:
            return 1.0, 0.0
        self._account(now_s)
        since_s, area, own = lease.mark
        passed_s = now_s - since_s
        models = max(1.0, (self._area - area) / passed_s)  # less is rounding, and a divisor must not be zero
        return models, max(0.0, (self._areas[lease.key] - own) / passed_s - 1.0)

    def pending_s(self, now_s: float) -> float:
        """Until the prompts that it has not worked off are done."""
        left_s = self._pending_s - (now_s - self._pending_since_s)
        return left_s if left_s > 0.0 and self.taken > self.decoding else 0.0

    @property
    def load_s(self) -> float:
        """What was sent to it and is not done was predicted to take so much, added up."""
        return self._pending_s + self._decode_s

    @property
    def rest_s(self) -> float:
        """What one more model at work there costs the answers that are being made."""
        return self._decode_s / len(self.inflight) if self.inflight else 0.0

    def gpu_read(self, load: GpuLoad | None) -> None:
        self.gpu, self._view = load, None

    def memory_changed(self) -> None:
        """What the scheduler did to :attr:`memory` shows in the next view."""
        self._view = None

    def view(self, model: str | None, predicted: Prediction | None = None) -> ReplicaView:
        """What a policy may know of it now, for a request for ``model``."""
        view = self._view
        if view is None or self._view_model != model or predicted is not None:
            loaded = frozenset(self.memory.models) if self.memory.is_known else None
            if self.below is not None and self.below.usable:
                loaded = self.below.loaded
            held = 0 if model is None else self.inflight.get(model, 0)
            slots = self.slots if model is None else self.slots_of(model)
            weight = self.replica.weight * (1.0 if self.below is None else self.below.weight)
            view = ReplicaView(self.id, weight, slots, self.taken, held, loaded, self.turn, self.gpu, predicted)
            self._view, self._view_model = (None, None) if predicted is not None else (view, model)
        return view

    def sampled(self, sample: OllamaSample, now_s: float) -> bool:
        """Take in a reading; True: which models are installed or in memory changed. A part that is None leaves the last
        standing."""
        taken_s = sample.taken_at_s
        self._sampled_at_s = taken_s if self._sampled_at_s is None else max(taken_s, self._sampled_at_s)
        self.version = sample.version or self.version
        changed = self._read_loaded(sample, now_s)
        if sample.installed is None or (self.installed_at_s is not None and taken_s < self.installed_at_s):
            return changed
        listed = {model.name: model for model in sample.installed}
        if self.installed_at_s is None or listed != self.listed:
            changed = True
            self.listed, self.installed = listed, frozenset(listed)
            self.remote = frozenset(model.name for model in sample.installed if model.remote)
        self.installed_at_s = taken_s
        return changed

    def _read_loaded(self, sample: OllamaSample, now_s: float) -> bool:
        memory = self.memory
        if sample.loaded is None or (memory.read_at_s is not None and sample.taken_at_s < memory.read_at_s):
            return False
        self._is_readable, self._unread_ticks = True, 0
        before, was_known = set(memory.models), memory.is_known
        taken_s = sample.taken_at_s
        self.left += memory.read(sample.loaded, self.inflight, taken_s, now_s, self._overdue(taken_s))
        if was_known and before == set(memory.models):
            return False
        self._view = None
        return True

    def _overdue(self, at_s: float) -> set[str]:
        """Models in use of which no request has had a byte yet, though all were sent well before."""
        young = {
            lease.key for lease in self.leases.values() if lease.committed or lease.sent_at_s > at_s - _LISTED_AFTER_S
        }
        return {model for model in self.inflight if model not in young}

    def forget_old(self, now_s: float) -> bool:
        """Drop what was read too long ago to compare replicas by; True: something was."""
        read_s = self.memory.read_at_s
        self._unread_ticks = max(0, self._unread_ticks - 1)
        self.memory.forget_limits(now_s)
        if read_s is None or now_s - read_s <= LOADED_FRESH_S:
            return False
        self.memory.forget(self.inflight)
        self._view = None
        return True

    def trial(self) -> Change | None:
        """It is back in rotation once the one request that it is tried with is being answered."""
        begun = self.probation is not None and self.leases[self.probation].committed
        return self.health.request_begun() if begun else None

    def state(self, now_s: float) -> ReplicaState:
        swap = self.memory.swap
        return ReplicaState(
            id=self.id,
            weight=self.replica.weight,
            slots=self._slots(),
            health=self.health.state,
            enabled=self.enabled,
            held=self.refuses if self.held is None else self.held.reason,
            reason=self.health.reason,
            inflight=len(self.leases),
            inflight_by_model=dict(self.inflight),
            version=self.version,
            installed=None if self.installed_at_s is None else tuple(sorted(self.installed)),
            loaded=tuple(sorted(self.memory.models)) if self.memory.is_known else None,
            sample_age_s=None if self._sampled_at_s is None else max(0.0, now_s - self._sampled_at_s),
            models=None if self.replica.models is None else tuple(sorted(self.replica.models)),
            gpus=self.replica.gpus,
            changing=None if swap is None else swap.words(now_s),
            loading=None if swap is None else swap.model,
            leaving=() if swap is None else tuple(swap.leaving),
            found_by=self.replica.found_by,
            below=None if self.below is None or self.below.read_at_s is None else tuple(self.below.leaves),
        )

    def _slots(self) -> int | None:
        """Requests for one model that are served at once, as far as that is known; of a Corral if all there have it."""
        if self.below is not None and self.below.usable:
            return self.below.slots
        return self.replica.slots or max((found.slots for found in self._found_slots.values()), default=None)

    def hold(self, hold: Hold | None) -> bool:
        """Take it out of the rotation, or back in as a new one; True: whether it may have requests changed."""
        before, self.held = self.held, hold
        if before is not None and hold is None:  # another process answers now: what was seen of the last one is past
            self.health = HealthRecord(self._rules)
            self.probation, self.shut = None, False
            self.memory, self._found_slots = Memory(), {}
            self.await_reading()
        return before != hold

    def await_reading(self) -> None:
        """Another process may answer from now on: what is in its memory will be read in a moment, and until then
        nothing is sent there that might have to be loaded. Where that could never be read it is not waited for."""
        self.memory.forget(self.inflight)
        if self.below is not None:
            self.below.forget()
        self._unread_ticks = _UNREAD_TICKS if self._is_readable else 0
        self._view = None

    @property
    def awaits_reading(self) -> bool:
        return self._unread_ticks > 0

    @property
    def is_usable(self) -> bool:
        """Requests may be sent to it, if only as a last resort."""
        return self.enabled and self.held is None and self.health.state is not Health.DOWN and self.refuses is None

    @property
    def refuses(self) -> str | None:
        """Why a Corral is sent nothing; None: it may be, or it is none."""
        return None if self.below is None else self.below.refuses
