"""A few replicas in virtual time, that do what the scheduler wants done and keep the truth about their memory."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random

from corral.gateway.schedule.effects import Effect, Load, Refuse, Send, Unload
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import InstalledModel, LoadedModel, OllamaSample, Replica, RequestKind, RouteRequest
from corral.policies import make_policy
from tests.gateway.schedule.changes import Changes

TICK_S = 0.25
READ_S = 1.0
GIB = 1 << 30


class Pool:
    """Requests take ``service_s``, loads ``load_s``, letting go of a model ``unload_s``. Models are called ``m``."""

    def __init__(
        self,
        replicas: Iterable[Replica],
        *,
        models: str = "mnopqr",
        service_s: float = 1.0,
        load_s: float = 4.0,
        unload_s: float = 0.5,
        loaded: dict[str, str] | None = None,
    ) -> None:
        self.now_s = 0.0
        self.service_s, self.load_s, self.unload_s = service_s, load_s, unload_s
        self.replicas = {replica.id: replica for replica in replicas}
        self.memory: dict[str, dict[str, str]] = {id: {} for id in self.replicas}
        """By replica: the options of each model in memory. The truth."""
        self.log: list[tuple[float, str, str, str]] = []
        """(when, what, replica, model): ``load`` and ``unload`` when they were asked for, ``failed`` when a load did,
        ``send``, ``cold`` where the model was not in memory, ``refuse``."""
        self.waits_s: dict[str, list[float]] = {}
        """By key: how long each request waited until it was sent."""
        self.broken: set[tuple[str, str]] = set()
        """(replica, model): loads of these fail."""
        self.changes = Changes()
        self._models = models
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = 0
        self.scheduler: Scheduler[Ticket] = Scheduler(
            make_policy("weighted-least-load"), "p", QueueLimits(10_000, 600.0), Random(1)
        )
        self.do(self.scheduler.set_replicas(list(self.replicas.values()), 0.0))
        installed = tuple(InstalledModel(f"{model}:latest", f"manifest of {model}") for model in models)
        for id in self.replicas:
            for model in (loaded or {}).get(id, ""):
                self.memory[id][f"{model}:latest"] = ""
            self.do(self.scheduler.sampled(OllamaSample(id, 0.0, None, installed, None), 0.0))
            self.read(id)
        self.at(TICK_S, self._tick)
        self.at(READ_S, self._read_all)

    # ---- what a test does

    def at(self, when_s: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when_s, self._numbers, what))
        self._numbers += 1

    def ask(self, model: str, count: int = 1, signature: str = "") -> list[Ticket]:
        tickets = [
            Ticket(RouteRequest(RequestKind.INFERENCE, f"{model}:latest", signature), self.now_s) for _ in range(count)
        ]
        for ticket in tickets:
            self.do(self.scheduler.submit(ticket, self.now_s))
        return tickets

    def keep_asking(self, model: str, every_s: float, until_s: float, signature: str = "") -> None:
        """An open loop, from now on."""

        def again() -> None:
            self.ask(model, 1, signature)
            if self.now_s + every_s < until_s:
                self.at(self.now_s + every_s, again)

        self.at(self.now_s, again)

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self._events)
            what()
        self.now_s = until_s

    def loads(self) -> list[str]:
        """``a m``, in order."""
        return [f"{id} {model}" for _, what, id, model in self.log if what == "load"]

    def count(self, what: str) -> int:
        return sum(entry[1] == what for entry in self.log)

    def sends(self) -> Counter[str]:
        """By ``replica model``."""
        return Counter(f"{id} {model}" for _, what, id, model in self.log if what == "send")

    # ---- what the replicas do

    def read(self, id: str) -> None:
        """The scheduler is told what is in the memory."""
        loaded = tuple(LoadedModel(model, 8 * GIB, 8 * GIB, None) for model in self.memory[id])
        self.do(self.scheduler.sampled(OllamaSample(id, self.now_s, None, None, loaded), self.now_s))

    def do(self, effects: Iterable[Effect[Ticket]]) -> None:
        effects = list(effects)
        states = {state.id: state for state in self.scheduler.snapshot(self.now_s).replicas}
        members = self.scheduler._roster.members
        for effect in effects:
            match effect:
                case Send(ticket, lease, _):
                    self._send(ticket, lease.replica)
                case Refuse(ticket, _, _):
                    self.log.append((self.now_s, "refuse", "", short(ticket.request.model)))
                case Load(replica, model) | Unload(replica, model):
                    inflight = states[replica.id].inflight_by_model
                    self.changes.begun(effect, members[replica.id].memory.swap, inflight)
                    self._change(effect, replica.id, model)
        self.changes.settled({id: member.memory.swap for id, member in members.items()})

    def _send(self, ticket: Ticket, replica: Replica) -> None:
        request = ticket.request
        model = request.model or ""
        self.changes.sent(replica, model, self.scheduler._roster.members[replica.id].memory.swap)
        is_there = self.memory[replica.id].get(model) == request.signature
        self.log.append((self.now_s, "send" if is_there else "cold", replica.id, short(model)))
        self.waits_s.setdefault(request.key, []).append(self.now_s - ticket.arrived_at_s)
        self.at(self.now_s + self.service_s, lambda: self._finish(ticket))

    def _finish(self, ticket: Ticket) -> None:
        self.do(self.scheduler.finish(ticket, self.now_s, ok=True))

    def _change(self, change: Load | Unload, id: str, model: str) -> None:
        name = short(model) + (f" {change.signature}" if isinstance(change, Load) and change.signature else "")
        self.log.append((self.now_s, "load" if isinstance(change, Load) else "unload", id, name))
        takes_s = self.load_s if isinstance(change, Load) else self.unload_s
        self.at(self.now_s + takes_s, lambda: self._changed(change, id, model))

    def _changed(self, change: Load | Unload, id: str, model: str) -> None:
        ok = True
        if isinstance(change, Unload):
            self.memory[id].pop(model, None)
        elif (id, short(model)) in self.broken:
            ok = False
            self.log.append((self.now_s, "failed", id, short(model)))
        else:
            self.memory[id][model] = change.signature
        self.do(self.changes.end(self.scheduler, id, self.now_s, ok=ok))

    def _tick(self) -> None:
        self.do(self.scheduler.tick(self.now_s))
        self.at(self.now_s + TICK_S, self._tick)

    def _read_all(self) -> None:
        for id in self.replicas:
            self.read(id)
        self.at(self.now_s + READ_S, self._read_all)


def short(model: str | None) -> str:
    return (model or "").removesuffix(":latest")


def replicas(ids: str, slots: int = 1, max_loaded: int | None = None) -> list[Replica]:
    return [Replica(id, "h", ord(id), slots=slots, max_loaded=max_loaded) for id in ids]
