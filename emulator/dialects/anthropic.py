"""Anthropic's API as Ollama speaks it: ``/v1/messages``."""

from __future__ import annotations

import json
from typing import Any

from corral.emulator.ask import (
    Ask,
    Rejected,
    Tool,
    flag,
    function_tools,
    list_of,
    render,
    sampling_of,
    text_of,
    wrong_type,
)
from corral.emulator.dialects.base import EVENTS, PLAIN_JSON, Result
from corral.emulator.text import to_json
from corral.emulator.wire import Header, framed

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def read_messages(body: dict[str, Any]) -> Ask:
    """The request of ``POST /v1/messages``."""
    if not text_of(body, "model"):
        raise Rejected(400, "model is required")
    limit = body.get("max_tokens")
    if not isinstance(limit, int) or limit <= 0:
        raise Rejected(400, "max_tokens is required and must be positive")
    entries = list_of(body, "messages")
    if not entries:
        raise Rejected(400, "messages is required")
    messages, images, last_role = [], 0, "user"
    if body.get("system"):
        messages.append(("system", _content(body["system"])[0]))
    for entry in entries:
        if not isinstance(entry, dict):
            raise wrong_type("messages", entry, "anthropic.MessageParam")
        text, pictures, is_result = _content(entry.get("content"))
        last_role = "tool" if is_result else text_of(entry, "role").lower()
        messages.append((last_role, text))
        images += pictures
    thinking = body.get("thinking")
    return Ask(
        model=text_of(body, "model"),
        prompt=render(messages),
        messages=tuple(messages),
        sampling=sampling_of(body),
        stream=flag(body, "stream", False),
        chat=True,
        last_role=last_role,
        tools=tuple(_tool(tool) for tool in list_of(body, "tools")),
        num_predict=limit,
        stop=tuple(stop for stop in list_of(body, "stop_sequences") if isinstance(stop, str)),
        think=isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive"),
        images=images,
        relax_thinking=True,
    )


def wants_search(body: dict[str, Any]) -> bool:
    """Whether it offers a tool that Ollama itself carries out."""
    return any(_is_search(tool) for tool in list_of(body, "tools"))


def _is_search(tool: Any) -> bool:
    return isinstance(tool, dict) and str(tool.get("type", "")).startswith("web_search")


