"""Clients in raw bytes, in every dialect; each answer is judged: complete, an error, cut, or a false end."""

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

LIMIT_S: Final = 60.0
_DROPPED: Final = (ConnectionError, asyncio.IncompleteReadError)


class Verdict(Enum):
    """How an answer ended, as its client sees it."""

    COMPLETE = auto()
    """With its dialect's terminator."""
    ERROR = auto()
    """After 200, with its dialect's own error."""
    CUT = auto()
    """Visibly: last chunk or bytes are missing."""
    REFUSED = auto()
    """A status other than 200."""
    LOST = auto()
    """The connection ended without a byte."""
    FALSE_END = auto()
    """Ended cleanly, without terminator and without error: never to happen."""
    LEFT = auto()
    """The client itself left."""


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
class Shape:
    """One kind of request: where it goes, what it says, and how its answer is read."""

    name: str
    path: str
    body: Callable[[str, str, int], dict[str, Any]]
    """Of model, prompt and how many tokens to answer."""
    read: Callable[[bytes], tuple[str, Verdict]]
    """The text of a body that ended cleanly or not, and how it ends; FALSE_END where nothing says how."""


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


def _native(field: Callable[[dict[str, Any]], str]) -> Callable[[bytes], tuple[str, Verdict]]:
    def read(body: bytes) -> tuple[str, Verdict]:
        lines = [json.loads(line) for line in body.splitlines() if line]
        text = "".join(field(line) for line in lines if "error" not in line)
        last = lines[-1] if lines else {}
        ends = [line for line in lines if line.get("done") or "error" in line]
        if len(ends) != 1 or ends[0] is not last:
            return text, Verdict.FALSE_END
        return text, Verdict.ERROR if "error" in last else Verdict.COMPLETE

    return read


def _events(body: bytes) -> list[tuple[str, Any]]:
    """Name and data of each event; the data as JSON where it is."""
    found = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if fields:
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def _read_openai(body: bytes) -> tuple[str, Verdict]:
    events = [data for _, data in _events(body)]
    pieces = [
        data["choices"][0]["delta"].get("content") or "" for data in events if data != "[DONE]" and data.get("choices")
    ]
    last = events[-1] if events else {}
    if "[DONE]" in events[:-1] or any("error" in each for each in events[:-1]):
        return "".join(pieces), Verdict.FALSE_END
    if last == "[DONE]":
        return "".join(pieces), Verdict.COMPLETE
    return "".join(pieces), Verdict.ERROR if "error" in last else Verdict.FALSE_END


def _read_anthropic(body: bytes) -> tuple[str, Verdict]:
    events = _events(body)
    text = "".join(data["delta"].get("text", "") for name, data in events if name == "content_block_delta")
    names = [name for name, _ in events]
    last = names[-1] if names else ""
    if {"message_stop", "error"} & set(names[:-1]):
        return text, Verdict.FALSE_END
    verdict = {"message_stop": Verdict.COMPLETE, "error": Verdict.ERROR}.get(last, Verdict.FALSE_END)
    return text, verdict


def _read_embed(body: bytes) -> tuple[str, Verdict]:
    answer = json.loads(body)
    return json.dumps(answer.get("embeddings")), Verdict.COMPLETE if "embeddings" in answer else Verdict.FALSE_END


def read_whole_chat(body: bytes) -> tuple[str, Verdict]:
    """One JSON object says itself whether it is done; one that is not is cut as visibly as it can be."""
    answer = json.loads(body)
    return str(answer["message"]["content"]), Verdict.COMPLETE if answer["done"] else Verdict.CUT


def _said(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


CHAT: Final = Shape(
    "chat, streamed",
    "/api/chat",
    lambda model, prompt, tokens: {
        "model": model,
        "messages": _said(prompt),
        "options": {"num_predict": tokens},
    },
    _native(lambda line: str(line["message"]["content"])),
)
WHOLE: Final = Shape(
    "chat, whole",
    "/api/chat",
    lambda model, prompt, tokens: CHAT.body(model, prompt, tokens) | {"stream": False},
    read_whole_chat,
)
GENERATE: Final = Shape(
    "generate, streamed",
    "/api/generate",
    lambda model, prompt, tokens: {"model": model, "prompt": prompt, "options": {"num_predict": tokens}},
    _native(lambda line: str(line["response"])),
)
OPENAI: Final = Shape(
    "OpenAI chat, streamed",
    "/v1/chat/completions",
    lambda model, prompt, tokens: {
        "model": model,
        "messages": _said(prompt),
        "max_tokens": tokens,
        "stream": True,
    },
    _read_openai,
)
ANTHROPIC: Final = Shape(
    "Anthropic messages, streamed",
    "/v1/messages",
    lambda model, prompt, tokens: {
        "model": model,
        "messages": _said(prompt),
        "max_tokens": tokens,
        "stream": True,
    },
    _read_anthropic,
)
EMBED: Final = Shape(
    "embeddings",
    "/api/embed",
    lambda model, prompt, tokens: {"model": model, "input": prompt},
    _read_embed,
)
STREAMS: Final = (CHAT, GENERATE, OPENAI, ANTHROPIC)


async def once(port: int, shape: Shape, model: str, prompt: str = "hi", tokens: int = 8) -> Answer:
    """One request on a connection of its own."""
    client = Client(port)
    try:
        return await client.ask(shape, model, prompt, tokens)
    finally:
        client.close()
