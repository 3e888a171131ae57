"""What the scheduler wants done. It returns these; whoever called it carries them out, in order."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeAlias, TypeVar

from corral.errors import Fault, Refusal
from corral.gateway.schedule.ticket import Lease, Ticket
from corral.model import Decision, Health, Replica

T = TypeVar("T", bound=Ticket)


class Send(NamedTuple, Generic[T]):
    """Send the request to ``lease.replica``; afterwards call exactly one of ``finish``, ``spared``, ``failed``."""

    ticket: T
    lease: Lease
    decision: Decision


class Refuse(NamedTuple, Generic[T]):
    """Answer the client without a replica; the ticket has ended."""

    ticket: T
    refusal: Refusal
    retry_after_s: int | None
    """Whole seconds until a place is likely; None where waiting is not what would help."""


class RefreshTags(NamedTuple):
    """Read the list of installed models of every replica now, and report each with ``sampled``."""


class HealthChanged(NamedTuple):
    """A replica's health flipped."""

    replica_id: str
    before: Health
    after: Health
    reason: str


class Interrupt(NamedTuple, Generic[T]):
    """The replica went down before the first byte: close the connection and call ``failed(ticket, fault)``.

    Nothing to do where the request has ended or has had its first byte in the meantime.
    """

    ticket: T
    fault: Fault = Fault.HUNG


class Load(NamedTuple):
    """Have the replica load the model by a request of the gateway's own, then call ``load_ended`` with ``number``."""

    replica: Replica
    model: str
    signature: str
    """The options to load it with, as in :class:`RouteRequest`."""
    number: int
    keep_alive_s: float | None = None
    """How long it is to stay without requests, as a client wants it, infinity for ever; None: as its replica does."""


class Unload(NamedTuple):
    """Have the replica let go of the model, wait until it is gone, then call ``unload_ended`` with ``number``."""

    replica: Replica
    model: str
    number: int


class LetGo(NamedTuple):
    """Have the replica let go of the model as soon as nobody uses it there; nothing waits for that."""

    replica: Replica
    model: str


Effect: TypeAlias = Send[T] | Refuse[T] | RefreshTags | HealthChanged | Interrupt[T] | Load | Unload | LetGo
