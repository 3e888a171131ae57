"""OpenAI's Responses API as Ollama speaks it: ``/v1/responses``, without stored responses."""

from __future__ import annotations

import json
from typing import Any

from corral.emulator.ask import (
    Ask,
    Rejected,
    dict_of,
    flag,
    function_tools,
    list_of,
    render,
    sampling_of,
    text_of,
    wrong_type,
)
from corral.emulator.dialects.base import EVENTS, PLAIN_JSON, Result
from corral.emulator.dialects.openai import content_of, effort_to_think, error_body
from corral.emulator.text import to_json
from corral.emulator.wire import Header, framed


def read_request(body: dict[str, Any]) -> Ask:
    """The request of ``POST /v1/responses``."""
    messages, images, last_role = [], 0, "user"
    if text_of(body, "instructions"):
        messages.append(("system", text_of(body, "instructions")))
    given = body.get("input")
    if isinstance(given, str):
        messages.append(("user", given))
    elif not isinstance(given, list):
        raise wrong_type("input", given, "openai.ResponsesInput")
    else:
        for item in given:
            last_role, text, pictures = _item(item)
            messages.append((last_role, text))
            images += pictures
    limit = body.get("max_output_tokens")
    shape = dict_of(dict_of(body, "text"), "format")
    return Ask(
        model=text_of(body, "model"),
        prompt=render(messages),
        messages=tuple(messages),
        sampling=sampling_of(body),
        stream=flag(body, "stream", False),
        chat=True,
        last_role=last_role,
        tools=function_tools([tool for tool in list_of(body, "tools") if _is_function(tool)]),
        num_predict=limit if isinstance(limit, int) and limit > 0 else None,
        format=shape.get("schema") or ("json" if shape.get("type") == "json_object" else None),
        think=effort_to_think(dict_of(body, "reasoning").get("effort")),
        images=images,
        relax_thinking=True,
    )


