"""What was found, and which of it is a replica: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from corral.gateway.config.discovery import DiscoveryConfig
from corral.model import Replica, normalise_model

MISSES: Final = 2
"""An address must be missing in so many readings in a row before it is thought to be gone."""
EMPTY_MISSES: Final = 3
"""All of them: where a name suddenly has no address at all, the name server is the likelier culprit."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where something answers."""

    host: str
    port: int
    is_leaving: bool = False
    """It is about to end: what it is doing may finish, and it gets nothing new."""
    names_port: bool = False
    """Its port is not the same for all, and belongs to its name."""

    @property
    def id(self) -> str:
        """The same for the same address, and a name that headers, metrics and routes can carry."""
        host = self.host.replace(":", "-")
        return f"{host}-{self.port}" if self.names_port else host


@dataclass(slots=True)
class _Seen:
    endpoint: Endpoint
    misses: int = 0
    left_s: float | None = None
    """Since when it gets no new requests."""


class Known:
    """Turns readings into replicas: a new address is one at once; one that went is kept a while, without requests."""

    def __init__(self, leaving_s: float) -> None:
        self.leaving_s = leaving_s
        self._seen: dict[str, _Seen] = {}

    def read(self, found: Iterable[Endpoint], now_s: float, *, is_final: bool) -> None:
        """All that there is now. ``is_final``: whoever says so would know; else one reading alone removes nothing."""
        there = {endpoint.id: endpoint for endpoint in found}
        needed = 1 if is_final else MISSES if there else EMPTY_MISSES
        for id, endpoint in there.items():
            seen = self._seen.setdefault(id, _Seen(endpoint))
            seen.endpoint, seen.misses = endpoint, 0
            seen.left_s = (now_s if seen.left_s is None else seen.left_s) if endpoint.is_leaving else None
        for id in self._seen.keys() - there.keys():
            seen = self._seen[id]
            seen.misses += 1
            if seen.misses >= needed and seen.left_s is None:
                seen.left_s = now_s

    def forget_old(self, now_s: float) -> None:
        """Those that left long ago. One that is still listed as leaving is still at work."""
        for id, seen in list(self._seen.items()):
            if seen.left_s is not None and seen.misses and now_s - seen.left_s >= self.leaving_s:
                del self._seen[id]

    @property
    def endpoints(self) -> list[Endpoint]:
        return [self._seen[id].endpoint for id in sorted(self._seen)]

    @property
    def leaving(self) -> dict[str, bool]:
        """By id of those that get nothing new: whether they are still listed."""
        return {id: not seen.misses for id, seen in self._seen.items() if seen.left_s is not None}


def replicas_of(found: Mapping[str, Iterable[Endpoint]], config: DiscoveryConfig) -> tuple[Replica, ...]:
    """By what found them. An address that was found twice is one replica."""
    made: dict[str, Replica] = {}
    for source, endpoints in found.items():
        for endpoint in endpoints:
            made.setdefault(endpoint.id, _replica(endpoint, source, config))
    return tuple(made.values())


def _replica(endpoint: Endpoint, source: str, config: DiscoveryConfig) -> Replica:
    return Replica(
        id=endpoint.id,
        host=endpoint.host,
        port=endpoint.port,
        weight=config.weight,
        slots=config.slots,
        models=frozenset(map(normalise_model, config.models)) or None,
        max_loaded=config.max_loaded,
        store=endpoint.id if config.store is None else config.store,
        admin=None if config.admin_port is None else (endpoint.host, config.admin_port),
        found_by=source,
    )
