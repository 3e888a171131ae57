"""A ticket stands for one request from its arrival to its end; a lease is the capacity that it holds meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corral.model import Choice, Decision, Prediction, Replica, RequestKind, RouteRequest

if TYPE_CHECKING:
    from corral.gateway.schedule.below import Leaf
    from corral.gateway.schedule.forecast import Ask


class Ticket:
    """One request in the scheduler. Whoever carries requests may subclass it; only the scheduler writes its fields.

    A ticket ends exactly once: by ``finish`` or ``spared`` after a :class:`Send`, by a :class:`Refuse`, or by
    ``cancel`` while it waits.
    """

    __slots__ = (
        "arrived_at_s",
        "ask",
        "asked",
        "cost_s",
        "decision",
        "excluded",
        "given",
        "id",
        "lease",
        "queued",
        "replayable",
        "request",
        "sequence",
        "stale",
        "submitted_at_s",
    )

    def __init__(self, request: RouteRequest, arrived_at_s: float) -> None:
        self.request = request
        self.id = ""
        """What its client knows it by; empty: it has no client."""
        self.given: RouteRequest | None = None
        """What its client asked for, where :attr:`request` is for another name of the same."""
        self.arrived_at_s = arrived_at_s
        self.submitted_at_s = arrived_at_s
        self.replayable = True
        """Set to False by its owner once the body cannot be sent again: then no failure is retried."""
        self.sequence = -1
        """Order of arrival, given by the scheduler: a retried ticket waits at this place."""
        self.queued = False
        self.excluded: tuple[str, ...] = ()
        """Ids of the replicas that failed it; none of them gets it again."""
        self.stale = False
        """Its last attempt met a closed keep-alive connection."""
        self.asked = False
        """The replicas were asked who has its model since it was submitted; what they do not know now, nobody has."""
        self.ask: Ask | None = None
        """What it needs, as thought when it came."""
        self.cost_s = 1.0
        """GPU-seconds that it is predicted to take."""
        self.lease: Lease | None = None
        self.decision: Decision | None = None

    def __repr__(self) -> str:
        state = "queued" if self.queued else f"on {self.lease.replica.id}" if self.lease else "idle"
        return f"<{type(self).__name__} {self.sequence} {self.request.kind.value} {self.request.model} {state}>"


_IN_CLOUD = (RequestKind.INFERENCE, RequestKind.CLOUD)
_LATE = 1.5
"""A first byte that comes no later than so many times the prediction was not late."""


class Lease:
    """One slot of one replica, or only a place in its count; held until the response *body* ends."""

    __slots__ = (
        "ask",
        "cached_tokens",
        "choice",
        "committed",
        "first_at_s",
        "inflight",
        "key",
        "leaf",
        "mark",
        "models_at_start",
        "predicted",
        "replica",
        "sent_at_s",
        "ticket",
        "waited_at_start_s",
    )

    def __init__(self, replica: Replica, ticket: Ticket, key: str | None, sent_at_s: float) -> None:
        self.replica = replica
        self.ticket = ticket
        self.key = key
        """The model whose slot it holds; None: it holds none."""
        self.sent_at_s = sent_at_s
        self.committed = False
        """The first byte of the response was seen: from now on nothing is retried."""
        self.first_at_s: float | None = None
        self.inflight = 0
        """Requests for its model then in flight there, with it."""
        self.ask: Ask | None = None
        self.choice: Choice | None = None
        """What the policy saw; only where it learns from what becomes of it."""
        self.predicted: Prediction | None = None
        self.cached_tokens = 0.0
        """Tokens of its prompt that were thought to be in the replica's cache."""
        self.waited_at_start_s = 0.0
        """For prompts that were there before it, as predicted."""
        self.models_at_start = 1.0
        """How many models shared the GPU then, its own among them."""
        self.leaf: Leaf[Any] | None = None
        """Where below its replica it counts, where that is a Corral."""
        self.mark: tuple[float, float, float] | None = None
        """When its answer began, and what had gone on at its replica until then, see ``Member.company``."""

    @property
    def is_cloud(self) -> bool:
        """What was asked for runs in Ollama's cloud: how that goes says nothing of the replica."""
        return self.key is None and self.ticket.request.kind in _IN_CLOUD

    def queued_s(self) -> float | None:
        """What it waited inside the replica, as far as its first byte was later than predicted; None: not known."""
        predicted = self.predicted
        if predicted is None or self.first_at_s is None or predicted.prefill_s <= 0.0:
            return None
        expected_s = (predicted.wait_s + predicted.prefill_s) * predicted.slowdown
        return max(0.0, self.first_at_s - self.sent_at_s - _LATE * expected_s)
