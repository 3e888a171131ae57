"""Who is let in: Ollama's own protection against web pages, applied to a request's head."""

from __future__ import annotations

from typing import Final

from corral.errors import ClientError
from corral.gateway.wire.browser import BrowserRules
from corral.gateway.wire.request_head import RequestHead

MOST_HOPS: Final = 8


def answered_by_rules(rules: BrowserRules, head: RequestHead) -> tuple[int, bytes] | None:
    """Status and header lines of the answer that ends the request here: 403 for a bad Host or Origin, 204 for a
    preflight; both have no body. None: the request goes on.
    """
    host = head.host or b""
    if head.origin is not None and not rules.same_origin(head.origin, host):
        if not rules.origin_allowed(head.origin, host):
            return 403, b""
        if head.method == b"OPTIONS":
            return 204, rules.preflight_headers(head.origin)
    return None if rules.host_allowed(host) else (403, b"")


def refuse_loops(via: bytes, run: bytes) -> None:
    """Raises ClientError (508) for a request that was here before, or came a way that can only be a loop."""
    runs = via.split(b",")
    if run in runs:
        raise ClientError(508, "this request was here before: a Corral is, somewhere below itself, its own replica")
    if len(runs) >= MOST_HOPS:
        raise ClientError(508, f"this request came through {len(runs)} Corrals, which can only be a loop")


def cors_headers(rules: BrowserRules, head: RequestHead) -> bytes:
    """Header lines a page of another origin needs to read the response."""
    if head.origin is None or rules.same_origin(head.origin, head.host or b""):
        return b""
    return rules.response_headers(head.origin)
