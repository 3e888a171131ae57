"""Sockets that a service manager hands over, and that stay open while the gateway is restarted."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from corral.errors import OperatorError
from corral.gateway.config import Address
from corral.gateway.sockets import ADMIN, CLIENTS, handed_over, listening
from tests.e2e.processes import ask
from tests.gateway.service_manager import PATIENCE_S, ear, one_replica, service
from tests.probes.fake_ollama import fake_ollama


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def told(*names: str, pid: int | None = None) -> dict[str, str]:
    mine = str(os.getpid() if pid is None else pid)
    return {"LISTEN_PID": mine, "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names), "HOME": "/root"}


def test_sockets_for_another_process_are_left_alone_and_said_to_nobody_else() -> None:
    environ = told(CLIENTS, pid=1)
    assert handed_over(environ) == {}
    assert environ == {"HOME": "/root"}


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("web",), "'web', which is not known"),
        (("corral.socket", "corral.socket"), "'corral.socket', which is not known"),
    ],
)
def test_a_socket_that_nobody_knows_is_refused_with_what_to_do(names: tuple[str, ...], problem: str) -> None:
    with pytest.raises(OperatorError, match=problem) as refused:
        handed_over(told(*names))
    assert "FileDescriptorName=clients" in str(refused.value)


async def test_what_does_not_listen_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        async with service("serve", sockets={CLIENTS: datagrams}) as gateway:
            await gateway.until("is no listening TCP socket")
            assert await gateway.ended() == 1


def test_a_socket_that_was_handed_over_is_used_as_it_is_and_the_other_is_bound(opened: ExitStack) -> None:
    given = socket.create_server(("127.0.0.1", 0))
    where = given.getsockname()
    used = opened.enter_context(listening(Address("127.0.0.1", 1), given))
    assert used.getsockname() == where
    assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    bound = opened.enter_context(listening(Address("127.0.0.1", 0), None))
    assert bound.getsockname() != where


@pytest.mark.e2e
async def test_nobody_is_refused_while_a_service_with_handed_sockets_is_restarted(
    tmp_path: Path, opened: ExitStack
) -> None:
    clients = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
    admin = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    manager = opened.enter_context(ear())
    sockets = {ADMIN: admin, CLIENTS: clients}
    answers: list[int] = []
    is_over = asyncio.Event()

    async def connect_again_and_again() -> None:
        while not is_over.is_set():
            status, _ = await ask(clients.getsockname()[1], "GET", "/api/version", limit_s=30)
            answers.append(status)

    async def answered(more: int) -> None:
        before = len(answers)
        async with asyncio.timeout(PATIENCE_S):
            while len(answers) < before + more:
                await asyncio.sleep(0.01)

    async with fake_ollama() as ollama, asyncio.TaskGroup() as visitors:
        path = str(one_replica(tmp_path, ollama.replica().port))  # its addresses are not the sockets'
        async with service("serve", "--config", path, sockets=sockets, notify=manager.address) as first:
            await manager.until("READY")
            visiting = [visitors.create_task(connect_again_and_again()) for _ in range(4)]
            await answered(20)
            first.process.send_signal(signal.SIGTERM)
            assert await first.ended() == 0
        async with service("serve", "--config", path, sockets=sockets, notify=manager.address):
            await manager.until("READY")
            await answered(20)
            assert (await ask(admin.getsockname()[1], "GET", "/healthz"))[0] == 200
            is_over.set()
            await asyncio.wait(visiting)
    assert set(answers) == {200}
