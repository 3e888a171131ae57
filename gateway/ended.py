"""What is left of a request when it is over: the one record that counters, log, traces and pages are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from corral.gateway.trace import Trace
from corral.model import Figures, Prediction

PATH_CHARS: Final = 1000
"""More of a path is not noted: clients make it up, and the last requests are kept."""


class Attempt(Struct, frozen=True):
    """A replica was sent the request and did not answer it; times in seconds after the request's arrival."""

    replica: str
    fault: str
    sent_s: float
    ended_s: float


class Ended(Struct, frozen=True):
    """One request that is over. It knows no prompt, no answer and no key; times in seconds after its arrival.

    The order of the fields counts: see ``of_exchange``.
    """

    id: str
    at: float
    """When it arrived, in seconds since 1970."""
    kind: str
    """What was asked for, as the metrics name it: ``chat``, ``embed``, ``tags``, …; ``bad_request``: it was none;
    ``preflight``: a browser asked whether it may."""
    method: str
    path: str
    """Decoded and without its query: what a client wrote, so anything may stand in it."""
    outcome: str
    """``ok``, ``error_4xx``, ``error_5xx``, ``refused_…``, ``broken`` or ``client_gone``."""
    status: int | None = None
    """What the client was answered; None: it left before."""
    model: str | None = None
    """As the client calls it, normalised."""
    tenant: str = ""
    """A digest of its key, or else its address."""
    rank: int = 1
    """Its class: 0 interactive, 1 normal, 2 batch."""
    replica: str | None = None
    """Who answered; None: no replica did."""
    reason: str | None = None
    """Why that one, in the policy's words."""
    predicted: Prediction | None = None
    """What was predicted of it, from its sending on."""
    failed: tuple[Attempt, ...] = ()
    """Attempts before the last one."""
    queue_s: float = 0.0
    """Until it was sent for the last time, or else until its end."""
    first_byte_s: float | None = None
    total_s: float = 0.0
    request_bytes: int = 0
    lines: int = 0
    """Lines or events of a streamed answer."""
    figures: Figures | None = None
    """What the answer's end told."""
    is_page: bool = False
    """Made from what the gateway knows: no replica had to do anything, and it counts as no request."""
    attempts: int = 0
    """How often it was sent to a replica, the last time included; an answer that a task made does not tell."""
    trace: Trace | None = None
    """None: it was not traced."""


Listener = Callable[[Ended], None]
"""Is told of each request that is over, at once and on the event loop: it must be quick and may not raise."""
