"""OpenAI's API as Ollama speaks it: ``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

import json
from typing import Any

from corral.emulator.ask import (
    Ask,
    Rejected,
    ToolCall,
    dict_of,
    flag,
    function_tools,
    list_of,
    render,
    sampling_of,
    text_of,
    top_logprobs_of,
    wrong_type,
)
from corral.emulator.dialects.base import EVENTS, PLAIN_JSON, Result
from corral.emulator.text import to_json
from corral.emulator.wire import Header, framed

_DONE = b"data: [DONE]\n\n"


def read_chat(body: dict[str, Any]) -> Ask:
    """The request of ``POST /v1/chat/completions``."""
    entries = list_of(body, "messages")
    if not entries:
        raise Rejected(400, "[] is too short - 'messages'")
    messages, images, last_role = [], 0, "user"
    for entry in entries:
        if not isinstance(entry, dict):
            raise wrong_type("messages", entry, "openai.Message")
        last_role = text_of(entry, "role").lower()
        text, pictures = content_of(entry.get("content"))
        calls = list_of(entry, "tool_calls")
        messages.append((last_role, text + (json.dumps(calls) if calls else "")))
        images += pictures
    shape = dict_of(body, "response_format")
    effort = dict_of(body, "reasoning").get("effort") or body.get("reasoning_effort")
    return Ask(
        model=text_of(body, "model"),
        prompt=render(messages),
        messages=tuple(messages),
        sampling=sampling_of(body),
        stream=flag(body, "stream", False),
        chat=True,
        last_role=last_role,
        tools=function_tools(list_of(body, "tools")),
        num_predict=_limit(body.get("max_tokens") or body.get("max_completion_tokens")),
        stop=_stops(body.get("stop")),
        format=_format(shape),
        think=effort_to_think(effort),
        logprobs=flag(body, "logprobs", False),
        top_logprobs=top_logprobs_of(body),
        images=images,
        debug_render=flag(body, "_debug_render_only", False),
        relax_thinking=True,
    )


def read_completion(body: dict[str, Any]) -> Ask:
    """The request of ``POST /v1/completions``."""
    prompt = text_of(body, "prompt")
    return Ask(
        model=text_of(body, "model"),
        prompt=render([("user", prompt)]),
        messages=(("user", prompt),),
        sampling=sampling_of(body),
        stream=flag(body, "stream", False),
        chat=False,
        empty=not prompt,
        num_predict=_limit(body.get("max_tokens")),
        stop=_stops(body.get("stop")),
        relax_thinking=True,
    )


def wants_usage(body: dict[str, Any]) -> bool:
    return flag(dict_of(body, "stream_options"), "include_usage", False)


def content_of(content: Any) -> tuple[str, int]:
    """The text of a message's content and how many images it carries."""
    if content is None or isinstance(content, str):
        return content or "", 0
    if not isinstance(content, list):
        raise Rejected(400, f"invalid message content type: {type(content).__name__}")
    texts, images = [], 0
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text"):
            texts.append(str(part.get("text", "")))
        elif kind in ("image_url", "input_image"):
            images += _image(part.get("image_url"))
        else:
            raise Rejected(400, "invalid message format")
    return "".join(texts), images


def effort_to_think(effort: Any) -> bool | str | None:
    if effort is None:
        return None
    efforts = ("none", "minimal", "low", "medium", "high", "max", "xhigh", "ultra")
    if effort not in efforts:
        raise Rejected(400, f'invalid reasoning value: \'{effort}\' (must be "high", "medium", "low", or "none")')
    return False if effort == "none" else str(effort)


def error_type(status: int) -> str:
    if status == 400:
        return "invalid_request_error"
    return "not_found_error" if status == 404 else "api_error"


def error_body(status: int, message: str) -> bytes:
    return to_json({"error": {"message": message, "type": error_type(status), "param": None, "code": None}})


