"""The laboratory's engine: plays requests to a box of virtual replicas, and lets somebody decide where each goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from corral.errors import Fault
from corral.gateway.schedule.scheduler import QueueLimits
from corral.laboratory.clock import Alarm, Clock
from corral.laboratory.ours import UNLIMITED, Ours
from corral.laboratory.pushing import Pushing
from corral.laboratory.replica import Happening, VirtualReplica, What, Work
from corral.laboratory.requests import Request
from corral.laboratory.types import Arrival, Box, Incident, Outcome, Router, Run

_LOOK_S = 0.1
_UNLOAD_S = 5.0
"""How often, and how long, the gateway looks whether a model is gone."""
DRAIN_S = 3600.0
"""A run ends this long after its last arrival, whatever is still under way: somebody unstable must not run for ever."""


class Front(Protocol):
    """What stands in front of the replicas. Every request that arrives has to be sent, and in the end closed."""

    name: str

    def start(self) -> None: ...

    def arrived(self, request: Request) -> None: ...

    def first_token(self, request: Request) -> None: ...

    def ended(self, request: Request) -> None:
        """Its last token came."""
        ...

    def failed(self, request: Request, fault: Fault) -> None:
        """The attempt failed before its first token."""
        ...

    def broke(self, request: Request) -> None:
        """It failed after its first token."""
        ...

    def revived(self, replica_id: str) -> None:
        """It answers again."""
        ...


class World:
    """A box and what is asked of it. A front sends requests into it, and is told what becomes of them."""

    def __init__(self, box: Box, arrivals: Sequence[Arrival]) -> None:
        self.box = box
        self.clock = Clock()
        self.replicas = {replica.id: VirtualReplica(replica, box.models) for replica in box.replicas}
        self.requests = [Request(arrival) for arrival in arrivals]
        self.front: Front
        self._alarms = {
            replica.id: Alarm(self.clock, partial(self._advance, replica)) for replica in self.replicas.values()
        }
        self._running: dict[Work, Request] = {}
        self._loading: dict[Work, Callable[[bool], None]] = {}
        """Loads that the front asked for, and who hears of their end."""
        self._open = len(self.requests)

    # -- what the front does --------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return self.clock.now_s

    def send(self, request: Request, replica_id: str) -> bool:
        """Send it there; False: nothing accepts the connection."""
        replica, outcome = self.replicas[replica_id], request.outcome
        outcome.replica_id, outcome.sent_s = replica_id, self.now_s
        outcome.attempts += 1
        if not replica.is_alive:
            return False
        work, happenings = replica.submit(outcome.arrival, self.now_s)
        request.work = work
        self._running[work] = request
        if happenings:  # the front is told after it has done what it is at
            self.clock.at(self.now_s, partial(self._tell, happenings))
        self._set_alarm(replica)
        return True

    def abandon(self, request: Request) -> None:
        """Close the connection of a request that was sent and has not ended."""
        work, replica_id = request.work, request.outcome.replica_id
        if work is None or replica_id is None or self._running.pop(work, None) is None:
            return
        request.work = None
        replica = self.replicas[replica_id]
        happenings = replica.abandon(work, self.now_s)
        if happenings:
            self.clock.at(self.now_s, partial(self._tell, happenings))
        self._set_alarm(replica)

    def load(self, replica_id: str, model: str, done: Callable[[bool], None]) -> None:
        """Have the replica load the model; ``done`` is told whether it is in memory."""
        replica = self.replicas[replica_id]
        if not replica.is_alive:
            self.clock.at(self.now_s, lambda: done(False))
            return
        work, happenings = replica.preload(model, self.now_s)
        self._loading[work] = done
        if happenings:
            self.clock.at(self.now_s, partial(self._tell, happenings))
        self._set_alarm(replica)

    def unload(self, replica_id: str, model: str, done: Callable[[bool], None]) -> None:
        """Have it let go of the model; ``done`` is told whether it did, in time."""
        replica = self.replicas[replica_id]
        if not replica.is_alive:
            self.clock.at(self.now_s, lambda: done(False))
            return
        replica.unload(model, self.now_s)
        self._set_alarm(replica)
        self.clock.at(self.now_s + _LOOK_S, partial(self._look_for, replica, model, done, self.now_s + _UNLOAD_S))

    def _look_for(self, replica: VirtualReplica, model: str, done: Callable[[bool], None], until_s: float) -> None:
        if not replica.is_alive or model not in replica.loaded():
            done(replica.is_alive)
        elif self.now_s >= until_s:
            done(False)
        else:
            self.clock.at(self.now_s + _LOOK_S, partial(self._look_for, replica, model, done, until_s))

    def close(self, request: Request, *, ok: bool) -> None:
        """The request has its answer, or none."""
        request.outcome.end_s, request.outcome.ok = self.now_s, ok
        self._open -= 1

    # -- what happens ---------------------------------------------------------------------------------------------

    def play(self) -> None:
        """From the first arrival until every request is closed."""
        for request in self.requests:
            self.clock.at(request.outcome.arrival.at_s, partial(self.front.arrived, request))
        for incident in self.box.incidents:
            self.clock.at(incident.at_s, partial(self._happen, incident))
        last_s = max((request.outcome.arrival.at_s for request in self.requests), default=0.0)
        self.front.start()
        self.clock.run(lambda: not self._open, last_s + DRAIN_S)

    def _advance(self, replica: VirtualReplica) -> None:
        happenings = replica.advance(self.now_s)
        self._set_alarm(replica)
        self._tell(happenings)

    def _set_alarm(self, replica: VirtualReplica) -> None:
        self._alarms[replica.id].set(replica.next_s())

    def _tell(self, happenings: Sequence[Happening]) -> None:
        for what, work in happenings:
            if (done := self._loading.pop(work, None)) is not None:
                done(what is What.ENDED)
                continue
            request = self._running.get(work)
            if request is None:
                continue
            if what is What.FIRST_TOKEN:
                request.outcome.first_token_s = self.now_s
                self.front.first_token(request)
                continue
            del self._running[work]
            if what is What.ENDED:
                self.front.ended(request)  # which may want to know what the final message tells
                request.work = None
            else:
                request.work = None
                self.front.failed(request, Fault.BUSY)

    def _happen(self, incident: Incident) -> None:
        replica = self.replicas[incident.replica_id]
        if incident.kind == "throttle":
            replica.throttle(incident.factor, self.now_s)
        elif incident.kind == "kill":
            self._kill(replica)
        elif incident.kind == "restore":
            replica.restore()
            self.front.revived(replica.id)
        else:
            raise ValueError(f"there is no incident {incident.kind!r}")
        self._set_alarm(replica)

    def _kill(self, replica: VirtualReplica) -> None:
        works = replica.kill(self.now_s)
        for done in [self._loading.pop(work) for work in works if work in self._loading]:
            self.clock.at(self.now_s, partial(done, False))
        lost = [self._running.pop(work) for work in works if work in self._running]
        for request in lost:
            request.work = None
            if request.outcome.first_token_s is None:
                self.front.failed(request, Fault.RESET)
            else:
                self.front.broke(request)

    # -- what it came to ------------------------------------------------------------------------------------------

    def outcomes(self) -> list[Outcome]:
        return [request.outcome for request in self.requests]


def run_ours(
    box: Box,
    arrivals: Sequence[Arrival],
    policy_name: str,
    options: dict[str, object],
    seed: int,
    *,
    limits: QueueLimits = UNLIMITED,
    path: str | None = None,
    switches: frozenset[str] = frozenset(),
) -> Run:
    """Corral's scheduler with one of its policies. ``limits``: without, its queue holds as many as a rival's does.
    ``path``: the file of a policy that is not Corral's own."""
    world = World(box, arrivals)
    ours = Ours(world, policy_name, options, seed, limits, path, switches)
    world.front = ours
    world.play()
    run = _run(world, ours.name, seed, ours.stopwatch.total_s, ours.decisions)
    run.reasons, run.policy_error = ours.reasons, ours.scheduler.policy_error
    return run


