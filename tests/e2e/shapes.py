"""What clients ask in each dialect, and how an answer is judged: complete, an error, cut, or a false end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final


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


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of request: where it goes, what it says, and how its answer is read."""

    name: str
    path: str
    body: Callable[[str, str, int], dict[str, Any]]
    """Of model, prompt and how many tokens to answer."""
    read: Callable[[bytes], tuple[str, Verdict]]
    """The text of a body that ended cleanly or not, and how it ends; FALSE_END where nothing says how."""


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
