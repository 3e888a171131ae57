"""What became of a request, as a record for those who count and tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corral.gateway.ended import Ended
from corral.gateway.wire.request_head import RequestHead
from corral.model import Figures

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway
    from corral.gateway.wire.exchange import Exchange


def outcome_of(status: int) -> str:
    return "ok" if status < 400 else f"error_{status // 100}xx"


def of_exchange(exchange: Exchange, outcome: str, status: int | None, figures: Figures | None) -> Ended:
    gateway, head, request = exchange.client.gateway, exchange.head, exchange.request
    now_s, arrived_s = gateway.clock(), exchange.arrived_at_s
    sent_s, first_s, decision = exchange.sent_at_s, exchange.first_byte_at_s, exchange.decision
    return Ended(
        id=(head.request_id or b"-").decode(),
        at=gateway.wall() - (now_s - arrived_s),
        kind=exchange.route.label,
        method=head.method.decode(),
        path=head.path,
        outcome=outcome,
        status=status,
        model=request.asked,
        tenant=request.tenant,
        rank=request.rank,
        replica=None if decision is None else decision.replica_id,
        reason=None if decision is None else decision.reason,
        predicted=None if decision is None else decision.predicted,
        failed=tuple(exchange.failed),
        queue_s=(now_s if sent_s is None else sent_s) - arrived_s,
        first_byte_s=None if first_s is None else first_s - arrived_s,
        total_s=now_s - arrived_s,
        request_bytes=request.body_bytes,
        lines=0 if exchange.reader is None else exchange.reader.lines,
        figures=figures,
    )


def of_bad_request(gateway: Gateway, head: RequestHead | None, status: int, *, tenant: str) -> Ended:
    """A request that ended at its head or body."""
    return Ended(
        id=((head and head.request_id) or b"-").decode(),
        at=gateway.wall(),
        kind="bad_request",
        method="-" if head is None else head.method.decode(),
        path="-" if head is None else head.path,
        outcome=outcome_of(status),
        status=status,
        tenant=tenant,
    )
