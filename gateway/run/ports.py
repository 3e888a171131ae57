"""Chooses a free loopback port for each replica, and keeps it as long as it stays free."""

from __future__ import annotations

import logging
import socket
from typing import Final

log = logging.getLogger(__name__)

_HOST: Final = "127.0.0.1"
_LAST: Final = 65_535


class Ports:
    """The ports of all replicas, by id."""

    def __init__(self, first_port: int) -> None:
        self.first_port = first_port
        """Where new replicas begin to look."""
        self._ports: dict[str, int] = {}

    def of(self, replica_id: str) -> int:
        """The port it has, or would be given first."""
        return self._ports.get(replica_id, self.first_port)

    def has(self, replica_id: str) -> bool:
        return replica_id in self._ports

    def keep(self, replica_id: str, port: int) -> None:
        """It has this port already."""
        self._ports[replica_id] = port

    def drop(self, replica_id: str) -> None:
        self._ports.pop(replica_id, None)

    def choose(self, replica_id: str) -> int:
        """A port that is free now: its last one, else the next. Raises OSError where none is."""
        before = self._ports.get(replica_id)
        if before is not None:
            if is_free(before):
                return before
            log.warning('port_taken replica=%s port=%d why="another program listens there"', replica_id, before)
        others = {port for id, port in self._ports.items() if id != replica_id}
        for port in range(self.first_port, _LAST + 1):
            if port not in others and port != before and is_free(port):
                self._ports[replica_id] = port
                return port
        raise OSError(f"no free port from {self.first_port} upwards")


def is_free(port: int) -> bool:
    """Whether a server could listen there now, as an Ollama would."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True
