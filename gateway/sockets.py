"""The sockets that the gateway listens on: bound here, or handed over by a service manager, which keeps them open while
the gateway is restarted, so that who connects meanwhile waits instead of being refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final

from corral.errors import OperatorError
from corral.gateway.config import Address, Config
from corral.gateway.serve.listening import explain_listen_error

BACKLOG: Final = 4096
CLIENTS: Final = "clients"
ADMIN: Final = "admin"
_FIRST: Final = 3
"""The descriptor of the first socket that a service manager hands over; the others follow."""
_KEEPALIVE_S: Final = (60, 15, 4)
"""Idle before the first probe, between probes, probes: a client whose machine is gone is noticed in two minutes."""


def handed_over(environ: MutableMapping[str, str], pid: int | None = None) -> dict[str, socket.socket]:
    """The sockets meant for this process, by name, taken out of ``environ`` so that nobody else takes them for its own.

    Raises :class:`OperatorError` where there is one that nobody knows what to do with.
    """
    pids, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pids != str(os.getpid() if pid is None else pid) or not count.isdecimal():
        return {}
    found: dict[str, socket.socket] = {}
    for number, name in enumerate(names.split(":") if names else [""] * int(count)):
        _check(name, found)
        found[name] = _taken(_FIRST + number, name)
    return found


@contextmanager
def listening(address: Address, handed: socket.socket | None = None) -> Iterator[socket.socket]:
    """A listening socket: the one that was handed over, else one on ``address``.

    Raises :class:`OperatorError`, naming the address and what to do.
    """
    listener = _bound(address) if handed is None else handed
    with listener:
        _keep_alive(listener)
        listener.setblocking(False)
        yield listener


@contextmanager
def both_listening(config: Config, environ: MutableMapping[str, str]) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Where clients connect, and the admin port; see :func:`handed_over` and :func:`listening`.

    It needs little of Corral: a gateway listens first and imports the rest then, so that who connects meanwhile waits.
    """
    handed = handed_over(environ)
    with (
        listening(config.listen, handed.get(CLIENTS)) as clients,
        listening(config.admin_listen, handed.get(ADMIN)) as admin,
    ):
        yield clients, admin


def _check(name: str, found: dict[str, socket.socket]) -> None:
    if name not in (CLIENTS, ADMIN) or name in found:
        problem = "twice" if name in found else "which is not known"
        raise OperatorError(
            f"the service manager handed over a socket named {name!r}, {problem}\n"
            f"  give its socket unit FileDescriptorName={CLIENTS} (where clients connect) or ={ADMIN} (the admin port)"
        )


def _taken(descriptor: int, name: str) -> socket.socket:
    try:
        handed = socket.socket(fileno=descriptor)
        is_right = handed.family in (socket.AF_INET, socket.AF_INET6) and bool(
            handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )
    except OSError:
        is_right = False
    if not is_right:
        raise OperatorError(
            f"the socket {name!r} that the service manager handed over is no listening TCP socket\n"
            "  its socket unit needs ListenStream=HOST:PORT, and Accept=no"
        )
    handed.set_inheritable(False)
    return handed


def _bound(address: Address) -> socket.socket:
    listener: socket.socket | None = None
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise explain_listen_error(error, address.host, address.port) from error
    return listener


def _keep_alive(listener: socket.socket) -> None:
    """Accepted connections inherit these: a client that vanished without a word is noticed all the same."""
    idle_s, between_s, probes = _KEEPALIVE_S
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", idle_s), ("TCP_KEEPINTVL", between_s), ("TCP_KEEPCNT", probes)):
        option = getattr(socket, name, None)  # not on every platform
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
