"""Carries the changes of memory through, step by step: drain, let go, load; each replica one change at a time."""

from __future__ import annotations

from math import inf
from typing import Generic, TypeVar

from corral.gateway.schedule.effects import Effect, Load, Unload
from corral.gateway.schedule.forecast import Forecast
from corral.gateway.schedule.keeping import Keeping
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.memory import Swap
from corral.gateway.schedule.roster import Roster
from corral.gateway.schedule.standing import Wanted
from corral.gateway.schedule.ticket import Ticket

T = TypeVar("T", bound=Ticket)

_LONG_S = 5.0
_LONG = 2.0
"""A load takes too long once it took so many times what it should, and so many seconds."""


class Swaps(Generic[T]):
    """Follows each change from its beginning to its end."""

    def __init__(self, roster: Roster[T], forecast: Forecast, keeping: Keeping) -> None:
        self._roster = roster
        self._forecast = forecast
        self._keeping = keeping
        self._numbers = 0

    def begin(
        self, member: Member[T], wanted: Wanted, victims: list[str], now_s: float, effects: list[Effect[T]]
    ) -> None:
        """Have it loaded there, after the victims have left."""
        self._numbers += 1
        member.memory.begin(Swap(wanted.model, wanted.signature, victims, self._numbers, now_s))
        self.go_on(member, now_s, effects)

    def go_on(self, member: Member[T], now_s: float, effects: list[Effect[T]]) -> None:
        """The next step of the change under way there, if it can be taken."""
        swap = member.memory.swap
        if swap is None or swap.is_begun or not member.is_usable:
            return
        if member.memory.is_known:
            swap.leaving = [model for model in swap.leaving if model in member.memory.models]
        if not swap.suits(member.replica) or swap.model in self._roster.frozen:
            member.memory.swap = None
            return
        if not swap.leaving:
            is_pinned = swap.model in member.replica.pinned
            swap = member.memory.loading(now_s, inf if is_pinned else self._keeping.of(swap.model, now_s))
            effects.append(Load(member.replica, swap.model, swap.signature, swap.number, swap.keep_alive_s))
            return
        model = next((model for model in swap.leaving if model not in member.inflight), None)
        if model is not None:
            swap.is_unloading = True
            swap.leaving.remove(model)
            swap.leaving.insert(0, model)
            effects.append(Unload(member.replica, model, swap.number))

    def unload_ended(self, member: Member[T], number: int, now_s: float, effects: list[Effect[T]], *, ok: bool) -> bool:
        """True: the change was given up."""
        swap = member.memory.swap
        if swap is None or swap.number != number or not swap.is_unloading:
            return False
        swap.is_unloading = False
        if not ok:
            member.memory.ended(now_s, ok=False)
            return True
        model = swap.leaving.pop(0)
        member.left.append(model)
        member.memory.unloaded(model, now_s)
        member.memory_changed()
        self.go_on(member, now_s, effects)
        return member.memory.swap is None

    def load_ended(self, member: Member[T], number: int, now_s: float, *, ok: bool) -> bool:
        """True: a change has ended."""
        swap = member.memory.swap
        if swap is None or swap.number != number or not swap.is_loading:
            return False
        if ok and not swap.made_way:
            self._forecast.costs.loaded(swap.key, now_s - swap.loading_s)
        member.memory.ended(now_s, ok=ok)
        member.memory_changed()
        return True

    def go_on_everywhere(self, now_s: float, effects: list[Effect[T]]) -> None:
        for member in self._roster.usable():
            self._make_way(member, now_s)
            self.go_on(member, now_s, effects)

    def _make_way(self, member: Member[T], now_s: float) -> None:
        """A load that takes much too long may wait inside Ollama for the place of a model that is always in use: such a
        model gets no new requests until the load is over. If there was room for both, it is still there then."""
        swap = member.memory.swap
        if swap is None or not swap.is_loading or swap.made_way:
            return
        if now_s - swap.loading_s < _LONG_S + _LONG * self._forecast.costs.load_s(swap.key, swap.model):
            return
        swap.made_way = True
        swap.leaving = [model for model in member.inflight if model not in (swap.model, *member.replica.pinned)]
        member.memory_changed()

    def give_up_unwanted(self, wanted: set[str]) -> None:
        """Changes that wait for something, and that nobody waits for any more, or that their replica is not fit for."""
        for member in self._roster.members.values():
            swap = member.memory.swap
            if swap is None or swap.is_begun:
                continue
            if not member.is_usable or (swap.key not in wanted and swap.model not in member.replica.pinned):
                member.memory.swap = None
