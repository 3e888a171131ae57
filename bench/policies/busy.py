"""A scheduler kept as busy as wanted: so many replicas and models, so many requests that wait, all slots in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from random import Random

from corral.gateway.schedule.effects import Effect, Load, RefreshTags, Refuse, Send, Unload
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import (
    Figures,
    InstalledModel,
    LoadedModel,
    OllamaSample,
    ProbeResult,
    Replica,
    RequestKind,
    RouteRequest,
)
from corral.policies import make_policy

SLOTS = 4
RESIDENT = 3
"""Models in the memory of a replica, unless there are so few replicas that some model would be nowhere."""
MODEL_BYTES = 5_000_000_000
SERVICE_S = 3.0
TICK_S = 0.25
SAMPLE_S = 1.0
_TENANTS, _SESSIONS, _BLOCKS = 12, 200, 8
_PROMPT_TOKENS, _OUTPUT_TOKENS = (200, 1800), (40, 300)
_PREFILL_TOK_S, _TOKEN_S = 4000.0, 0.012
_SPEEDS = (1.6, 1.0, 0.6, 0.4)
_TEXT_BYTES = 4
"""Per token."""


class Busy:
    """Answers what the scheduler wants done at once, and leaves it to the caller to time the events."""

    def __init__(self, replicas: int, models: int, policy: str = "weighted-least-load", seed: int = 0) -> None:
        self.now_s = 0.0
        self.running: deque[Ticket] = deque()
        """Those that were sent, the oldest first."""
        self._tick_s = self._sample_s = 0.0
        """When the next ones are due."""
        self._rng = Random(seed)
        self.models = [f"model{number}:8b" for number in range(models)]
        self.scheduler: Scheduler[Ticket] = Scheduler(
            make_policy(policy), policy, QueueLimits(max_requests=10**6, max_wait_s=1e9), Random(seed)
        )
        held = min(models, max(RESIDENT, -(-models // replicas)))
        self._loaded = {f"gpu{r}": {self.models[(r * held + n) % models] for n in range(held)} for r in range(replicas)}
        self._speeds = {name: _SPEEDS[number % len(_SPEEDS)] for number, name in enumerate(self._loaded)}
        self._start(held)

    def _start(self, held: int) -> None:
        replicas = [
            Replica(name, "127.0.0.1", 11435 + number, self._speeds[name], SLOTS, max_loaded=held)
            for number, name in enumerate(self._loaded)
        ]
        self.carry_out(self.scheduler.set_replicas(replicas, self.now_s))
        for name in self._loaded:
            self.carry_out(self.scheduler.probed(name, ProbeResult.ANSWERED, self.now_s))
            self._read(name, tags=True)

    # -- requests -------------------------------------------------------------------------------------------------

    def ticket(self, model: str | None = None) -> Ticket:
        """A new request, of any model where none is given."""
        rng = self._rng
        session = rng.randrange(_SESSIONS)
        tokens = rng.randint(*_PROMPT_TOKENS)
        request = RouteRequest(
            RequestKind.INFERENCE,
            model or rng.choice(self.models),
            body_bytes=tokens * _TEXT_BYTES + 200,
            tenant=f"tenant{session % _TENANTS}",
            text_bytes=tokens * _TEXT_BYTES,
            prefix=tuple(session * 100 + n if n < _BLOCKS // 2 else rng.getrandbits(60) for n in range(_BLOCKS)),
        )
        return Ticket(request, self.now_s)

    def figures(self, ticket: Ticket) -> Figures:
        """What the end of its answer tells, on a replica of its speed."""
        lease = ticket.lease
        speed = 1.0 if lease is None else self._speeds[lease.replica.id]
        prompt = (ticket.request.text_bytes or 0) // _TEXT_BYTES
        output = self._rng.randint(*_OUTPUT_TOKENS)
        return Figures(prompt, output, 0.0, 0.01, prompt / _PREFILL_TOK_S / speed, output * _TOKEN_S / speed)

    def fill(self, queued: int) -> None:
        """Until so many wait; with none, until half of the slots of one model a replica are used."""
        if queued:
            while self.scheduler.queued < queued:
                self.carry_out(self.scheduler.submit(self.ticket(), self.now_s))
        else:
            for _ in range(len(self._loaded) * SLOTS // 2):
                self.carry_out(self.scheduler.submit(self.ticket(), self.now_s))
        for ticket in self.running:
            self.scheduler.first_byte(ticket, self.now_s)

    def carry_out(self, effects: Iterable[Effect[Ticket]]) -> list[Ticket]:
        """Those that were sent now. Loads and unloads are over at once."""
        sent: list[Ticket] = []
        todo = deque(effects)
        while todo:
            match todo.popleft():
                case Send(ticket):
                    self.running.append(ticket)
                    sent.append(ticket)
                case Load(replica, model, _, number):
                    self._loaded[replica.id].add(model)
                    todo.extend(self.scheduler.load_ended(replica.id, number, self.now_s, ok=True))
                case Unload(replica, model, number):
                    self._loaded[replica.id].discard(model)
                    todo.extend(self.scheduler.unload_ended(replica.id, number, self.now_s, ok=True))
                case RefreshTags():
                    for name in self._loaded:
                        sent += self._read(name, tags=True)
                case Refuse(ticket, refusal):
                    raise RuntimeError(f"refused, which no bench wants: {ticket!r}: {refusal}")
        return sent

    # -- time and readings ----------------------------------------------------------------------------------------

    def is_tick_due(self) -> bool:
        is_due = self.now_s >= self._tick_s
        if is_due:
            self._tick_s = self.now_s + TICK_S
        return is_due

    def pass_time(self) -> float:
        """As much as it takes until the next of those that run ends; readings come in meanwhile. Gives the time."""
        self.now_s += SERVICE_S / max(1, len(self.running))
        if self.now_s >= self._sample_s:
            self._sample_s = self.now_s + SAMPLE_S
            for name in self._loaded:
                for ticket in self._read(name, tags=False):
                    self.scheduler.first_byte(ticket, self.now_s)
        return self.now_s

    def _read(self, name: str, *, tags: bool) -> list[Ticket]:
        installed = tuple(InstalledModel(m, m, size_bytes=MODEL_BYTES) for m in self.models) if tags else None
        loaded = tuple(LoadedModel(m, MODEL_BYTES, MODEL_BYTES, 4096) for m in sorted(self._loaded[name]))
        sample = OllamaSample(name, self.now_s, "0.32.15", installed, loaded)
        return self.carry_out(self.scheduler.sampled(sample, self.now_s))
