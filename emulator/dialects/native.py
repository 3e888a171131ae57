"""Ollama's own API: ``/api/generate`` and ``/api/chat``."""

from __future__ import annotations

from typing import Any

from corral.emulator.ask import (
    Ask,
    Rejected,
    ToolCall,
    flag,
    function_tools,
    keep_alive_of,
    list_of,
    options_of,
    render,
    sampling_of,
    signature_of,
    text_of,
    top_logprobs_of,
    wrong_type,
)
from corral.emulator.dialects.base import JSON, Result
from corral.emulator.text import in_json, to_json
from corral.emulator.wire import SIZES, Header, framed

NDJSON = b"application/x-ndjson"


def read_chat(body: dict[str, Any]) -> Ask:
    """The request of ``POST /api/chat``."""
    messages, images, last_role = [], 0, "user"
    for entry in list_of(body, "messages"):
        if not isinstance(entry, dict):
            raise wrong_type("messages", entry, "api.Message")
        last_role = text_of(entry, "role").lower()
        calls = list_of(entry, "tool_calls")
        content = text_of(entry, "content") + text_of(entry, "thinking") + (str(calls) if calls else "")
        messages.append((last_role, content))
        images += len(list_of(entry, "images"))
    tools = function_tools(list_of(body, "tools"))
    more = {"last_role": last_role, "tools": tools, "images": images, "messages": tuple(messages)}
    return _ask(body, render(messages), chat=True, empty=not messages, **more)


def read_generate(body: dict[str, Any]) -> Ask:
    """The request of ``POST /api/generate``."""
    prompt = text_of(body, "prompt")
    raw = flag(body, "raw", False)
    if raw and (body.get("template") or body.get("system") or body.get("context")):
        raise Rejected(400, "raw mode does not support template, system, or context")
    parts = [("system", text_of(body, "system")), ("user", prompt), ("suffix", text_of(body, "suffix"))]
    messages = [part for part in parts if part[1]]
    rendered = prompt.encode("utf-8", "surrogatepass") if raw else render(messages)
    context = tuple(number for number in list_of(body, "context") if isinstance(number, int))
    images = len(list_of(body, "images"))
    more = {"raw": raw, "context": context, "images": images, "messages": tuple(messages)}
    return _ask(body, rendered, chat=False, empty=not prompt, **more)


def _ask(body: dict[str, Any], prompt: bytes, **more: Any) -> Ask:
    options = options_of(body)
    shift = flag(body, "shift", True)
    stop = options.get("stop") or ()
    predict = options.get("num_predict")
    think = body.get("think")
    if think is not None and think not in (True, False, "low", "medium", "high", "max"):
        raise Rejected(400, f'invalid think value: "{think}" (must be "high", "medium", "low", "max", true, or false)')
    return Ask(
        model=text_of(body, "model"),
        prompt=prompt,
        stream=flag(body, "stream", True),
        num_predict=predict if isinstance(predict, int) and predict > 0 else None,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        format=body.get("format") or None,
        think=think,
        logprobs=flag(body, "logprobs", False),
        top_logprobs=top_logprobs_of(body),
        debug_render=flag(body, "_debug_render_only", False),
        truncate=flag(body, "truncate", True),
        shift=shift,
        keep_alive_s=keep_alive_of(body.get("keep_alive")),
        signature=signature_of(options, shift),
        sampling=sampling_of(options),
        **more,
    )


def error_body(message: str) -> bytes:
    return to_json({"error": message})


class Native:
    """One answer of ``/api/chat`` (``chat``) or ``/api/generate``."""

    content_type = NDJSON
    whole_type = JSON
    headers: tuple[Header, ...] = ()

    def __init__(self, model: str, *, chat: bool, tools_early: bool, remote: dict[str, str] | None = None) -> None:
        self._chat = chat
        self._tools_early = tools_early
        named = b'{"model":' + to_json(model)
        for key, value in (remote or {}).items():
            named += b"," + to_json(key) + b":" + to_json(value)
        self._named = named + b',"created_at":"'
        self._before_text = b'","message":{"role":"assistant","content":"' if chat else b'","response":"'
        self._after_text = b'"},"done":false' if chat else b'","done":false'

    def opening(self, prompt_tokens: int) -> bytes:
        return b""

    def text(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes:
        extra = b"}\n" if logprob is None else b',"logprobs":' + to_json([logprob]) + b"}\n"
        line = b"%b%b%b%b%b%b" % (self._named, stamp, self._before_text, token, self._after_text, extra)
        size = len(line)
        return b"%b%b\r\n" % (SIZES[size], line) if size < 8192 else framed(line)

    def thinking(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes:
        extra = b"" if logprob is None else b',"logprobs":' + to_json([logprob])
        thought = b'"' + (b',"thinking":"%b"' % token)
        close = b'},"done":false' if self._chat else b',"done":false'
        return framed(self._named + stamp + self._before_text + thought + close + extra + b"}\n")

    def closing(self, result: Result, stamp: bytes) -> bytes:
        early = b""
        if self._tools_early and result.tool_calls:
            early = framed(self._object(stamp, "", "", result.tool_calls, b',"done":false}\n'))
        calls = [] if early else result.tool_calls
        return early + framed(self._object(stamp, "", "", calls, self._final(result, None)) + b"\n")

    def broken(self, message: str) -> bytes:
        return framed(error_body(message) + b"\n")

    def whole(self, result: Result, stamp: bytes) -> bytes:
        final = self._final(result, result.logprobs or None)
        return self._object(stamp, result.text, result.thinking, result.tool_calls, final)

    def error(self, status: int, message: str) -> bytes:
        return error_body(message)

    def only_done(self, reason: str, stamp: bytes) -> bytes:
        """The answer to a request that only loads or unloads."""
        return self._object(stamp, "", "", [], b',"done":true,"done_reason":"' + reason.encode() + b'"}')

    def rendered(self, prompt: bytes, images: int, stamp: bytes) -> bytes:
        """The answer to ``_debug_render_only``."""
        info: dict[str, Any] = {"rendered_template": prompt.decode("utf-8", "replace")}
        if images:
            info["image_count"] = images
        tail = b',"done":false,"_debug_info":' + to_json(info) + b"}"
        return self._object(stamp, "", "", [], tail)

    def _object(self, stamp: bytes, text: str, thinking: str, calls: list[ToolCall], tail: bytes) -> bytes:
        parts = self._before_text + in_json(text) + b'"'
        if thinking:
            parts += b',"thinking":"' + in_json(thinking) + b'"'
        if self._chat and calls:
            parts += b',"tool_calls":' + to_json([native_call(call, index) for index, call in enumerate(calls)])
        return self._named + stamp + parts + (b"}" if self._chat else b"") + tail

    def _final(self, result: Result, logprobs: list[dict[str, Any]] | None) -> bytes:
        fields: dict[str, Any] = {"done": True, "done_reason": result.done_reason}
        metrics = {
            "total_duration": result.total_ns,
            "load_duration": result.load_ns,
            "prompt_eval_count": result.prompt_tokens,
            "prompt_eval_duration": result.prompt_ns,
            "eval_count": result.tokens,
            "eval_duration": result.decode_ns,
        }
        shown = {key: value for key, value in metrics.items() if value}
        if self._chat:
            fields |= ({"logprobs": logprobs} if logprobs else {}) | shown
        else:
            fields |= ({"context": result.context} if result.context else {}) | shown
            fields |= {"logprobs": logprobs} if logprobs else {}
        return b"," + to_json(fields)[1:]


def native_call(call: ToolCall, index: int) -> dict[str, Any]:
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": call.arguments}}
