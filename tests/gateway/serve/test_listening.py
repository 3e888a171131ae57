"""Why an address cannot be listened on, and what to do."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from corral.gateway.serve.listening import explain_address_in_use, explain_listen_error, ollama_version


@contextmanager
def answering(path: str, body: bytes, **headers: str) -> Iterator[int]:
    """A web server that answers one path; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == path else 404)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body if self.path == path else b"404 page not found")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_an_ollama_in_the_way_is_named_with_three_ways_out() -> None:
    with answering("/api/version", b'{"version":"0.32.15"}') as port:
        said = str(explain_address_in_use("127.0.0.1", port))
    assert said.startswith(f"127.0.0.1:{port} is taken by an Ollama (version 0.32.15)")
    assert "OLLAMA_HOST=127.0.0.1:21001 ollama serve" in said
    assert 'replicas: {id: a, url: "http://127.0.0.1:21001"}' in said
    assert "systemctl stop ollama" in said
    assert f"listen: 127.0.0.1:{port + 2}" in said


def test_an_ollama_on_every_interface_is_asked_on_the_loopback_one() -> None:
    with answering("/api/version", b'{"version":"0.32.15"}') as port:
        assert "0.32.15" in str(explain_address_in_use("0.0.0.0", port))


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/api/version", b'{"version":"0.32.15"}', {"x_request_id": "1"}),
        ("/healthz", b'{"program":"corral"}', {}),
    ],
)
def test_another_corral_in_the_way_is_told_from_an_ollama(path: str, body: bytes, headers: dict[str, str]) -> None:
    with answering(path, body, **headers) as port:
        assert f"127.0.0.1:{port} is taken by another Corral" in str(explain_address_in_use("127.0.0.1", port))


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"version":7}', b'{"version":"\\u001b[31m"}', b""])
def test_another_web_server_is_not_taken_for_an_ollama(body: bytes) -> None:
    with answering("/api/version", body) as port:
        assert ollama_version("127.0.0.1", port) is None
        said = str(explain_address_in_use("127.0.0.1", port))
    assert said.startswith(f"127.0.0.1:{port} is taken by another program")
    assert f"ss -ltnp 'sport = :{port}'" in said


def test_a_silent_program_in_the_way_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "another program" in str(explain_address_in_use("127.0.0.1", port))


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (errno.EADDRNOTAVAIL, "cannot listen on 10.0.0.1:80: no interface of this machine has that address"),
        (errno.EACCES, "cannot listen on 10.0.0.1:80: ports below 1024 need extra rights"),
        (errno.EMFILE, "cannot listen on 10.0.0.1:80: too many"),
    ],
)
def test_other_reasons_are_said_in_words(number: int, wanted: str) -> None:
    assert str(explain_listen_error(OSError(number, "too many"), "10.0.0.1", 80)).startswith(wanted)


def test_a_taken_address_is_explained_as_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with socket.socket() as second, pytest.raises(OSError, match="in use") as caught:
            second.bind(("127.0.0.1", port))
        assert "is taken by" in str(explain_listen_error(caught.value, "127.0.0.1", port))
