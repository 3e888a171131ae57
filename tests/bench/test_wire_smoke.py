"""The benchmark's own load counts what it should, calls nothing an answer that is none, and ends with its driver."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import table, wire
from bench.contenders import free_port
from bench.load import Client, LoadError, Upstream, compile_load, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler for bench/load.c")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_load(tmp_path_factory.mktemp("load"))


@pytest.fixture
def upstream(program: Path) -> Iterator[Upstream]:
    with Upstream(program, replicas=3, core=None) as running:
        yield running


def test_every_line_of_every_stream_is_counted(program: Path, upstream: Upstream) -> None:
    port = upstream.ports[1]
    with Client.streams(program, port, count=20, lines=30, rate=100, ramp_s=0.1, core=None) as client:
        ended = client.counters(10)
    assert (ended.event, ended.done, ended.lines, ended.open) == ("finished", 20, 600, 0)
    assert upstream.state() == (0, [0, 20, 0])


def test_streams_in_steps_carry_the_same_lines(program: Path, upstream: Upstream) -> None:
    upstream.pace(1000)
    with Client.streams(program, upstream.ports[0], count=10, lines=20, rate=100, ramp_s=0, core=None) as client:
        assert client.counters(10).lines == 200


def test_the_closed_loop_counts_what_the_upstream_answered(program: Path, upstream: Upstream) -> None:
    with Client.small(program, upstream.ports[2], connections=4, core=None) as client:
        # latencies are of the answers since the last look, and between two looks there may be none
        client.until(lambda seen: seen.answers >= 200 and seen.p50_us > 0, "answering", 10)
        client.say("quit")
        ended = client.counters(10)
    assert ended.event == "end"
    sent, counted = upstream.state()[1][2], ended.answers
    assert counted <= sent <= counted + 4  # the answers still under way when it quit


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "not a 200"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"done":true}', "closed in an answer"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"done":false}', "without done:true"),
        (
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n{"done":true}\n\r\n0\r\n\r\n',
            "wrong number of lines",
        ),
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{"done":true}\n', "bad chunk size"),
    ],
)
def test_what_is_no_answer_is_an_error(program: Path, reply: bytes, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=_answer_once, args=(server, reply))
        answering.start()
        port = server.getsockname()[1]
        asking = Client.streams(program, port, count=1, lines=3, rate=100, ramp_s=0, core=None)
        with asking as client, pytest.raises(LoadError, match=said):
            client.counters(10)
        answering.join(10)


def _answer_once(server: socket.socket, reply: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(reply)


def test_nobody_listening_is_an_error(program: Path) -> None:
    asking = Client.streams(program, free_port(), count=1, lines=3, rate=100, ramp_s=0, core=None)
    with asking as client, pytest.raises(LoadError, match="cannot connect"):
        client.counters(10)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_a_quick_round_prints_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert wire.main(["--quick", "--seconds", "0.2", "--only", "nginx", "--measure", "streams"]) == 0
    printed = capfd.readouterr().out
    assert "| CPU per streamed line" in printed
    assert "FAILED" not in printed


def test_a_missed_target_is_written_as_missed() -> None:
    results = {"nginx": {"small_cpu_us": [10.0, 12.0, 11.0]}, "corral": {"small_cpu_us": [33.0, 30.0, 36.0]}}
    printed = table.render(results, {"nginx": "nginx", "corral": "Corral"}, {})
    assert "| – × nginx | 1.00 (1.00–1.00) | 3.00 (2.50–3.30) | ≤ 2.5 × nginx: **missed** |" in printed  # noqa: RUF001
