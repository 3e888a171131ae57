"""Carries out what the scheduler decides: the only place where its effects meet connections, metrics and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from corral.errors import Fault
from corral.gateway.carried import Carried
from corral.gateway.schedule.effects import (
    Effect,
    HealthChanged,
    Interrupt,
    LetGo,
    Load,
    RefreshTags,
    Refuse,
    Send,
    Unload,
)
from corral.gateway.schedule.scheduler import Scheduler
from corral.gateway.serve.metrics import Metrics
from corral.gateway.serve.recent import Recent
from corral.model import Figures, Health, RequestKind, RouteRequest

log: Final = logging.getLogger("corral.gateway")

Clock = Callable[[], float]


class Carrier:
    """Between the requests, which happen, and the scheduler, which decides."""

    def __init__(self, scheduler: Scheduler[Carried], metrics: Metrics, clock: Clock) -> None:
        self.scheduler = scheduler
        self._metrics = metrics
        self._clock = clock
        self.recent = Recent(clock)
        """What is begun and ended at the replicas, for the pages."""
        self.report_bug: Callable[[str, Exception], None] = lambda where, error: None
        self.refresh_tags: Callable[[], None] = lambda: None
        """Asks the poller to read every replica's models now."""
        self.change_memory: Callable[[Load | Unload | LetGo], None] = lambda effect: None
        """Has a replica load a model or let go of one."""
        self.store_changed: Callable[[str], None] = lambda store: None
        """Tells the poller that something was done to a model store."""
        self.suspect: Callable[[str], None] = lambda replica_id: None
        """Asks the poller to probe a replica that just failed a request."""

    # -- events of a request

    def submit(self, ticket: Carried) -> None:
        self.apply(self.scheduler.submit(ticket, ticket.arrived_at_s))

    def cancel(self, ticket: Carried) -> None:
        self.scheduler.cancel(ticket)

    def first_byte(self, ticket: Carried, leaf: str = "") -> None:
        """``leaf``: of a Corral's answer, which of its replicas makes it."""
        self._touch(ticket)
        self.scheduler.first_byte(ticket, self._clock(), leaf)

    def finished(self, ticket: Carried, *, ok: bool, figures: Figures | None) -> None:
        """The response ended, and what its end told; ``ok=False``: it broke after its first byte, or must not be
        repeated.
        """
        self._touch(ticket)
        lets_go = ticket.request.kind is RequestKind.UNLOAD or ticket.request.keep_alive_s == 0.0
        if lets_go and figures is not None and ticket.lease is not None:
            self._let_go(ticket.lease.replica.id, ticket.request.model)
        self.apply(self.scheduler.finish(ticket, self._clock(), ok=ok, figures=figures))

    def spared(self, ticket: Carried) -> None:
        """The client left after its request was sent: nobody is to blame."""
        self._touch(ticket)
        self.apply(self.scheduler.spared(ticket, self._clock()))

    def failed(self, ticket: Carried, fault: Fault) -> None:
        """An attempt failed before its first byte: the scheduler sends it elsewhere, or refuses it."""
        self._touch(ticket)
        self._metrics.retried(fault)
        if fault is not Fault.STALE and ticket.lease is not None:
            self.suspect(ticket.lease.replica.id)
        self.apply(self.scheduler.failed(ticket, fault, self._clock()))

    def _touch(self, ticket: Carried) -> None:
        kind = ticket.request.kind
        if ticket.lease is not None and kind is not RequestKind.SHOW:
            self.recent.touched.add(ticket.lease.replica.id)
            if kind is RequestKind.STORE:
                self.store_changed(ticket.lease.replica.store)

    def _let_go(self, replica_id: str, model: str | None) -> None:
        """A replica was had let go of a model, which it may list by any of its names."""
        for name in self.scheduler.names_of(model or ""):
            self.recent.let_go(replica_id, name)

    def _wanted(self, replica_id: str, model: str | None) -> None:
        if self.recent.leaving:
            self.recent.wanted(replica_id, *self.scheduler.names_of(model or ""))

    # -- events of a replica's memory

    def load_ended(self, replica_id: str, number: int, *, ok: bool) -> None:
        self.recent.touched.add(replica_id.partition("/")[0])
        self.apply(self.scheduler.load_ended(replica_id, number, self._clock(), ok=ok))

    def unload_ended(self, replica_id: str, number: int, *, ok: bool) -> None:
        self.recent.touched.add(replica_id)
        self.apply(self.scheduler.unload_ended(replica_id, number, self._clock(), ok=ok))

    # -- effects

    def apply(self, effects: Iterable[Effect[Carried]]) -> None:
        """Carry out ``effects`` in order."""
        for effect in effects:
            try:
                self._carry_out(effect)
            except Exception as error:  # the effects behind it belong to other requests
                self.report_bug("effect", error)
                if isinstance(effect, Send | Refuse | Interrupt):
                    effect.ticket.abandon()

    def _carry_out(self, effect: Effect[Carried]) -> None:
        if isinstance(effect, Send):
            self._begun(effect.lease.replica.id, effect.ticket.request)
            self._metrics.decided(effect.decision.replica_id, effect.decision.reason)
            effect.ticket.send(effect.lease)
        elif isinstance(effect, Refuse):
            self._metrics.refused(effect.refusal)
            effect.ticket.refuse(effect.refusal, effect.retry_after_s)
        elif isinstance(effect, Interrupt):
            effect.ticket.interrupt(effect.fault)
        elif isinstance(effect, RefreshTags):
            self.refresh_tags()
        elif isinstance(effect, LetGo):
            self._let_go(effect.replica.id, effect.model)
            self.change_memory(effect)
        elif isinstance(effect, Load | Unload):
            replica_id = effect.replica.id.partition("/")[0]
            self.recent.touched.add(replica_id)
            self._wanted(replica_id, effect.model)
            self.change_memory(effect)
        else:
            self._health_changed(effect)

    def _begun(self, replica_id: str, request: RouteRequest) -> None:
        if request.kind is not RequestKind.SHOW:
            self.recent.touched.add(replica_id)
        self._wanted(replica_id, request.model)

    def _health_changed(self, change: HealthChanged) -> None:
        self._metrics.health_changed(change.replica_id, change.after)
        level = logging.WARNING if change.after in (Health.DOWN, Health.EJECTED) else logging.INFO
        log.log(
            level,
            'replica_health replica=%s before=%s after=%s reason="%s"',
            change.replica_id,
            change.before.value,
            change.after.value,
            change.reason,
        )
