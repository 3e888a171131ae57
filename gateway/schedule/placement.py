"""Which model lives where: what to load for those that wait, and what has to leave for it.

Rules of this file:

1. Only the gateway loads and unloads: first the victim drains, then it is let go of, then the target is loaded, by
   requests of the gateway's own. So Ollama never has to evict, which it does by name and sometimes for ever.
2. A model that is nowhere must be loaded: where it is there soonest, and what leaves is missed least.
3. A further copy is made where it saves more seconds of waiting than it costs: at once where there is room, and where
   something has to leave only if that is missed less. The only copy of a model in use never leaves for another copy.
4. Where more models are wanted than fit, each that was loaded first serves for five times as long as its load took,
   unless somebody has waited for a minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, inf
from typing import Any, Final, Generic, NamedTuple, TypeVar

from corral.gateway.schedule.aliases import Move
from corral.gateway.schedule.below import Leaf, units
from corral.gateway.schedule.demand import Arrivals
from corral.gateway.schedule.effects import Effect
from corral.gateway.schedule.forecast import Forecast
from corral.gateway.schedule.keeping import Keeping
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.memory import Held
from corral.gateway.schedule.room import Room
from corral.gateway.schedule.roster import Roster
from corral.gateway.schedule.standing import HORIZON_S, Standing, Wanted, key_of, standing_of
from corral.gateway.schedule.swaps import Swaps
from corral.gateway.schedule.ticket import Ticket
from corral.model import RouteRequest

T = TypeVar("T", bound=Ticket)

_DWELL_S: Final = 30.0
"""A model stays at least so long before it leaves for another's further copy."""
_COLD_S: Final = 60.0
"""Whoever waited so long for a model gets it, whoever is still busy with another."""
_SWAP_SHARE: Final = 0.2
_PAUSE_S: Final = 0.5
"""Whoever was answered may ask again so soon, and who waited for a load is sent by then."""
_LOOK_S: Final = 0.25
_AGAIN_S: Final = 1.0
"""Where nothing could be gained it is not tried again before this, unless something changes in somebody's memory."""
_HYSTERESIS: Final = 1.5
"""What a further copy saves must be so many times what something that leaves for it loses."""
_COPY_COST: Final = 0.1
"""What a load weighs where nothing has to leave for it: it only takes time that nobody else wants."""
_KEPT: Final = 0.1
_HALF_KEPT_S: Final = 300.0
"""A model that a client wants kept, idle or not, costs that share of its load more, and half of it where only so long
is left: of two that nobody asks for the other one leaves, and it leaves for one that is asked for."""
_MOST_KEYS: Final = 512
"""Keys come from clients: those asked for last are remembered."""


class _Move(NamedTuple):
    """Load the key there, after these have left."""

    member: Member[Any]
    victims: list[str]
    ready_s: float
    """Until it is in memory."""
    loss_s: float
    """What is lost by those that leave, in seconds of waiting."""