def _is_function(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "function"


def _item(item: Any) -> tuple[str, str, int]:
    """Role, text and images of one input item."""
    if not isinstance(item, dict):
        raise Rejected(400, "invalid input item")
    kind = item.get("type", "message")
    if kind == "message":
        text, images = content_of(item.get("content"))
        return str(item.get("role", "user")), text, images
    if kind == "function_call_output":
        return "tool", str(item.get("output", "")), 0
    if kind in ("function_call", "reasoning"):
        return "assistant", json.dumps(item), 0
    raise Rejected(400, f"unknown input item type: {kind}")


class Responses:
    """One answer of ``/v1/responses``."""

    content_type = EVENTS
    whole_type = PLAIN_JSON
    headers: tuple[Header, ...] = ((b"Cache-Control", b"no-cache"), (b"Connection", b"keep-alive"))

    def __init__(self, model: str, created: int, number: int, body: dict[str, Any]) -> None:
        self._model = model
        self._created = created
        self._number = number
        self._body = body
        self._sequence = -1
        self._output: list[dict[str, Any]] = []
        self._open: str | None = None
        self._said: list[bytes] = []

    def opening(self, prompt_tokens: int) -> bytes:
        start = self._response("in_progress", None)
        return self._event("response.created", {"response": start}) + self._event(
            "response.in_progress", {"response": start}
        )

    def text(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes:
        return self._piece("text", token)

    def thinking(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes:
        return self._piece("thinking", token)

    def closing(self, result: Result, stamp: bytes) -> bytes:
        events = self._close_item()
        for place, call in enumerate(result.tool_calls):
            events += self._call(call.id, call.name, to_json(call.arguments).decode(), place)
        if not self._output:
            events += self._open_item("text") + self._close_item()
        return events + self._event("response.completed", {"response": self._response("completed", result)})

    def broken(self, message: str) -> bytes:
        return b""

    def whole(self, result: Result, stamp: bytes) -> bytes:
        if result.thinking:
            self._output.append(self._reasoning(result.thinking))
        if result.text or not result.tool_calls:
            self._output.append(self._message(result.text, "completed"))
        for place, call in enumerate(result.tool_calls):
            arguments = to_json(call.arguments).decode()
            self._output.append(self._function_call(call.id, call.name, arguments, place, "completed"))
        return to_json(self._response("completed", result)) + b"\n"

    def error(self, status: int, message: str) -> bytes:
        return error_body(status, message) + b"\n"

    # -- items ----------------------------------------------------------------------------------------------------

    def _piece(self, kind: str, token: bytes) -> bytes:
        events = b""
        if self._open != kind:
            events = self._close_item() + self._open_item(kind)
        self._said.append(token)
        index = len(self._output)
        if kind == "text":
            name, place = b"response.output_text.delta", b'"content_index":0,"logprobs":[],'
            item = b"msg_%d" % self._number
        else:
            name, place = b"response.reasoning_summary_text.delta", b'"summary_index":0,'
            item = b"rs_%d" % self._number
        self._sequence += 1
        data = (
            b'event: %b\ndata: {"type":"%b","sequence_number":%d,"item_id":"%b","output_index":%d,%b"delta":"%b"}\n\n'
        )
        return events + framed(data % (name, name, self._sequence, item, index, place, token))

    def _open_item(self, kind: str) -> bytes:
        self._open, self._said = kind, []
        index = len(self._output)
        if kind == "thinking":
            item = {"id": f"rs_{self._number}", "type": "reasoning", "summary": []}
            added = self._event("response.output_item.added", {"output_index": index, "item": item})
            part = {"type": "summary_text", "text": ""}
            fields = {"item_id": item["id"], "output_index": index, "summary_index": 0, "part": part}
            return added + self._event("response.reasoning_summary_part.added", fields)
        message = self._message("", "in_progress") | {"content": []}
        added = self._event("response.output_item.added", {"output_index": index, "item": message})
        fields = {"item_id": message["id"], "output_index": index, "content_index": 0, "part": _text_part("")}
        return added + self._event("response.content_part.added", fields)

    def _close_item(self) -> bytes:
        kind, self._open = self._open, None
        if kind is None:
            return b""
        text = str(json.loads(b'"' + b"".join(self._said) + b'"'))
        index = len(self._output)
        if kind == "thinking":
            item = self._reasoning(text)
            place = {"item_id": item["id"], "output_index": index, "summary_index": 0}
            events = self._event("response.reasoning_summary_text.done", place | {"text": text})
        else:
            item = self._message(text, "completed")
            place = {"item_id": item["id"], "output_index": index, "content_index": 0}
            events = self._event("response.output_text.done", place | {"text": text, "logprobs": []})
            events += self._event("response.content_part.done", place | {"part": _text_part(text)})
        self._output.append(item)
        return events + self._event("response.output_item.done", {"output_index": index, "item": item})

    def _call(self, call_id: str, name: str, arguments: str, place: int) -> bytes:
        index = len(self._output)
        item = self._function_call(call_id, name, "", place, "in_progress")
        events = self._event("response.output_item.added", {"output_index": index, "item": item})
        fields = {"item_id": item["id"], "output_index": index}
        events += self._event("response.function_call_arguments.delta", fields | {"delta": arguments})
        events += self._event("response.function_call_arguments.done", fields | {"name": name, "arguments": arguments})
        item = item | {"arguments": arguments, "status": "completed"}
        self._output.append(item)
        return events + self._event("response.output_item.done", {"output_index": index, "item": item})

    def _message(self, text: str, status: str) -> dict[str, Any]:
        start = {"id": f"msg_{self._number}", "type": "message", "status": status, "role": "assistant"}
        return start | {"content": [_text_part(text)]}

    def _reasoning(self, text: str) -> dict[str, Any]:
        return {"id": f"rs_{self._number}", "type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}

    def _function_call(self, call_id: str, name: str, arguments: str, place: int, status: str) -> dict[str, Any]:
        item = {"id": f"fc_{self._number}_{place}", "type": "function_call", "status": status, "call_id": call_id}
        return item | {"name": name, "arguments": arguments}

    # -- envelopes ------------------------------------------------------------------------------------------------

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        self._sequence += 1
        data = to_json({"type": name, "sequence_number": self._sequence} | fields)
        return framed(b"event: %b\ndata: %b\n\n" % (name.encode(), data))

    def _response(self, status: str, result: Result | None) -> dict[str, Any]:
        body = self._body
        usage: dict[str, Any] | None = None
        if result is not None:
            usage = {
                "input_tokens": result.prompt_tokens,
                "output_tokens": result.tokens,
                "total_tokens": result.prompt_tokens + result.tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            }
        return {
            "id": f"resp_{self._number}",
            "object": "response",
            "created_at": self._created,
            "completed_at": self._created if result is not None else None,
            "status": status,
            "incomplete_details": None,
            "model": self._model,
            "previous_response_id": None,
            "instructions": body.get("instructions"),
            "output": list(self._output) if result is not None else [],
            "error": None,
            "tools": body.get("tools") or [],
            "tool_choice": body.get("tool_choice") or "auto",
            "truncation": body.get("truncation") or "disabled",
            "parallel_tool_calls": True,
            "text": body.get("text") or {"format": {"type": "text"}},
            "temperature": body.get("temperature", 1.0),
            "top_p": body.get("top_p", 1.0),
            "max_output_tokens": body.get("max_output_tokens"),
            "store": False,
            "metadata": body.get("metadata") or {},
            "usage": usage,
        }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
