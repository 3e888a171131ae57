"""What an emulated model will say to a request: decided before the first token, from the request alone."""

from __future__ import annotations

import json
import re
from typing import Any

from corral.emulator.ask import Ask, Tool, ToolCall
from corral.emulator.catalog import ModelSpec
from corral.emulator.generation import Script
from corral.emulator.text import instance_of, natural_length, pieces_of, seed_of, write

_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_TIMES = re.compile(r"search (\d{1,3}) times")
_TOOL_TOKENS = 24
_MOST_TOKENS = 100_000


def script_for(ask: Ask, model: ModelSpec) -> Script:
    """The whole answer."""
    if ask.tools and (ask.last_role == "user" or _searches_again(ask)):
        return _tool_script(ask.tools[0], ask.prompt)
    limit = ask.num_predict
    if ask.format is not None:
        return _formatted(ask)
    length = min(limit, _MOST_TOKENS) if limit is not None else natural_length(ask.prompt)
    pieces = write(ask.prompt, length)
    thoughts = _thoughts(ask, model, length)
    reason = "length" if limit is not None else "stop"
    if ask.stop:
        cut = _until_stop(pieces, ask.stop)
        if cut is not None:
            pieces, reason = cut, "stop"
            thoughts = min(thoughts, len(pieces))
    return Script(pieces or [""], thoughts, done_reason=reason)


def _thoughts(ask: Ask, model: ModelSpec, length: int) -> int:
    wanted = ask.think is None or bool(ask.think)
    return max(1, length // 3) if wanted and "thinking" in model.capabilities and length > 1 else 0


def _searches_again(ask: Ask) -> bool:
    """A prompt with "search 5 times" has it call its search so often."""
    wanted = [int(found) for role, text in ask.messages if role == "user" for found in _TIMES.findall(text)]
    searched = sum(role == "tool" for role, _ in ask.messages)
    return ask.tools[0].name == "web_search" and bool(wanted) and searched < max(wanted)


def _tool_script(tool: Tool, prompt: bytes) -> Script:
    seed = seed_of(prompt)
    suffix = "".join(_ID_LETTERS[(seed >> (5 * place)) % len(_ID_LETTERS)] for place in range(8))
    arguments = instance_of({"type": "object", **tool.parameters}, prompt)
    call = ToolCall(f"call_{suffix}", tool.name, arguments if isinstance(arguments, dict) else {})
    return Script([""] * _TOOL_TOKENS, hidden=True, tool_calls=(call,))


def _formatted(ask: Ask) -> Script:
    value: Any = instance_of(ask.format, ask.prompt)
    text = json.dumps(value)
    pieces = pieces_of(text, max(4, len(text) // 4))
    if ask.num_predict is not None and ask.num_predict < len(pieces):
        return Script(pieces[: ask.num_predict], done_reason="length")
    return Script(pieces)


def _until_stop(pieces: list[str], stops: tuple[str, ...]) -> list[str] | None:
    """The pieces before the first stop string, or None where none occurs."""
    text = "".join(pieces)
    places = [text.index(stop) for stop in stops if stop and stop in text]
    if not places:
        return None
    left, kept = min(places), []
    for piece in pieces:
        if left <= 0:
            break
        kept.append(piece[:left])
        left -= len(piece)
    return kept
