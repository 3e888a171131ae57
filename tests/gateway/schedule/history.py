"""Histories: a scheduler's life as lines of text, ``event -> effects``, played and compared.

Events: ``at 2.5`` · ``submit 1 [model] [kind] [store]`` · ``first 1`` · ``finish 1`` · ``broke 1`` · ``spare 1`` ·
``cancel 1`` · ``fail 1 connect`` · ``probe a refused`` · ``heard a`` · ``tags a m n`` · ``ps a m`` ·
``drain a`` · ``resume a`` · ``hold a coming`` · ``hold a gone`` · ``release a`` · ``replicas a:2 b=m`` (id:slots, and
the only models it serves) · ``freeze m n`` (these alone) · ``left a m`` · ``limits 2 300`` · ``tick`` · ``stop``.

Effects: ``send 1 a`` · ``refuse 1 QUEUE_FULL 5`` · ``refresh`` · ``a down`` · ``interrupt 1`` · ``load a m`` ·
``unload a m``; nothing, if none.

A model is written without its tag. Unless a history says otherwise every replica is up, and has the models m and n.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from corral.errors import Fault
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
from corral.gateway.schedule.health import HealthRules
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import (
    Decision,
    Hold,
    InstalledModel,
    LoadedModel,
    OllamaSample,
    Policy,
    ProbeResult,
    Replica,
    ReplicaView,
    RequestKind,
    RouteRequest,
)

PROBES = {
    "answered": ProbeResult.ANSWERED,
    "refused": ProbeResult.REFUSED,
    "timeout": ProbeResult.TIMED_OUT,
    "nonsense": ProbeResult.NONSENSE,
}
ENDS = {"first", "finish", "broke", "spare", "cancel", "fail"}


class First:
    """The first candidate: with it a history is exact."""

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(candidates[0].id, "first")


class Numbered(Ticket):
    """A ticket with the number that its history gave it."""

    __slots__ = ("number",)

    def __init__(self, number: str, request: RouteRequest, arrived_at_s: float) -> None:
        super().__init__(request, arrived_at_s)
        self.number = number


def installed(*words: str) -> tuple[InstalledModel, ...]:
    """``m`` is an installed model, ``m!`` a stub of a cloud model, ``m=x`` one with the manifest ``x``."""
    return tuple(map(_installed, words))


def _installed(word: str) -> InstalledModel:
    name, _, digest = word.partition("=")
    name, is_remote = name.removesuffix("!"), name.endswith("!")
    return InstalledModel(f"{name}:latest", digest or f"manifest of {name}", remote=is_remote)


def loaded(*names: str) -> tuple[LoadedModel, ...]:
    return tuple(LoadedModel(f"{name}:latest", 1, 1, None) for name in names)


class Stage:
    """A scheduler, a clock that the test moves, and the tickets by number."""

    def __init__(
        self,
        replicas: str = "a b",
        *,
        policy: Policy | None = None,
        limits: QueueLimits | None = None,
        rules: HealthRules | None = None,
        known: bool = True,
    ) -> None:
        self.now_s = 0.0
        self.tickets: dict[str, Numbered] = {}
        self.scheduler: Scheduler[Numbered] = Scheduler(
            policy or First(), "first", limits or QueueLimits(), Random(1), rules or HealthRules()
        )
        self.play(f"replicas {replicas}")
        for id in [replica(word).id for word in replicas.split()] if known else []:
            self.play(f"probe {id} answered", f"tags {id} m n")

    def play(self, *events: str) -> str:
        """The effects of all these events, in words."""
        effects = [words(effect) for event in events for effect in self._event(*event.split())]
        return ", ".join(effects)

    def send(self, number: str, model: str = "m") -> str:
        """Submit a ticket that is expected to be sent at once; the id of its replica."""
        self.play(f"submit {number} {model}")
        lease = self.tickets[number].lease
        assert lease is not None, f"{number} was not sent"
        return lease.replica.id

    def _event(self, name: str, *words: str) -> list[Effect[Numbered]]:
        scheduler, now_s = self.scheduler, self.now_s
        first = words[0] if words else ""
        ticket = self.tickets.get(first)
        match name:
            case "at":
                self.now_s = float(first)
                return []
            case "submit":
                return self._submit(*words)
            case "probe":
                return scheduler.probed(first, PROBES[words[1]], now_s)
            case "heard":
                scheduler.progress(first, now_s)
                return []
            case "tags" | "ps":
                lists = (installed(*words[1:]), None) if name == "tags" else (None, loaded(*words[1:]))
                return scheduler.sampled(OllamaSample(first, now_s, None, *lists), now_s)
            case "tick":
                return scheduler.tick(now_s)
        if name not in ENDS:
            return self._operate(name, words)
        assert ticket is not None, f"no ticket {first}"
        return self._end(name, ticket, *words[1:])

    def _operate(self, name: str, words: Sequence[str]) -> list[Effect[Numbered]]:
        """What the operator does, or who changes a store."""
        scheduler, now_s = self.scheduler, self.now_s
        match name:
            case "drain" | "resume":
                return scheduler.set_enabled(words[0], name == "resume", now_s)
            case "hold" | "release":
                hold = Hold("starting", coming=words[1] == "coming") if name == "hold" else None
                return scheduler.set_hold(words[0], hold, now_s)
            case "replicas":
                return scheduler.set_replicas([replica(word) for word in words], now_s)
            case "freeze":
                return scheduler.freeze(frozenset(f"{model}:latest" for model in words), now_s)
            case "left":
                return scheduler.left_memory(words[0], f"{words[1]}:latest", now_s)
            case "limits":
                return scheduler.set_limits(QueueLimits(int(words[0]), float(words[1])), now_s)
            case "stop":
                return scheduler.stop(now_s)
        raise AssertionError(f"no event {name} {' '.join(words)}")

    def _submit(
        self, number: str, model: str = "m", kind: str = "inference", store: str | None = None
    ) -> list[Effect[Numbered]]:
        request = RouteRequest(RequestKind(kind), None if model == "-" else f"{model}:latest", store=store)
        ticket = self.tickets[number] = Numbered(number, request, self.now_s)
        return self.scheduler.submit(ticket, self.now_s)

    def _end(self, name: str, ticket: Numbered, fault: str = "") -> list[Effect[Numbered]]:
        match name:
            case "first":
                self.scheduler.first_byte(ticket, self.now_s)
                return []
            case "cancel":
                self.scheduler.cancel(ticket)
                return []
            case "finish" | "broke":
                return self.scheduler.finish(ticket, self.now_s, ok=name == "finish")
            case "spare":
                return self.scheduler.spared(ticket, self.now_s)
            case "fail":
                return self.scheduler.failed(ticket, Fault[fault.upper()], self.now_s)
        raise AssertionError(f"no event {name}")


def replica(word: str) -> Replica:
    """``a``, ``a:4``, ``a:4@9001``, ``a%big`` or ``a=m,n``: id, slots, port, store, the only models it serves."""
    word, _, models = word.partition("=")
    word, _, store = word.partition("%")
    word, _, port = word.partition("@")
    id, _, slots = word.partition(":")
    return Replica(
        id,
        "127.0.0.1",
        int(port or 1000 + sum(id.encode())),
        slots=int(slots) if slots else None,
        models=frozenset(f"{model}:latest" for model in models.split(",")) if models else None,
        store=store or "shared",
    )


def words(effect: Effect[Numbered]) -> str:
    match effect:
        case Send(ticket, lease, _):
            return f"send {ticket.number} {lease.replica.id}"
        case Refuse(ticket, refusal, retry_after_s):
            return f"refuse {ticket.number} {refusal.name}" + (f" {retry_after_s}" if retry_after_s else "")
        case RefreshTags():
            return "refresh"
        case HealthChanged(replica_id, _, after, _):
            return f"{replica_id} {after.value}"
        case Interrupt(ticket, _):
            return f"interrupt {ticket.number}"
        case Load(of, model, signature, _):
            return f"load {of.id} {model.removesuffix(':latest')} {signature}".strip()
        case Unload(of, model, _):
            return f"unload {of.id} {model.removesuffix(':latest')}"
        case LetGo(of, model):
            return f"let go {of.id} {model.removesuffix(':latest')}"


def check(history: str) -> None:
    """Play a history line by line. Its first line may be ``replicas …``; then it begins with those, all up."""
    lines = [line.strip() for line in history.strip().splitlines()]
    head = lines.pop(0).removeprefix("replicas ") if lines[0].startswith("replicas ") else "a b"
    stage = Stage(head)
    for at, line in enumerate(lines):
        event, _, expected = line.partition("->")
        happened = stage.play(event.strip())
        assert happened == expected.strip(), (
            f"line {at + 1}: {event.strip()} -> {happened} (expected {expected.strip()})"
        )
