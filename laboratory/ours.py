"""Corral in front of the replicas: its own scheduler, unchanged, fed as the gateway feeds it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Protocol

from corral.emulator.prefix import BYTES_PER_TOKEN
from corral.errors import Fault
from corral.gateway.schedule.effects import Effect, HealthChanged, Interrupt, Load, RefreshTags, Refuse, Send, Unload
from corral.gateway.schedule.prefix import BLOCK_BYTES
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.gateway.schedule.waiting import QueueOrder
from corral.laboratory.clock import Clock
from corral.laboratory.gpus import GpuReadings
from corral.laboratory.polling import Watch
from corral.laboratory.replica import VirtualReplica
from corral.laboratory.requests import Request, Stopwatch
from corral.laboratory.types import Arrival, Box
from corral.laboratory.workloads import BLOCK_TOKENS
from corral.model import Figures, OllamaSample, ProbeResult, Replica, RequestKind, RouteRequest, normalise_model
from corral.policies import make_policy

UNLIMITED = QueueLimits(max_requests=1_000_000, max_wait_s=1e9)
"""As the rivals' queues and Ollama's own."""
TICK_S = 0.25


class LabTicket(Ticket):
    """A request as the scheduler sees it."""

    __slots__ = ("carried",)

    def __init__(self, carried: Request, request: RouteRequest, arrived_at_s: float) -> None:
        super().__init__(request, arrived_at_s)
        self.carried = carried


class Sender(Protocol):
    """The part of the world that it needs."""

    box: Box
    clock: Clock
    replicas: dict[str, VirtualReplica]

    @property
    def now_s(self) -> float: ...

    def send(self, request: Request, replica_id: str) -> bool: ...

    def abandon(self, request: Request) -> None: ...

    def close(self, request: Request, *, ok: bool) -> None: ...

    def load(self, replica_id: str, model: str, done: Callable[[bool], None]) -> None: ...

    def unload(self, replica_id: str, model: str, done: Callable[[bool], None]) -> None: ...


class Ours:
    """Carries out what the scheduler wants done, and probes the replicas for it."""

    def __init__(
        self,
        world: Sender,
        policy_name: str,
        options: dict[str, object],
        seed: int,
        limits: QueueLimits = UNLIMITED,
        path: str | None = None,
        switches: frozenset[str] = frozenset(),
    ) -> None:
        self.name = policy_name
        self.stopwatch = Stopwatch()
        self.decisions = 0
        self.reasons: Counter[str] = Counter()
        self._world = world
        policy = make_policy(policy_name, path, options)
        self.switches = switches
        order = QueueOrder.WSPT if "wspt" in switches else limits.order
        limits = replace(limits, order=order, fair="unfair" not in switches)
        self.scheduler: Scheduler[LabTicket] = Scheduler(policy, policy_name, limits, Random(seed))
        self.scheduler.set_learning(costs="no-learning" not in switches, prefixes="no-prefix" not in switches)
        self._tickets: dict[Request, LabTicket] = {}
        rng = Random(f"probes {seed}")
        self._watches = {key: Watch(replica, self, world.clock, rng) for key, replica in world.replicas.items()}
        self._effects: deque[Effect[LabTicket]] = deque()

    # -- what happens to requests ---------------------------------------------------------------------------------

    def start(self) -> None:
        replicas = [
            Replica(
                replica.id,
                "127.0.0.1",
                11435 + number,
                replica.weight,
                replica.slots,
                models=replica.models,
                max_loaded=replica.max_loaded,
                pinned=replica.pinned,
                kept_off=replica.kept_off,
            )
            for number, replica in enumerate(self._world.box.replicas)
        ]
        self.decide(lambda now_s: self.scheduler.set_placement("no-placement" not in self.switches, now_s))
        self.decide(lambda now_s: self.scheduler.set_replicas(replicas, now_s))
        for watch in self._watches.values():
            watch.probe()
        if "no-gpu" not in self.switches:
            GpuReadings(self, self._world.clock, self._world.replicas).start()
        self._world.clock.at(TICK_S, self._tick)

    def arrived(self, request: Request) -> None:
        ticket = LabTicket(request, route_request(request.arrival), self._world.now_s)
        self._tickets[request] = ticket
        self.decide(lambda now_s: self.scheduler.submit(ticket, now_s))

    def first_token(self, request: Request) -> None:
        ticket = self._tickets[request]
        self.stopwatch.time(lambda: self.scheduler.first_byte(ticket, self._world.now_s))

    def ended(self, request: Request) -> None:
        self._finish(request, ok=True)

    def broke(self, request: Request) -> None:
        self._finish(request, ok=False)

    def failed(self, request: Request, fault: Fault) -> None:
        ticket, replica_id = self._tickets[request], request.outcome.replica_id
        self.decide(lambda now_s: self.scheduler.failed(ticket, fault, now_s))
        if replica_id is not None:
            self._watches[replica_id].kick()

    def revived(self, replica_id: str) -> None:
        """The next probe will tell."""

    # -- the scheduler --------------------------------------------------------------------------------------------

    def decide(self, call: Callable[[float], Iterable[Effect[LabTicket]]]) -> None:
        """Tell the scheduler, and carry out what it wants done; what follows from that comes after."""
        now_s = self._world.now_s
        is_first = not self._effects
        self._effects.extend(self.stopwatch.time(lambda: call(now_s)))
        while is_first and self._effects:
            self._carry_out(self._effects[0])
            self._effects.popleft()

    def _carry_out(self, effect: Effect[LabTicket]) -> None:
        match effect:
            case Send(ticket, lease, decision):
                self.decisions += 1
                self.reasons[decision.reason] += 1
                if lease.predicted is not None:
                    outcome, seconds = ticket.carried.outcome, lease.predicted
                    outcome.predicted_ttft_s = (seconds.wait_s + seconds.prefill_s) * seconds.slowdown
                    outcome.predicted_e2e_s = outcome.predicted_ttft_s + seconds.decode_s * seconds.slowdown
                if not self._world.send(ticket.carried, lease.replica.id):
                    self.failed(ticket.carried, Fault.CONNECT)
            case Refuse(ticket):
                self._close(ticket, ok=False)
            case Interrupt(ticket, fault):
                if ticket.lease is not None and not ticket.lease.committed:
                    self._world.abandon(ticket.carried)
                    self.failed(ticket.carried, fault)
            case RefreshTags():
                for watch in self._watches.values():
                    watch.read_tags()
            case Load(replica, model, _, number):
                self._world.load(replica.id, model, partial(self._load_ended, replica.id, number))
            case Unload(replica, model, number):
                self._world.unload(replica.id, model, partial(self._unload_ended, replica.id, number))
            case HealthChanged():
                pass

    def _load_ended(self, replica_id: str, number: int, ok: bool) -> None:
        self.decide(lambda now_s: self.scheduler.load_ended(replica_id, number, now_s, ok=ok))
        self._watches[replica_id].read_ps()

    def _unload_ended(self, replica_id: str, number: int, ok: bool) -> None:
        self.decide(lambda now_s: self.scheduler.unload_ended(replica_id, number, now_s, ok=ok))

    def _finish(self, request: Request, *, ok: bool) -> None:
        ticket, figures = self._tickets[request], figures_of(request) if ok else None
        self.decide(lambda now_s: self.scheduler.finish(ticket, now_s, ok=ok, figures=figures))
        self._close(ticket, ok=ok)

    def _close(self, ticket: LabTicket, *, ok: bool) -> None:
        del self._tickets[ticket.carried]
        self._world.close(ticket.carried, ok=ok)

    def _tick(self) -> None:
        self.decide(self.scheduler.tick)
        self._world.clock.at(self._world.now_s + TICK_S, self._tick)

    # -- readings -------------------------------------------------------------------------------------------------

    def probed(self, replica_id: str, result: ProbeResult) -> None:
        self.decide(lambda now_s: self.scheduler.probed(replica_id, result, now_s))

    def sampled(self, sample: OllamaSample) -> None:
        self.decide(lambda now_s: self.scheduler.sampled(sample, now_s))


def figures_of(request: Request) -> Figures | None:
    """What the final message of its answer tells."""
    work, arrival = request.work, request.arrival
    if work is None or work.granted_s is None or work.slot_s is None or work.first_s is None or work.end_s is None:
        return None
    return Figures(
        arrival.prompt_tokens,
        arrival.output_tokens,
        work.slot_s - work.granted_s,
        work.granted_s - work.sent_s,
        work.first_s - work.slot_s,
        work.end_s - work.first_s,
    )


def route_request(arrival: Arrival) -> RouteRequest:
    """What the gateway would read from its body."""
    return RouteRequest(
        RequestKind.INFERENCE,
        normalise_model(arrival.model),
        body_bytes=arrival.prompt_tokens * BYTES_PER_TOKEN,
        tenant=arrival.tenant,
        text_bytes=arrival.prompt_tokens * BYTES_PER_TOKEN,
        prefix=prefix_of(arrival),
        rank=arrival.rank,
    )


def prefix_of(arrival: Arrival) -> tuple[int, ...]:
    """Chained hashes, as the gateway makes them: the blocks of a trace are larger than its own."""
    chain = 0
    found = []
    for block in arrival.blocks:
        for part in range(BLOCK_TOKENS * BYTES_PER_TOKEN // BLOCK_BYTES):
            chain = hash((chain, block, part))
            found.append(chain)
    return tuple(found)
