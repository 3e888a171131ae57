"""One inference request, whatever its dialect: what the emulated model is asked for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from corral.emulator.runner import FOREVER_S, Signature

_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")
_NUMBER = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_INTEGER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_predict")


class Rejected(Exception):
    """The request is answered with this status and message, in its dialect's shape."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model makes."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool the request offers."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for."""

    model: str
    """As the client spelled it."""
    prompt: bytes
    """All text the model sees, in order."""
    stream: bool
    chat: bool
    messages: tuple[tuple[str, str], ...] = ()
    """Role and text of each message, for an engine that needs more than the prompt."""
    sampling: tuple[tuple[str, float | int | None], ...] = ()
    """Temperature, seed and so on, for an engine that samples."""
    empty: bool = False
    """No prompt at all: only loads (or unloads) the model."""
    last_role: str = "user"
    tools: tuple[Tool, ...] = ()
    num_predict: int | None = None
    stop: tuple[str, ...] = ()
    format: Any = None
    """None, ``"json"`` or a JSON schema."""
    think: bool | str | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    images: int = 0
    raw: bool = False
    debug_render: bool = False
    truncate: bool = True
    shift: bool = True
    context: tuple[int, ...] = ()
    keep_alive_s: float | None = None
    signature: Signature = field(default_factory=Signature)
    relax_thinking: bool = False
    """Asking a model that cannot think to think is not an error."""


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a request body; Rejected with Go's words otherwise."""
    if not body:
        raise Rejected(400, "missing request body")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Rejected(400, _go_syntax_error(body)) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Rejected(400, f"json: cannot unmarshal {_go_kind(value)} into Go value of type api.Request")
    return value


def text_of(body: dict[str, Any], key: str, default: str = "") -> str:
    """A string field; Rejected in Go's words where it is something else."""
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise wrong_type(key, value, "string")
    return value


def list_of(body: dict[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong_type(key, value, "[]json.RawMessage")
    return value


def dict_of(body: dict[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong_type(key, value, "map[string]interface {}")
    return value


def flag(body: dict[str, Any], key: str, default: bool) -> bool:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong_type(key, value, "bool")
    return value


def wrong_type(key: str, value: Any, wanted: str) -> Rejected:
    return Rejected(400, f"json: cannot unmarshal {_go_kind(value)} into Go struct field .{key} of type {wanted}")


def options_of(body: dict[str, Any]) -> dict[str, Any]:
    """The ``options`` object; an option of the wrong type is Ollama's 500."""
    options = dict_of(body, "options")
    for name in _INTEGER_OPTIONS:
        value = options.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            options[name] = int(value)
        elif isinstance(value, bool) or not isinstance(value, int):
            raise Rejected(500, f'option "{name}" must be of type integer')
    return options


def signature_of(options: dict[str, Any], shift: bool) -> Signature:
    mmap = options.get("use_mmap")
    return Signature(
        num_ctx=options.get("num_ctx"),
        num_batch=options.get("num_batch"),
        num_gpu=options.get("num_gpu"),
        main_gpu=options.get("main_gpu"),
        use_mmap=mmap if isinstance(mmap, bool) else None,
        num_thread=options.get("num_thread"),
        draft_num_predict=options.get("draft_num_predict"),
        shift=None if shift else False,
    )


def keep_alive_of(value: Any) -> float | None:
    """Seconds; a number counts seconds, a string is a Go duration, negative is for ever, None is not given."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise Rejected(400, f"Unsupported type: '{_go_kind(value)}'")
    seconds = float(value) if isinstance(value, (int, float)) else duration_s(value)
    return FOREVER_S if seconds < 0 else seconds


def duration_s(text: str) -> float:
    """A Go duration (``1h30m``, ``-500ms``, ``0``); Rejected in Go's words."""
    rest = text[1:] if text[:1] in ("-", "+") else text
    parts = _DURATION.findall(rest)
    if parts and "".join(number + unit for number, unit in parts) == rest:
        seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
        return -seconds if text.startswith("-") else seconds
    if rest == "0":
        return 0.0
    what = "missing unit in" if _NUMBER.fullmatch(rest) else "invalid"
    raise Rejected(400, f'time: {what} duration "{text}"')


def function_tools(entries: list[Any]) -> tuple[Tool, ...]:
    """Tools in the shape that Ollama and OpenAI share (also the flat one of the Responses API)."""
    tools = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise wrong_type("tools", entry, "api.Tool")
        function = entry.get("function", entry)
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            tools.append(Tool(function["name"], function.get("parameters") or function.get("input_schema") or {}))
    return tuple(tools)


def top_logprobs_of(body: dict[str, Any]) -> int:
    value = body.get("top_logprobs") or 0
    if not isinstance(value, int) or not 0 <= value <= 20:
        raise Rejected(400, "top_logprobs must be between 0 and 20")
    return value


def sampling_of(options: dict[str, Any]) -> tuple[tuple[str, float | int | None], ...]:
    """The options that a real model's sampler knows."""
    names = ("temperature", "seed", "top_p", "top_k", "min_p")
    return tuple((name, options[name]) for name in names if isinstance(options.get(name), (int, float)))


def render(messages: list[tuple[str, str]]) -> bytes:
    """The prompt of a conversation; a longer conversation with the same start has the same start here."""
    return "".join(f"<|{role}|>\n{content}\n" for role, content in messages).encode("utf-8", "surrogatepass")


def _go_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object" if isinstance(value, dict) else "null"


def _go_syntax_error(body: bytes) -> str:
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        rest = error.doc[error.pos :]
        if not rest or error.msg.startswith("Unterminated"):
            return "unexpected EOF"
        literal = {"t": "true", "f": "false", "n": "null"}.get(rest[0])
        if literal is not None and error.msg == "Expecting value":
            return _go_literal_error(literal, rest)
        expected = {"Expecting value": "looking for beginning of value"}.get(error.msg)
        if error.msg.startswith("Expecting property name"):
            expected = "looking for beginning of object key string"
        return f"invalid character {rest[0]!r} {expected or 'after object key:value pair'}"
    except (ValueError, RecursionError):
        return "invalid UTF-8 in request body"
    return "invalid number"


def _go_literal_error(literal: str, rest: str) -> str:
    for wanted, got in zip(literal, rest, strict=False):
        if wanted != got:
            return f"invalid character {got!r} in literal {literal} (expecting {wanted!r})"
    return "unexpected EOF"