def run_router(box: Box, arrivals: Sequence[Arrival], router: Router, seed: int) -> Run:
    """A rival. It is fresh: what it has learned belongs to this run."""
    return run_pushing(box, arrivals, lambda world: Pushing(world, router), seed)


def run_pushing(box: Box, arrivals: Sequence[Arrival], make: Callable[[World], Pushing], seed: int) -> Run:
    """A rival with a front of its own."""
    world = World(box, arrivals)
    pushing = make(world)
    world.front = pushing
    world.play()
    return _run(world, pushing.name, seed, pushing.stopwatch.total_s, pushing.decisions)


def _run(world: World, contender: str, seed: int, decide_s: float, decisions: int) -> Run:
    outcomes, replicas = world.outcomes(), world.replicas.values()
    ends = [outcome.end_s for outcome in outcomes if outcome.end_s is not None]
    is_done = len(ends) == len(outcomes)
    return Run(
        box=world.box,
        contender=contender,
        seed=seed,
        outcomes=outcomes,
        end_s=max(ends, default=0.0) if is_done else world.now_s,
        busy_s={replica.id: replica.busy_s(world.now_s) for replica in replicas},
        loads=sum(replica.total_loads() for replica in replicas),
        unloads=sum(replica.total_unloads() for replica in replicas),
        prompt_tokens=sum(replica.prompt_tokens for replica in replicas),
        cached_tokens=sum(replica.cached_tokens for replica in replicas),
        decide_s=decide_s,
        decisions=decisions,
    )
