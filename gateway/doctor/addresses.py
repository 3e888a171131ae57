"""Facts of the addresses that Corral wants: free, or taken by whom."""

from __future__ import annotations

import errno
import socket
from typing import Final

from corral.gateway.config.addresses import same_place
from corral.gateway.config.schema import Address, Config, ReplicaUrl
from corral.gateway.doctor.facts import OLLAMA_PORT, REPLICA_PORTS, Port
from corral.gateway.serve.listening import who_listens

_OLLAMA: Final = Address("127.0.0.1", 11434)


def ports(config: Config) -> tuple[Port, ...]:
    """Raises OSError where a host's name leads nowhere."""
    return tuple(_port(purpose, address) for purpose, address in _wanted(config) if address.port)


def local_ports(config: Config) -> frozenset[int]:
    """Ports of this machine on which the configuration lists an Ollama."""
    return frozenset(
        replica.url.port
        for replica in config.replicas
        if same_place(replica.url, Address("127.0.0.1", replica.url.port))
    )


def _wanted(config: Config) -> list[tuple[str, Address]]:
    wanted = [("listen", config.listen), ("admin_listen", config.admin_listen)]
    ours: list[Address | ReplicaUrl] = [config.listen, config.admin_listen, *(r.url for r in config.replicas)]
    if not any(same_place(address, _OLLAMA) for address in ours):
        wanted.append((OLLAMA_PORT, _OLLAMA))
    if config.owns_replicas:
        wanted.append((REPLICA_PORTS, Address("127.0.0.1", config.ollama.first_port)))
    return wanted


def _port(purpose: str, address: Address) -> Port:
    family, kind, protocol, _, place = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(place)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return Port(purpose, str(address), False, holder=who_listens(address.host, address.port))
            return Port(purpose, str(address), None, fault=error.strerror or str(error))
    return Port(purpose, str(address), True)
