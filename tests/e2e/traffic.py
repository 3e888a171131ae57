"""Clients in raw bytes, that stay or leave, and what each of them got."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from tests.e2e.shapes import Shape, Verdict

LIMIT_S: Final = 60.0
_DROPPED: Final = (ConnectionError, asyncio.IncompleteReadError)


class Leave(Enum):
    """How a client leaves."""

    HALF_SENT = auto()
    """In the middle of its own body."""
    AT_ONCE = auto()
    """Closes as soon as the request is sent."""
    HALF_CLOSE = auto()
    """Shuts its sending side as soon as the request is sent."""
    RESET = auto()
    MID_STREAM = auto()
    """Closes after the first bytes of the body."""
    MID_STREAM_RESET = auto()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got."""

    verdict: Verdict
    status: int = 0
    headers: dict[str, str] | None = None
    text: str = ""
    body: bytes = b""
    first_byte_s: float = 0.0
    seconds: float = 0.0

    def header(self, name: str) -> str:
        return (self.headers or {}).get(name, "")


class Client:
    """One keep-alive connection to the gateway, made anew where it ended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.connects = 0

    async def ask(
        self, shape: Shape, model: str, prompt: str = "hi", tokens: int = 8, leave: Leave | None = None
    ) -> Answer:
        """One request and its whole answer, or as much of it as ``leave`` allows."""
        return await self.post(shape.path, shape.body(model, prompt, tokens), shape.read, leave)

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        read: Callable[[bytes], tuple[str, Verdict]],
        leave: Leave | None = None,
    ) -> Answer:
        async with asyncio.timeout(LIMIT_S):
            await self.send(path, body, half=leave is Leave.HALF_SENT)
            if leave in (Leave.HALF_SENT, Leave.AT_ONCE, Leave.RESET):
                return self._left(reset=leave is Leave.RESET)
            if leave is Leave.HALF_CLOSE:
                return await self._half_closed()
            return await self._answer(read, leave)

    async def send(self, path: str, body: dict[str, Any], *, half: bool = False) -> None:
        """Only send."""
        if self._writer is None or self._reader is None or self._reader.at_eof():
            self.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
            self.connects += 1
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Length: {len(content)}\r\n\r\n"
        self._writer.write(head.encode() + (content[: len(content) // 2] if half else content))

    async def head(self) -> tuple[int, dict[str, str]]:
        """Only the head of the answer."""
        assert self._reader is not None
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = [line.partition(":") for line in lines[1:] if line]
        return int(lines[0][9:12]), {name.lower(): value.strip() for name, _, value in fields}

    async def rest(self, headers: dict[str, str]) -> tuple[bytes, bool]:
        """Only the body that follows that head: its bytes, and whether it ended as HTTP says."""
        pieces: list[bytes] = []
        ended = await self._body(headers, pieces, None)
        return b"".join(pieces), ended is True

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    def reset(self) -> None:
        """Leave with a TCP reset."""
        if self._writer is not None:
            raw = self._writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        self._reader = self._writer = None

    def _left(self, *, reset: bool) -> Answer:
        if reset:
            self.reset()
        else:
            self.close()
        return Answer(Verdict.LEFT)

    async def _half_closed(self) -> Answer:
        """The gateway takes it for gone: whatever came by then, the connection ends."""
        assert self._reader is not None
        assert self._writer is not None
        self._writer.write_eof()
        try:
            await self._reader.read()
        except ConnectionError:
            pass
        return self._left(reset=False)

    async def _answer(self, read: Callable[[bytes], tuple[str, Verdict]], leave: Leave | None) -> Answer:
        began_s = time.monotonic()
        try:
            status, headers = await self.head()
        except _DROPPED:
            self.close()
            return Answer(Verdict.LOST, seconds=time.monotonic() - began_s)
        first_s = time.monotonic() - began_s
        pieces: list[bytes] = []
        ended = await self._body(headers, pieces, leave)
        if ended is None:
            return self._left(reset=leave is Leave.MID_STREAM_RESET)
        if not ended or headers.get("connection") == "close":
            self.close()
        body = b"".join(pieces)
        try:
            text, verdict = read(body) if status == 200 else (body.decode("utf-8", "replace"), Verdict.REFUSED)
        except (ValueError, LookupError, TypeError):  # nothing that this dialect ever says
            text, verdict = repr(body), Verdict.FALSE_END
        if not ended:
            verdict = Verdict.CUT
        return Answer(verdict, status, headers, text, body, first_s, time.monotonic() - began_s)

    async def _body(self, headers: dict[str, str], pieces: list[bytes], leave: Leave | None) -> bool | None:
        """Whether it ended as HTTP says; None: the client wants to leave now."""
        reader = self._reader
        assert reader is not None
        leaving = leave in (Leave.MID_STREAM, Leave.MID_STREAM_RESET)
        try:
            if headers.get("transfer-encoding") != "chunked":
                pieces.append(await reader.readexactly(int(headers["content-length"])))
                return True
            while size := int(await reader.readuntil(b"\r\n"), 16):
                pieces.append((await reader.readexactly(size + 2))[:-2])
                if leaving:
                    return None
            await reader.readexactly(2)
        except _DROPPED:
            return False
        return True


async def once(port: int, shape: Shape, model: str, prompt: str = "hi", tokens: int = 8) -> Answer:
    """One request on a connection of its own."""
    client = Client(port)
    try:
        return await client.ask(shape, model, prompt, tokens)
    finally:
        client.close()
