"""What the browser tests look at: a demo under load, and a relay whose connections can be cut."""

from __future__ import annotations

import http.client
import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Final
from urllib.parse import urlsplit

from tests.gateway.cli.shell import environment

DEMO: Final = (sys.executable, "-m", "corral", "demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
START_S: Final = 40.0
MODELS: Final = ("llama3.1:8b", "qwen2.5:7b")
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Stack:
    """A running demo."""

    def __init__(self, clients: str, admin: str) -> None:
        self.clients = clients
        self.admin = admin

    def ask(self, model: str, tokens: int = 20, id: str = "") -> int:
        """One answer, read to its end: its status."""
        body = json.dumps({"model": model, "prompt": "why", "options": {"num_predict": tokens}})
        return _request(self.clients, "POST", "/api/generate", body, {"X-Request-Id": id} if id else {})[0]

    def snapshot(self) -> dict[str, Any]:
        page: dict[str, Any] = json.loads(_request(self.admin, "GET", "/snapshot")[1])
        return page

    def replica(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in self.snapshot()["replicas"] if each["id"] == id)
        return found


def _request(
    url: str, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def until(condition: Callable[[], object], what: str, within_s: float = 10.0) -> None:
    """Wait for what other processes bring about."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {within_s} s"
        time.sleep(0.02)


@contextmanager
def running_demo() -> Iterator[Stack]:
    """Three emulated replicas, twenty times as fast as real ones, with requests for two models that never end."""
    child = subprocess.Popen(
        [*DEMO, "--speed", "20"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    try:
        stack = Stack(*_addresses(child))
        with _load(stack):
            yield stack
    finally:
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGTERM)
        child.wait(20)


def _addresses(child: subprocess.Popen[str]) -> tuple[str, str]:
    lines: queue.Queue[str] = queue.Queue()
    stdout = child.stdout
    assert stdout is not None
    threading.Thread(target=_read, args=(stdout, lines), daemon=True).start()
    said, deadline = "", time.monotonic() + START_S
    while (
        not (found := [re.search(rf"{name} +(http://\S+)", said) for name in ("clients", "admin")])[1] or not found[0]
    ):
        line = lines.get(timeout=max(0.01, deadline - time.monotonic()))
        assert line, f"the demo ended: {said}"
        said += line
    clients, admin = (match[1] for match in found if match is not None)
    return clients, admin


def _read(stdout: IO[str], lines: queue.Queue[str]) -> None:
    with stdout:
        for line in stdout:
            lines.put(line)
    lines.put("")


@contextmanager
def _load(stack: Stack) -> Iterator[None]:
    ending = threading.Event()

    def again_and_again(model: str) -> None:
        while not ending.is_set():
            with suppress(OSError, http.client.HTTPException):
                stack.ask(model, 80)
            ending.wait(0.2)

    threads = [threading.Thread(target=again_and_again, args=(MODELS[n % 2],)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


class Relay:
    """Stands between a browser and the admin port; :meth:`cut` ends what is open and refuses what comes."""

    def __init__(self, url: str) -> None:
        self._there = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._is_cut = False
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def cut(self) -> None:
        self._is_cut = True
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._accepting.join()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(self._there)
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
