"""Books of what a scheduler changes in the replicas' memory: each change is checked against what it may do."""

from __future__ import annotations

from collections.abc import Iterable

from corral.gateway.schedule.effects import Effect, Load, Unload
from corral.gateway.schedule.memory import Swap
from corral.gateway.schedule.scheduler import Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import Replica


class Changes:
    """The loads and unloads that were asked for and not answered, at most one a replica."""

    def __init__(self) -> None:
        self.pending: dict[str, Load | Unload] = {}
        self.loads = 0
        self._leaving: dict[str, tuple[int, frozenset[str]]] = {}
        """By replica, after the last event: the number of its change, and the models that leave for it."""

    def begun(self, change: Load | Unload, swap: Swap | None, inflight: Iterable[str]) -> None:
        """``swap``: what the scheduler says of it; ``inflight``: models in use on that replica."""
        replica = change.replica
        assert replica.id not in self.pending, f"two changes at once: {self.pending[replica.id]} and {change}"
        assert swap is not None
        assert swap.number == change.number
        assert swap.model not in replica.kept_off, f"{replica.id} is kept off {swap.model}"
        if isinstance(change, Unload):
            assert change.model not in inflight, f"{change.model} is in use on {replica.id}"
            assert change.model not in replica.pinned or swap.model == change.model, f"pinned {change.model} left"
        else:
            self.loads += 1
        self.pending[replica.id] = change

    def sent(self, replica: Replica, model: str, swap: Swap | None) -> None:
        """A request for the model was sent, by a policy that places models."""
        change = self.pending.get(replica.id)
        assert not isinstance(change, Unload) or change.model != model, f"{model} is being unloaded on {replica.id}"
        number, leaving = self._leaving.get(replica.id, (0, frozenset()))
        assert swap is None or swap.number != number or model not in leaving, f"{model} drains on {replica.id}"

    def settled(self, swaps: dict[str, Swap | None]) -> None:
        """The event is over."""
        self._leaving = {id: (swap.number, frozenset(swap.leaving)) for id, swap in swaps.items() if swap is not None}

    def end(self, scheduler: Scheduler[Ticket], id: str, now_s: float, *, ok: bool) -> list[Effect[Ticket]]:
        """Answer what is pending there."""
        change = self.pending.pop(id)
        if isinstance(change, Load):
            return scheduler.load_ended(id, change.number, now_s, ok=ok)
        return scheduler.unload_ended(id, change.number, now_s, ok=ok)
