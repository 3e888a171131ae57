"""What the carrier carries: tickets that do something when the scheduler decides about them."""

from __future__ import annotations

from abc import abstractmethod

from corral.errors import Fault, Refusal
from corral.gateway.schedule.ticket import Lease, Ticket


class Carried(Ticket):
    """A ticket with somebody behind it: a client's request on its way, or an errand of the gateway's own."""

    __slots__ = ()

    @abstractmethod
    def send(self, lease: Lease) -> None:
        """Send the request to the lease's replica; then exactly one of ``finished``, ``spared`` and ``failed``."""

    @abstractmethod
    def refuse(self, refusal: Refusal, retry_after_s: int | None) -> None:
        """It has ended without an answer of a replica."""

    @abstractmethod
    def interrupt(self, fault: Fault) -> None:
        """Its replica went down before the first byte: ``failed`` with this fault, unless it has ended meanwhile."""

    @abstractmethod
    def abandon(self) -> None:
        """Something that must not happen did: give the lease back, and let nobody wait."""
