"""``/v1/audio/transcriptions``: a form with a sound file becomes a chat, its answer a transcript."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from corral.emulator.ask import Ask, Rejected, render
from corral.emulator.dialects import openai
from corral.emulator.dialects.base import PLAIN_JSON, Result
from corral.emulator.prefix import BYTES_PER_TOKEN
from corral.emulator.text import to_json
from corral.emulator.wire import Header

MOST_BYTES: Final = 25 << 20
_BYTES_OF_A_TOKEN: Final = 1280
"""25 tokens a second, of sound that has 16 000 samples of two bytes: the figures of Gemma's audio encoder."""
_MOST_TOKENS: Final = 750
_TASK: Final = "Transcribe the audio exactly as spoken. Output only the spoken words."


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of the request that Ollama reads."""

    model: str
    audio: bytes
    response_format: str
    language: str
    prompt: str


def read_form(content_type: str, body: bytes) -> Form:
    """The fields; Rejected in Ollama's words."""
    boundary = _boundary(content_type)
    if len(body) > MOST_BYTES:
        raise _no_form("http: request body too large")
    parts = _parts(boundary, body)

    def field(name: str) -> str:
        return parts.get(name, b"").decode("utf-8", "replace")

    if not field("model"):
        raise Rejected(400, "model is required")
    if "file" not in parts:
        raise Rejected(400, "file is required: http: no such file")
    if not parts["file"]:
        raise Rejected(400, "audio file is empty")
    return Form(field("model"), parts["file"], field("response_format"), field("language"), field("prompt"))


def ask_of(form: Form) -> Ask:
    """What the model is asked: the longer the sound, the more tokens it has."""
    task = _TASK + (f" The audio is in {form.language}." if form.language else "")
    task += f" Context: {form.prompt}" if form.prompt else ""
    tokens = min(_MOST_TOKENS, 1 + len(form.audio) // _BYTES_OF_A_TOKEN)
    mark = hashlib.sha256(form.audio).hexdigest()
    heard = (mark * (1 + tokens * BYTES_PER_TOKEN // len(mark)))[: tokens * BYTES_PER_TOKEN]
    messages = (("system", task), ("user", f"What exact words are spoken in this audio? {heard}"))
    return Ask(
        model=form.model,
        prompt=render(list(messages)),
        messages=messages,
        stream=False,
        chat=True,
        images=1,
        think=False,
        relax_thinking=True,
    )


class Transcription:
    """One answer: never streamed."""

    content_type = PLAIN_JSON
    headers: tuple[Header, ...] = ()

    def __init__(self, response_format: str) -> None:
        self._plain = response_format == "text"
        self.whole_type = b"text/plain" if self._plain else PLAIN_JSON

    def whole(self, result: Result, stamp: bytes) -> bytes:
        text = result.text.strip()
        return text.encode("utf-8", "surrogatepass") if self._plain else to_json({"text": text}) + b"\n"

    def error(self, status: int, message: str) -> bytes:
        return openai.error_body(status, message) + b"\n"

    def opening(self, prompt_tokens: int) -> bytes:
        return b""

    def thinking(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes:
        return b""

    def text(self, token: bytes, stamp: bytes, logprob: dict[str, Any] | None) -> bytes:
        return b""

    def closing(self, result: Result, stamp: bytes) -> bytes:
        return b""

    def broken(self, message: str) -> bytes:
        return b""


def _boundary(content_type: str) -> bytes:
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise _no_form("request Content-Type isn't multipart/form-data")
    found = re.search(r'boundary=(?:"([^"]+)"|([^\s;]+))', parameters)
    if found is None:
        raise _no_form("no multipart boundary param in Content-Type")
    return (found[1] or found[2]).encode("latin-1")


def _parts(boundary: bytes, body: bytes) -> dict[str, bytes]:
    """The first part of each name."""
    mark = b"\r\n--" + boundary
    pieces = (b"\r\n" + body).split(mark)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise _no_form("multipart: NextPart: EOF")
    found: dict[str, bytes] = {}
    for piece in pieces[1:-1]:
        head, gap, content = piece.partition(b"\r\n\r\n")
        name = re.search(rb'content-disposition:[^\r\n]*?[;\s]name="([^"]*)"', head, re.IGNORECASE)
        if not gap or name is None:
            raise _no_form("malformed MIME header line")
        found.setdefault(name[1].decode("utf-8", "replace"), content)
    return found


def _no_form(why: str) -> Rejected:
    return Rejected(400, f"failed to parse multipart form: {why}")
