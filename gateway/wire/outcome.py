"""What became of a request, as a record for those who count and tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corral.gateway.ended import PATH_CHARS, Ended
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
    # In the order of its fields: by their names it would take seven times as long, for every request.
    return Ended(
        exchange.id or "-",
        gateway.wall() - (now_s - arrived_s),
        exchange.route.label,
        head.method.decode(),
        head.path[:PATH_CHARS],
        outcome,
        status,
        request.asked,
        request.tenant,
        request.rank,
        None if decision is None else decision.replica_id,
        None if decision is None else decision.reason,
        None if decision is None else decision.predicted,
        tuple(exchange.failed),
        (now_s if sent_s is None else sent_s) - arrived_s,
        None if first_s is None else first_s - arrived_s,
        now_s - arrived_s,
        request.body_bytes,
        0 if exchange.reader is None else exchange.reader.lines,
        figures,
        False,  # no page
        exchange.attempts,
        None if head.trace is None else head.trace.over(),
    )


def of_bad_request(gateway: Gateway, id: bytes, head: RequestHead | None, status: int | None, *, tenant: str) -> Ended:
    """A request that ended at its head or body; ``id``: as its answer tells it; ``status`` None: its client left. One
    that went well was a browser's question whether it may ask (CORS)."""
    is_preflight = status is not None and status < 400
    return Ended(
        id=id.decode(),
        at=gateway.wall(),
        kind="preflight" if is_preflight else "bad_request",
        method="-" if head is None else head.method.decode(),
        path="-" if head is None else head.path[:PATH_CHARS],
        outcome="client_gone" if status is None else outcome_of(status),
        status=status,
        tenant=tenant,
        is_page=is_preflight,
    )
