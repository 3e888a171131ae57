"""How busy this gateway is, as a header line of its answers: ORCA, which Envoy and other proxies in front weigh by.

It is worked out a few times a second at most, and only while somebody is told.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Literal

from msgspec import Struct

from corral.gateway.ended import Ended, Listener
from corral.model import Health, ReplicaState, Snapshot

KEPT_S: Final = 0.25
WINDOW_S: Final = 10
"""Rates and waits are of the requests that ended in the last so many seconds."""
TEXT, JSON, BIN = b"TEXT", b"JSON", b"BIN"
_ASKED: Final = re.compile(rb"(?im)^endpoint-load-metrics-format:[ \t]*(text|json|bin)[ \t]*\r")
_LINE: Final = b"endpoint-load-metrics: %b %b\r\n"
_FIELDS: Final = {"rps_fractional": 6, "eps": 7, "application_utilization": 9}
"""Their numbers in ``xds.data.orca.v3.OrcaLoadReport``."""
_NAMED: Final = 8


class Load(Struct, frozen=True):
    """What is told."""

    utilization: float
    """The busy share of the slots, and what waits on top of it: 1, all are busy; 2, as many requests wait besides."""
    rps: float
    eps: float
    """Requests, and requests that failed, a second."""
    named: Mapping[str, float]


def load_of(snapshot: Snapshot, rps: float, eps: float, queue_s: float) -> Load:
    usable = [replica for replica in snapshot.replicas if _is_usable(replica)]
    slots = sum(replica.slots or 1 for replica in usable)
    busy = sum(_busy(replica) for replica in usable) / len(usable) if usable else 1.0
    named = {
        "queue_seconds": queue_s,
        "oldest_wait_seconds": snapshot.oldest_wait_s or 0.0,
        "requests_waiting": float(snapshot.queued),
        "requests_running": float(snapshot.inflight),
        "slots": float(slots),
    }
    return Load(busy + snapshot.queued / max(1, slots), rps, eps, named)


def _is_usable(replica: ReplicaState) -> bool:
    return replica.enabled and replica.held is None and replica.health is not Health.DOWN


def _busy(replica: ReplicaState) -> float:
    """Slots are for each model: the fullest counts."""
    return min(1.0, max(replica.inflight_by_model.values(), default=0) / (replica.slots or 1))


def as_text(load: Load) -> bytes:
    named = {f"named_metrics.{name}": value for name, value in load.named.items()}
    return ", ".join(f"{name}={value:.4g}" for name, value in {**_own(load), **named}.items()).encode()


def as_json(load: Load) -> bytes:
    shown = {name: float(f"{value:.4g}") for name, value in _own(load).items()}
    named = {name: float(f"{value:.4g}") for name, value in load.named.items()}
    return json.dumps({**shown, "named_metrics": named}).encode()


def as_binary(load: Load) -> bytes:
    """The message itself in base64: numbers are doubles, each name with its own a message in the message."""
    parts = [_double(_FIELDS[name], value) for name, value in _own(load).items()]
    for name, value in load.named.items():
        entry = b"\x0a" + bytes([len(name)]) + name.encode() + _double(2, value)
        parts.append(bytes([_NAMED << 3 | 2, len(entry)]) + entry)
    return base64.b64encode(b"".join(parts))


def _own(load: Load) -> dict[str, float]:
    return {"application_utilization": load.utilization, "rps_fractional": load.rps, "eps": load.eps}


def _double(number: int, value: float) -> bytes:
    return bytes([number << 3 | 1]) + struct.pack("<d", value)


_FORMATS: Final = {TEXT: as_text, JSON: as_json, BIN: as_binary}


class _Second(Struct):
    """What ended in one second."""

    number: int
    requests: int = 0
    errors: int = 0
    queue_s: float = 0.0


class LoadReport:
    """Header lines that tell the load. Hears of requests while it is on."""

    def __init__(self, snapshot: Callable[[], Snapshot], listeners: list[Listener], clock: Callable[[], float]) -> None:
        self._snapshot = snapshot
        self._listeners = listeners
        self._clock = clock
        self._mode = "off"
        self._since_s = 0.0
        self._seconds: deque[_Second] = deque(maxlen=WINDOW_S)
        self._lines: dict[bytes, bytes] = {}
        """By format, as they were worked out last."""
        self._made_at_s = float("-inf")

    def use(self, mode: Literal["off", "asked", "always"]) -> LoadReport | None:
        """Itself; None where nobody is told anything."""
        if (mode != "off") != (self._mode != "off"):
            self._seconds.clear()
            self._since_s = self._clock()
            if mode == "off":
                self._listeners.remove(self._count)
            else:
                self._listeners.append(self._count)
        self._mode = mode
        return None if mode == "off" else self

    def line(self, forward: bytes) -> bytes:
        """The line for an answer, with its CRLF; empty where it gets none. ``forward``: the request's header lines."""
        asked = _ASKED.search(forward)
        if asked is None and self._mode == "asked":
            return b""
        now_s = self._clock()
        if now_s - self._made_at_s >= KEPT_S:
            self._made_at_s, self._lines = now_s, self._made(now_s)
        return self._lines[TEXT if asked is None else asked[1].upper()]

    def _made(self, now_s: float) -> dict[bytes, bytes]:
        over_s = max(1.0, min(float(WINDOW_S), now_s - self._since_s))
        seconds = [second for second in self._seconds if second.number > now_s - WINDOW_S]
        requests = sum(second.requests for second in seconds)
        errors = sum(second.errors for second in seconds)
        queue_s = sum(second.queue_s for second in seconds) / max(1, requests)
        load = load_of(self._snapshot(), requests / over_s, errors / over_s, queue_s)
        return {name: _LINE % (name, shaped(load)) for name, shaped in _FORMATS.items()}

    def _count(self, ended: Ended) -> None:
        if ended.is_page:
            return
        number = int(self._clock())
        if not self._seconds or self._seconds[-1].number != number:
            self._seconds.append(_Second(number))
        second = self._seconds[-1]
        second.requests += 1
        second.queue_s += ended.queue_s
        if ended.outcome == "broken" or ended.outcome.startswith(("refused_", "error_5")):
            second.errors += 1
