"""The searches of ``/v1/messages``: the replica itself searches, and asks its own ``/api/chat`` how to go on.

What it finds is invented; everything else is as Ollama does it. The follow-up requests go to the address that this
request came in by, as Ollama's go to its ``OLLAMA_HOST``: a gateway in front never sees them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from corral.emulator.ask import Ask, Tool, ToolCall
from corral.emulator.cloud import Cloud
from corral.emulator.dialects.anthropic import Anthropic, content_of_chat
from corral.emulator.dialects.base import Result
from corral.emulator.dialects.native import native_call
from corral.emulator.text import seed_of, to_json, write
from corral.emulator.wire import LAST_CHUNK, Connection, Exchange

NAME: Final = "web_search"
_MOST_LOOPS: Final = 3
_RESULTS: Final = 2
_WITHIN_S: Final = 300.0

Block = dict[str, Any]


class Searching(Anthropic):
    """An answer that is held back where the model wants to search first."""

    def __init__(self, model: str, number: str) -> None:
        super().__init__(model, number)
        self.held: Result | None = None

    def hold(self, result: Result) -> bool:
        """Whether this is not yet the answer."""
        if not any(call.name == NAME for call in result.tool_calls):
            return False
        self.held = result
        return True


@dataclass(slots=True)
class _Said:
    """What one chat said."""

    text: str
    thinking: str
    calls: list[ToolCall]
    reason: str
    prompt_tokens: int
    tokens: int

    @property
    def search(self) -> ToolCall | None:
        return next((call for call in self.calls if call.name == NAME), None)


@dataclass(slots=True)
class Search:
    """The rest of one request, after the model's first call. ``follow_ups`` counts the chats that it took."""

    exchange: Exchange
    ask: Ask
    dialect: Searching
    cloud: Cloud
    follow_ups: int = 0
    _blocks: list[Block] = field(default_factory=list)
    _messages: list[dict[str, Any]] = field(default_factory=list)

    async def finish(self, first: Result) -> None:
        """Search, ask on, and answer."""
        said = _Said(first.text, first.thinking, first.tool_calls, first.done_reason, first.prompt_tokens, first.tokens)
        self._messages = [{"role": role, "content": text} for role, text in self.ask.messages]
        usage = {"input_tokens": said.prompt_tokens, "output_tokens": said.tokens}
        async with asyncio.timeout(_WITHIN_S):
            while (call := said.search) is not None:
                if not self.cloud.account or self.follow_ups == _MOST_LOOPS:
                    self._fail(call, "max_uses_exceeded" if self.cloud.account else "unavailable")
                    break
                self._search(call, said)
                said = await self._ask_on()
                usage["input_tokens"] += said.prompt_tokens
                usage["output_tokens"] += said.tokens
        self._answer(said, usage)

    def _search(self, call: ToolCall, said: _Said) -> None:
        """The two blocks that the client sees, and the two messages that the model does."""
        query = str(call.arguments.get("query", ""))
        found = [_result(query, number) for number in range(_RESULTS)]
        shown = [{"type": "web_search_result", "url": each["url"], "title": each["title"]} for each in found]
        self._add_blocks(query, shown)
        turn: dict[str, Any] = {"role": "assistant", "content": said.text, "tool_calls": [native_call(call, 0)]}
        text = "".join(f"Title: {each['title']}\nURL: {each['url']}\nContent: {each['content']}\n\n" for each in found)
        self._messages += [turn, {"role": "tool", "content": text, "tool_call_id": call.id}]

    def _fail(self, call: ToolCall, code: str) -> None:
        self._add_blocks(
            str(call.arguments.get("query", "")), {"type": "web_search_tool_result_error", "error_code": code}
        )

    def _add_blocks(self, query: str, content: Any) -> None:
        number = len(self._blocks) // 2 + 1
        mark = f"srvtoolu_{self.dialect.number}" + (f"_{number}" if number > 1 else "")
        self._blocks.append({"type": "server_tool_use", "id": mark, "name": NAME, "input": {"query": query}})
        self._blocks.append({"type": "web_search_tool_result", "tool_use_id": mark, "content": content})

    async def _ask_on(self) -> _Said:
        self.follow_ups += 1
        options = {} if self.ask.num_predict is None else {"num_predict": self.ask.num_predict}
        tools = [_shown(tool) for tool in self.ask.tools]
        body = {
            "model": self.ask.model,
            "messages": self._messages,
            "stream": False,
            "tools": tools,
            "options": options,
        }
        return _said(await post(self.exchange.connection, "/api/chat", to_json(body)))

    def _answer(self, said: _Said, usage: dict[str, int]) -> None:
        calls = [call for call in said.calls if call.name != NAME]
        result = Result(said.text, said.thinking, calls, said.reason, usage["input_tokens"], usage["output_tokens"])
        content = list(self._blocks)
        if said.search is None:
            content += content_of_chat(result)
        if self.ask.stream:
            self.exchange.start(
                self.dialect.content_type, *self.dialect.headers, first=self.dialect.streamed(content, result)
            )
            self.exchange.send(LAST_CHUNK)
            self.exchange.finish()
        else:
            self.exchange.answer(200, self.dialect.message(content, result), self.dialect.whole_type)


async def post(connection: Connection, path: str, body: bytes) -> Mapping[str, Any]:
    """Ask the emulator that this connection leads to, as any of its clients would."""
    host, port = connection.transport.get_extra_info("sockname")[:2]
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: Go-http-client/1.1\r\n"
        head += f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
    finally:
        writer.close()
    return _json_in(answer)


def _json_in(answer: bytes) -> Mapping[str, Any]:
    """Of an answer with a length or in chunks; of a broken one nothing, which Ollama takes for an empty chat."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        parts = []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size or b"0", 16)
            parts.append(rest[:length])
            rest = rest[length + 2 :]
        rest = b"".join(parts)
    try:
        found = json.loads(rest)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _said(answer: Mapping[str, Any]) -> _Said:
    message = answer.get("message") or {}
    calls = [
        ToolCall(call.get("id", ""), call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", [])
    ]
    return _Said(
        text=message.get("content", ""),
        thinking=message.get("thinking", ""),
        calls=calls,
        reason=answer.get("done_reason", "stop"),
        prompt_tokens=answer.get("prompt_eval_count", 0),
        tokens=answer.get("eval_count", 0),
    )


def _shown(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "function": {"name": tool.name, "description": "", "parameters": tool.parameters}}


def _result(query: str, number: int) -> dict[str, str]:
    words = f"{query} {number}".encode()
    title, content = "".join(write(words, 4)), "".join(write(words, 30))
    return {"title": title, "url": f"https://example.com/{seed_of(words) % 10_000}", "content": content}
