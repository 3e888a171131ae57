"""A raw HTTP client that shows exactly what is on the wire: head lines in order, chunks one by one."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answer:
    """One answer as it came."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    """Empty where the body was not chunked."""
    ended: bool = True
    """False: the connection ended before the body did."""

    def header(self, name: str) -> str | None:
        """The only value of a header; None where there is none."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} given {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[dict[str, Any]]:
        """The objects of a native stream."""
        return [json.loads(line) for line in self.body.splitlines()]

    def events(self) -> list[tuple[str | None, str]]:
        """The events of a stream of server-sent events: (name or None, data)."""
        found = []
        for block in self.body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines())
            if fields:
                found.append((fields.get("event"), fields["data"]))
        return found


class Wire:
    """One connection."""

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.host = f"{parts.hostname}:{parts.port}"
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=timeout_s)
        self._buffer = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        """A request; a body that is not bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {"Host": self.host} | {name.replace("_", "-"): value for name, value in headers.items()}
        if content or method == "POST":
            given["Content-Length"] = str(len(content))
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self.socket.sendall(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content)

    def receive(self, *, head_only: bool = False) -> Answer:
        """The next answer, whole."""
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        _, status, reason = head[0].split(" ", 2)
        headers = [(name, value) for name, value in (line.split(": ", 1) for line in head[1:] if line)]
        answer = Answer(int(status), reason, headers)
        if head_only or answer.status in (204, 304) or answer.status < 200:
            return answer
        if answer.header("Transfer-Encoding") == "chunked":
            self._chunks(answer)
        else:
            length = answer.header("Content-Length")
            answer.body = self._rest() if length is None else self._exactly(int(length))
        return answer

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        self.send(method, path, body, **headers)
        return self.receive(head_only=method == "HEAD")

    def first_bytes(self) -> bytes:
        """Whatever comes next (nothing is consumed)."""
        if not self._buffer:
            self._buffer = self.socket.recv(65536)
        return self._buffer

    def wait_for(self, mark: bytes) -> None:
        """Until these bytes have come (nothing is consumed)."""
        while mark not in self._buffer:
            self._more()

    def drain(self) -> None:
        """Read until the connection ends, which raises."""
        while True:
            self._more()

    def _chunks(self, answer: Answer) -> None:
        try:
            while size := int(self._until(b"\r\n"), 16):
                answer.chunks.append(self._exactly(size))
                assert self._exactly(2) == b"\r\n"
            assert self._exactly(2) == b"\r\n"
        except (EOFError, ConnectionError):
            answer.ended = False
        answer.body = b"".join(answer.chunks)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        found, self._buffer = self._buffer.split(mark, 1)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _rest(self) -> bytes:
        while part := self.socket.recv(65536):
            self._buffer += part
        return self._buffer

    def _more(self) -> None:
        part = self.socket.recv(65536)
        if not part:
            raise EOFError("the connection ended")
        self._buffer += part


def ask(url: str, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """One request on a connection of its own."""
    with Wire(url) as wire:
        return wire.ask(method, path, body, **headers)