def _tool(tool: Any) -> Tool:
    if _is_search(tool):
        return Tool(
            "web_search", {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
        )
    found = function_tools([tool])
    if not found:
        raise wrong_type("tools", tool, "anthropic.Tool")
    return found[0]


def _content(content: Any) -> tuple[str, int, bool]:
    """The text of a content, its images, and whether it hands back the result of a tool."""
    if content is None or isinstance(content, str):
        return content or "", 0, False
    if not isinstance(content, list):
        raise Rejected(400, "invalid content type")
    texts, images, is_result = [], 0, False
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts.append(str(block.get("text", "")))
        elif kind == "image":
            if block.get("source", {}).get("type") != "base64":
                raise Rejected(400, "invalid image source type: only base64 is supported")
            images += 1
        elif kind == "tool_result":
            is_result = True
            texts.append(_content(block.get("content"))[0])
        elif kind in ("tool_use", "thinking"):
            texts.append(json.dumps(block))
    return "".join(texts), images, is_result


def error_body(status: int, message: str, request_id: str) -> bytes:
    error = {"type": _ERROR_TYPES.get(status, "api_error"), "message": message}
    return to_json({"type": "error", "error": error, "request_id": request_id})


class Anthropic:
    """One answer of ``/v1/messages``."""

    content_type = EVENTS
    whole_type = PLAIN_JSON
    headers: tuple[Header, ...] = ((b"Cache-Control", b"no-cache"), (b"Connection", b"keep-alive"))

    def __init__(self, model: str, number: str) -> None:
        self._model = model
        self.number = number
        self._block = -1
        self._open: str | None = None

    def opening(self, prompt_tokens: int) -> bytes:
        usage = {"input_tokens": prompt_tokens, "output_tokens": 0}
        return _event("message_start", {"message": self._message([], None, usage)})

    def text(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes:
        return self._in_block("text") + self._delta(b'"type":"text_delta","text":"%b"' % token)

    def thinking(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes:
        return self._in_block("thinking") + self._delta(b'"type":"thinking_delta","thinking":"%b"' % token)

    def closing(self, result: Result, stamp: bytes) -> bytes:
        events = self._close_block()
        for call in result.tool_calls:
            self._block += 1
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            events += _event("content_block_start", {"index": self._block, "content_block": block})
            delta = {"type": "input_json_delta", "partial_json": to_json(call.arguments).decode()}
            events += _event("content_block_delta", {"index": self._block, "delta": delta})
            events += _event("content_block_stop", {"index": self._block})
        return events + _end(result)

    def broken(self, message: str) -> bytes:
        return b""

    def whole(self, result: Result, stamp: bytes) -> bytes:
        return self.message(content_of_chat(result), result)

    def message(self, content: list[dict[str, Any]], result: Result) -> bytes:
        """A whole answer of these blocks."""
        return to_json(self._message(content, _stop_reason(result), _usage(result))) + b"\n"

    def streamed(self, content: list[dict[str, Any]], result: Result) -> bytes:
        """All events of an answer whose blocks are known: texts have a delta, other blocks none."""
        events = self.opening(result.prompt_tokens)
        for index, block in enumerate(content):
            is_text = block["type"] == "text"
            start = {"type": "text", "text": ""} if is_text else block
            events += _event("content_block_start", {"index": index, "content_block": start})
            if is_text:
                delta = {"type": "text_delta", "text": block["text"]}
                events += _event("content_block_delta", {"index": index, "delta": delta})
            events += _event("content_block_stop", {"index": index})
        return events + _end(result)

    def error(self, status: int, message: str) -> bytes:
        return error_body(status, message, f"req_{self.number}") + b"\n"

    def _message(self, content: list[dict[str, Any]], reason: str | None, usage: dict[str, int]) -> dict[str, Any]:
        start: dict[str, Any] = {"id": f"msg_{self.number}", "type": "message", "role": "assistant"}
        start |= {"model": self._model, "content": content}
        if reason is not None:
            start["stop_reason"] = reason
        return start | {"usage": usage}

    def _in_block(self, kind: str) -> bytes:
        if self._open == kind:
            return b""
        closed = self._close_block()
        self._open = kind
        self._block += 1
        block = {"type": kind, kind: ""}
        return closed + _event("content_block_start", {"index": self._block, "content_block": block})

    def _close_block(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", {"index": self._block})

    def _delta(self, inside: bytes) -> bytes:
        data = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{%b}}\n\n'
        return framed(data % (self._block, inside))


def content_of_chat(result: Result) -> list[dict[str, Any]]:
    """The blocks of what a chat said."""
    content: list[dict[str, Any]] = []
    if result.thinking:
        content.append({"type": "thinking", "thinking": result.thinking})
    if result.text or not result.tool_calls:
        content.append({"type": "text", "text": result.text})
    calls = result.tool_calls
    return content + [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in calls]


def _usage(result: Result) -> dict[str, int]:
    return {"input_tokens": result.prompt_tokens, "output_tokens": result.tokens}


def _end(result: Result) -> bytes:
    delta = {"delta": {"stop_reason": _stop_reason(result)}, "usage": _usage(result)}
    return _event("message_delta", delta) + _event("message_stop", {})


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return framed(b"event: %b\ndata: %b\n\n" % (name.encode(), to_json({"type": name} | fields)))


def _stop_reason(result: Result) -> str:
    return "tool_use" if result.tool_calls else _STOP_REASONS.get(result.done_reason, "end_turn")
