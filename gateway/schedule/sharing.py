"""Whether a request that can be worked off in parts would be answered sooner so, and in how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from corral.gateway.schedule.forecast import Forecast
from corral.gateway.schedule.member import Member
from corral.model import RouteRequest

_GAIN_S: Final = 0.02
_GAIN_SHARE: Final = 0.1
"""Less is not worth the while."""
_PART_S: Final = 0.03
"""A shorter part is more talk than work."""
_LEAST_PARTS: Final = 3
"""For each replica: a quicker one, or one that has less to do, takes more of them."""
_MOST_PARTS: Final = 8
_PER_SLOT: Final = 2
_QUEUE: Final = 6
"""Where so many wait already for each replica, all of them are busy for long: nothing is gained by more."""


class Sharing(NamedTuple):
    """What is thought of it."""

    replicas: int
    """Those that would work on the parts."""
    most_parts: int
    """More would be too small, or too many for the queue."""


def sharing(
    members: Sequence[Member[Any]],
    forecast: Forecast,
    request: RouteRequest,
    now_s: float,
    *,
    places: bool,
    waiting: int,
    room: int,
) -> Sharing | None:
    """None: better whole. ``members`` could serve it; ``places``: nothing is sent where its model is not in memory;
    ``waiting``: so many wait for the same; ``room``: so many more may wait.
    """
    model = request.model or ""
    if len(members) < 2 or any(model in member.remote or member.shut for member in members):
        return None
    holding = [member.memory.holds(model, request.signature) for member in members]
    if not places and not all(held or not m.memory.is_known for m, held in zip(members, holding, strict=True)):
        return None  # a part may be sent where Ollama has to load the model first
    ask = forecast.ask(request)
    if ask.knows_prefill:
        found = _predicted(members, holding, forecast, request, now_s)
    else:
        found = [m for m, held in zip(members, holding, strict=True) if held or not places], float("inf")
    helpers, work_s = found
    count = len(helpers)
    if count < 2 or waiting >= _QUEUE * count:
        return None
    slots = sum(member.slots_of(model) for member in helpers)
    most = min(_MOST_PARTS * count, max(_LEAST_PARTS * count, _PER_SLOT * slots), room)
    return Sharing(count, int(min(most, work_s / _PART_S)))


def _predicted(
    members: Sequence[Member[Any]], holding: Sequence[bool], forecast: Forecast, request: RouteRequest, now_s: float
) -> tuple[list[Member[Any]], float]:
    """Who would work on parts, nobody where that would not be sooner; and how long the quickest takes alone."""
    ask = forecast.ask(request)
    load_s = forecast.costs.load_s(ask.key, ask.model)
    begins: list[tuple[float, float, Member[Any]]] = []
    for member, held in zip(members, holding, strict=True):
        predicted = forecast.predict(member, ask, now_s)
        begin_s = predicted.wait_s + (0.0 if held else load_s)
        begins.append((begin_s, max(predicted.prefill_s * predicted.slowdown, 1e-9), member))
    begins.sort(key=lambda each: each[0])
    whole_s = min(begin_s + work_s for begin_s, work_s, _ in begins)
    end_s, helpers = _shared(begins)
    if whole_s - end_s < max(_GAIN_S, _GAIN_SHARE * whole_s):
        helpers = []
    return helpers, min(work_s for _, work_s, _ in begins)


def _shared(begins: Sequence[tuple[float, float, Member[Any]]]) -> tuple[float, list[Member[Any]]]:
    """When all of it is done if each works on it from its beginning to the same end; those that begin before that."""
    speed = offset = 0.0
    end_s = float("inf")
    helpers: list[Member[Any]] = []
    for begin_s, work_s, member in begins:
        if begin_s >= end_s:
            break
        speed += 1.0 / work_s
        offset += begin_s / work_s
        end_s = (1.0 + offset) / speed
        helpers.append(member)
    return end_s, helpers
