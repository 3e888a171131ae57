"""A free port near the usual one, for whoever named none."""

from __future__ import annotations

import socket
from typing import Final

import click

from corral.gateway.cli.messages import port_moved
from corral.gateway.config import Address
from corral.gateway.config.addresses import parse_address

TRIES: Final = 100


def next_free(wanted: int, taken: set[int], what: str) -> Address:
    """``wanted`` on loopback, or the first free port above it, said aloud."""
    for port in range(wanted, wanted + TRIES):
        if port not in taken and _is_free(port):
            break
    else:
        port = 0
    if port != wanted:
        click.echo(port_moved(what, wanted, port) if port else f"no free port near {wanted}: {what} uses any free one")
    return Address("127.0.0.1", port)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def given_address(text: str | None, option: str) -> Address | None:
    """The address that an option gives; raises click's error where it is none."""
    try:
        return None if text is None else parse_address(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