def openai_call(call: ToolCall, index: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": to_json(call.arguments).decode()}
    return {"id": call.id, "index": index, "type": "function", "function": function}


def usage_of(result: Result) -> dict[str, Any]:
    total = result.prompt_tokens + result.tokens
    return {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.tokens, "total_tokens": total}


class OpenAI:
    """One answer of ``/v1/chat/completions`` (``chat``) or ``/v1/completions``."""

    content_type = EVENTS
    whole_type = PLAIN_JSON
    headers: tuple[Header, ...] = ()

    def __init__(self, model: str, created: int, number: int, *, chat: bool, usage: bool, legacy: bool) -> None:
        self._model = model
        self._created = created
        self._chat = chat
        self._usage = usage
        self._legacy = legacy
        self._id = f"chatcmpl-{number}" if chat else f"cmpl-{number}"
        self._first = True
        # a plain completion names usage in each chunk, with zeros until the last
        zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0} if usage and not chat else None
        self._open, self._close = self._around(model, zero)

    def opening(self, prompt_tokens: int) -> bytes:
        return b""

    def text(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes:
        if not self._chat:
            choice = b'{"text":"%b","index":0,"finish_reason":null}' % token
            return framed(self._open + choice + self._close)
        return self._delta(b'"content":"%b"' % token, b"null", logprob)

    def thinking(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes:
        if not self._chat:
            return b""
        return self._delta(b'"content":"","reasoning":"%b"' % token, b"null", logprob)

    def closing(self, result: Result, stamp: bytes) -> bytes:
        events = self._finish(result)
        if self._usage:
            events += b"".join(self._around(self._model, usage_of(result)))
        return framed(events + _DONE)

    def broken(self, message: str) -> bytes:
        # Ollama's writer takes the error for an answer without a model, and the stream then just ends
        choice = b'{"index":0,"delta":{"content":""},"finish_reason":null}'
        if not self._chat:
            choice = b'{"text":"","index":0,"finish_reason":null}'
        before, after = self._around("", None)
        return framed(before + choice + after)

    def whole(self, result: Result, stamp: bytes) -> bytes:
        choice: dict[str, Any]
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": result.text}
            if result.thinking:
                message["reasoning"] = result.thinking
            if result.tool_calls:
                message["tool_calls"] = [openai_call(call, index) for index, call in enumerate(result.tool_calls)]
            choice = {"index": 0, "message": message, "finish_reason": self._reason(result)}
            if result.logprobs:
                choice["logprobs"] = {"content": result.logprobs}
        else:
            choice = {"text": result.text, "index": 0, "finish_reason": self._reason(result)}
        start = {"id": self._id, "object": "chat.completion" if self._chat else "text_completion"}
        named = {"created": self._created, "model": self._model, "system_fingerprint": "fp_ollama"}
        return to_json(start | named | {"choices": [choice], "usage": usage_of(result)}) + b"\n"

    def error(self, status: int, message: str) -> bytes:
        return error_body(status, message) + b"\n"

    def _around(self, model: str, usage: dict[str, Any] | None) -> tuple[bytes, bytes]:
        """An event up to its choices and from there on; a plain completion has its choices before the model."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        start = to_json({"id": self._id, "object": kind, "created": self._created})[:-1]
        named = b"," + to_json({"model": model, "system_fingerprint": "fp_ollama"})[1:-1]
        used = b"" if usage is None else b',"usage":' + to_json(usage)
        choices = b',"choices":['
        if self._chat:
            return b"data: " + start + named + choices, b"]" + used + b"}\n\n"
        return b"data: " + start + choices, b"]" + named + used + b"}\n\n"

    def _delta(self, content: bytes, reason: bytes, logprob: dict[str, Any] | None) -> bytes:
        role = b'"role":"assistant",' if self._first or self._legacy else b""
        self._first = False
        extra = b"" if logprob is None else b',"logprobs":' + to_json({"content": [logprob]})
        choice = b'{"index":0,"delta":{%b%b},"finish_reason":%b%b}' % (role, content, reason, extra)
        return framed(self._open + choice + self._close)

    def _finish(self, result: Result) -> bytes:
        reason = b'"%b"' % self._reason(result).encode()
        if not self._chat:
            return self._open + b'{"text":"","index":0,"finish_reason":%b}' % reason + self._close
        events = b""
        role = b'"role":"assistant",' if self._first or self._legacy else b""
        if result.tool_calls:
            calls = to_json([openai_call(call, index) for index, call in enumerate(result.tool_calls)])
            delta = b'{"index":0,"delta":{%b"content":"","tool_calls":%b},"finish_reason":null}' % (role, calls)
            events += self._open + delta + self._close
        delta = b'%b"content":""' % role if self._legacy else b""
        return events + self._open + b'{"index":0,"delta":{%b},"finish_reason":%b}' % (delta, reason) + self._close

    @staticmethod
    def _reason(result: Result) -> str:
        return "tool_calls" if result.tool_calls else result.done_reason


def _image(value: Any) -> int:
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or not url.startswith("data:"):
        raise Rejected(400, "invalid image input")
    return 1


def _format(shape: dict[str, Any]) -> Any:
    if shape.get("type") == "json_object":
        return "json"
    if shape.get("type") == "json_schema":
        return dict_of(shape, "json_schema").get("schema") or None
    return None


def _limit(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _stops(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(stop for stop in value if isinstance(stop, str)) if isinstance(value, list) else ()
