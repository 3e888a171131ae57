"""Ports: free when they are chosen, and kept as long as they are."""

from __future__ import annotations

import socket

import pytest

from corral.gateway.run.ports import Ports, is_free
from tests.gateway.run.stage import free_port


def test_replicas_get_ports_of_their_own_and_keep_them() -> None:
    ports = Ports(free_port())
    chosen = {id: ports.choose(id) for id in "abc"}
    assert len(set(chosen.values())) == 3
    assert {id: ports.choose(id) for id in "cba"} == chosen
    assert {id: ports.of(id) for id in "abc"} == chosen


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_is_taken_is_passed_over_and_told(host: str, caplog: pytest.LogCaptureFixture) -> None:
    ports = Ports(free_port())
    port = ports.choose("a")
    with socket.create_server((host, port)):
        assert not is_free(port)
        other = ports.choose("a")
        assert other > port
    assert f"port_taken replica=a port={port}" in caplog.text
    assert ports.choose("a") == other, "it stays where it went"


def test_a_port_whose_old_connections_linger_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0] as accepted:
            accepted.shutdown(socket.SHUT_RDWR)
    assert is_free(port)


def test_a_dropped_replica_leaves_its_port_to_others() -> None:
    ports = Ports(free_port())
    port = ports.choose("a")
    ports.drop("a")
    assert ports.choose("b") == port


def test_no_free_port_is_an_error_and_no_endless_search() -> None:
    with pytest.raises(OSError, match="no free port from 65536 upwards"):
        Ports(65_536).choose("a")