class Placer(Generic[T]):
    """Decides about memory; :class:`Swaps` carries it through."""

    def __init__(self, roster: Roster[T], forecast: Forecast) -> None:
        self.is_enabled = True
        self._roster = roster
        self._forecast = forecast
        self._arrivals: dict[str, Arrivals] = {}
        self._due_s: dict[str, float] = {}
        """By key: when to look at it next."""
        self._room = Room(lambda: roster.members.values(), forecast.costs)
        self.keeping = Keeping()
        self.swaps: Swaps[T] = Swaps(roster, forecast, self.keeping)

    # ---- what is asked for

    def arrived(self, key: str, now_s: float) -> None:
        arrivals = self._arrivals.pop(key, None) or Arrivals(now_s)
        self._arrivals[key] = arrivals
        arrivals.arrived(now_s)
        if len(self._arrivals) > _MOST_KEYS:
            del self._arrivals[next(iter(self._arrivals))]

    def forget_old(self, now_s: float) -> None:
        for key in [key for key, arrivals in self._arrivals.items() if arrivals.is_gone(now_s)]:
            del self._arrivals[key]
        for key in [key for key in self._due_s if key not in self._arrivals]:
            del self._due_s[key]
        self._room.look_again()
        self.keeping.forget_old(now_s)

    def rename(self, moves: Mapping[str, Move]) -> None:
        """Some models go by other names from now on."""
        for model, move in moves.items():
            self.keeping.rename(model, move.to)
        self._room.look_again()
        self.look_again()

    def look_again(self) -> None:
        """Something changed: what was not worth while may be now."""
        self._due_s.clear()

    def is_due(self, key: str, now_s: float) -> bool:
        """Not looked at a moment ago."""
        return now_s >= self._due_s.get(key, float("-inf"))

    # ---- deciding

    def provide(self, wanted: Wanted, serving: Sequence[Member[T]], now_s: float, effects: list[Effect[T]]) -> None:
        """See to it that those who wait are served."""
        self._due_s[wanted.key] = now_s + _LOOK_S
        model, signature, serving = wanted.model, wanted.signature, list(units(serving))
        copies = [member for member in serving if member.memory.holds(model, signature)]
        coming = [member for member in serving if member.memory.swap and member.memory.swap.key == wanted.key]
        if not copies and not coming:
            self._provide_first(wanted, serving, now_s, effects)
        elif wanted.present > len(copies) + len(coming) or wanted.waiting > sum(m.slots_of(model) for m in coming):
            move = self._provide_more(wanted, serving, coming, now_s)
            if move is None:
                self._due_s[wanted.key] = now_s + _AGAIN_S
            else:
                self._begin(move, wanted, now_s, effects)

    def _provide_first(
        self, wanted: Wanted, serving: Sequence[Member[T]], now_s: float, effects: list[Effect[T]]
    ) -> None:
        able = [m for m in serving if m.memory.swap is None and not m.memory.is_failed(wanted.key, now_s)]
        if not able:
            return
        state = self._standing(wanted, now_s)
        moves = [self._move(wanted, member, now_s, state, is_first=True) for member in able]
        found = [move for move in moves if move is not None]
        if found:
            waiting, speeds = max(1, wanted.waiting), state.speeds
            best = min(found, key=lambda move: (move.ready_s * waiting + move.loss_s, -speeds[move.member.id]))
            self._begin(best, wanted, now_s, effects)

    def _provide_more(
        self, wanted: Wanted, serving: Sequence[Member[T]], coming: Sequence[Member[T]], now_s: float
    ) -> _Move | None:
        """The further copy that saves the most, if any saves more than it costs."""
        state = self._standing(wanted, now_s)
        homes = state.homes.get(wanted.key, [])
        best, best_gain_s = None, 0.0
        for member in serving:
            memory = member.memory
            if member.id in homes or memory.swap is not None or memory.is_failed(wanted.key, now_s):
                continue
            if memory.holds(wanted.model, wanted.signature):  # somebody else loaded it, nobody knows how
                continue
            move = self._move(wanted, member, now_s, state, is_first=False)
            if move is None or (move.victims and coming):
                continue
            gain_s = self._gain_s(wanted, member, move, state)
            if gain_s > best_gain_s:
                best, best_gain_s = move, gain_s
        return best

    def _gain_s(self, wanted: Wanted, member: Member[T], move: _Move, state: Standing) -> float:
        """What the copy saves in the next minute, and of the queue there is, without what it costs."""
        homes = state.homes.get(wanted.key, [])
        saved_s = HORIZON_S * (state.queues - state.queues_with(wanted.key, member.id, move.victims))
        each_s = state.request_s(wanted.key)
        speed = sum(state.speeds[home] for home in homes) or 1.0
        left = wanted.waiting - move.ready_s * speed / each_s
        if left > 0:
            saved_s += left * left * each_s / 2 * (1.0 / speed - 1.0 / (speed + state.speeds[member.id]))
        if not move.victims:
            # some work side by side, or wait, and there is a GPU that nobody uses for them to part
            if wanted.present > len(homes) and not member.memory.models:
                saved_s += move.ready_s * _COPY_COST + state.speeds[member.id]
            return saved_s - move.ready_s * _COPY_COST
        return saved_s / _HYSTERESIS - move.ready_s - move.loss_s

    def _move(
        self, wanted: Wanted, member: Member[T], now_s: float, state: Standing, *, is_first: bool
    ) -> _Move | None:
        """The cheapest way to have it there; None: there is none now."""
        victims: list[str] = []
        loss_s = 0.0
        held = member.memory.models.get(wanted.model)
        if held is not None:  # loaded with other options: Ollama would load it anew, too
            found_s = self._loss_s(wanted, member, wanted.model, held, now_s, state, is_first=is_first)
            if found_s is None or (not is_first and wanted.model in member.replica.pinned):
                return None
            victims.append(wanted.model)
            loss_s += found_s
        while not self._room.fits(wanted.model, member, victims):
            found = self._victim(wanted, member, victims, now_s, state, is_first=is_first)
            if found is None:
                return None
            victims.append(found[0])
            loss_s += found[1]
        costs = self._forecast.costs
        ready_s = costs.load_s(wanted.key, wanted.model)
        if victims:
            ready_s += costs.swap_s()
        busy = [key_of(name, member.memory.models[name]) for name in victims if name in member.inflight]
        ready_s += max((costs.service_s(key) or 0.0 for key in busy), default=0.0)
        return _Move(member, victims, ready_s, loss_s)

    def _victim(
        self, wanted: Wanted, member: Member[T], taken: Sequence[str], now_s: float, state: Standing, *, is_first: bool
    ) -> tuple[str, float] | None:
        """The model there that is missed least, and by how many seconds."""
        best: tuple[str, float] | None = None
        for model, held in member.memory.models.items():
            if model in taken or model in member.replica.pinned:
                continue
            loss_s = self._loss_s(wanted, member, model, held, now_s, state, is_first=is_first)
            if loss_s is not None and (best is None or loss_s < best[1]):
                best = model, loss_s
        return best

    def _loss_s(
        self,
        wanted: Wanted,
        member: Member[T],
        model: str,
        held: Held,
        now_s: float,
        state: Standing,
        *,
        is_first: bool,
    ) -> float | None:
        """What it costs that the model leaves; None: it may not."""
        key = key_of(model, held)
        if not state.is_elsewhere(key, model, member.id):
            return self._last_loss_s(wanted, member, model, held, now_s, is_first=is_first)
        if not is_first and now_s - held.since_s < _DWELL_S:
            return None
        return HORIZON_S * (state.queues_without(key, member.id) - state.queues)

    def _last_loss_s(
        self, wanted: Wanted, member: Member[T], model: str, held: Held, now_s: float, *, is_first: bool
    ) -> float | None:
        """What it costs that the only copy goes; None: it may not."""
        key = key_of(model, held)
        costs = self._forecast.costs
        again_s = costs.load_s(key, model) + costs.swap_s()
        idle_s = 0.0 if model in member.inflight else now_s - held.used_s
        if not is_first and idle_s < _DWELL_S:
            return None
        waited_s = min(wanted.waited_s, now_s - held.since_s)  # or all that wait for long would take turns at once
        if idle_s < _PAUSE_S and held.served_s < again_s / _SWAP_SHARE and waited_s < _COLD_S:
            return None
        arrivals = self._arrivals.get(key)
        hertz = 0.0 if arrivals is None else arrivals.hertz(now_s)
        return (1.0 - exp(-hertz * HORIZON_S)) * again_s * (1.0 + hertz * again_s) + _kept(held, now_s) * again_s

    def _standing(self, wanted: Wanted, now_s: float) -> Standing:
        return standing_of(self._roster.usable(), self._forecast, self._arrivals, wanted, now_s)

    # ---- carrying it out

    def _begin(self, move: _Move, wanted: Wanted, now_s: float, effects: list[Effect[T]]) -> None:
        is_own = not isinstance(move.member, Leaf) and move.member.below is None
        victims = list(move.victims) if is_own else []  # below a Corral that knows best itself what is to leave
        self.swaps.begin(move.member, wanted, victims, now_s, effects)

    def have_loaded(
        self, member: Member[T], request: RouteRequest, waited_s: float, now_s: float, effects: list[Effect[T]]
    ) -> bool:
        """A Corral above asks for the model to be in memory there; False: that cannot be."""
        swap = member.memory.swap
        if swap is not None or member.memory.is_failed(request.key, now_s):
            return swap is not None and swap.key == request.key
        wanted = Wanted(request.key, request.model or "", request.signature, 1, waited_s, 1)
        move = self._move(wanted, member, now_s, self._standing(wanted, now_s), is_first=True)
        if move is not None:
            self._begin(move, wanted, now_s, effects)
        return move is not None

    def pin(self, now_s: float, effects: list[Effect[T]]) -> None:
        """Load what belongs into memory always."""
        for member in self._roster.usable():
            memory = member.memory
            if not member.replica.pinned or not memory.is_known or memory.swap is not None:
                continue
            for model in sorted(member.replica.pinned):
                if model in memory.models or not member.places(model) or memory.is_failed(model, now_s):
                    continue
                if model in self._roster.frozen:
                    continue
                wanted = Wanted(model, model, "", 1, 0.0, 1)
                move = self._move(wanted, member, now_s, self._standing(wanted, now_s), is_first=True)
                if move is not None:
                    self._begin(move, wanted, now_s, effects)
                    break


def _kept(held: Held, now_s: float) -> float:
    """How much a client wants it to stay, in loads: the more the longer that is from now."""
    left_s = held.stays_s(now_s)
    return _KEPT if left_s == inf else _KEPT * left_s / (left_s + _HALF_KEPT_S)
