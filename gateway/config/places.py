"""Where something listens or answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens; port 0 means a free port the kernel picks."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ReplicaUrl:
    """Where a replica answers: always plain HTTP, a host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{Address(self.host, self.port)}"
