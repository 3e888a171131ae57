"""The text an emulated model writes: pseudo-words that depend on the prompt alone, and JSON as Go encodes it."""

from __future__ import annotations

import hashlib
import zlib
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec

_SYLLABLES = ("ba", "co", "di", "fu", "ga", "he", "ki", "lo", "ma", "ne", "or", "pi", "ra", "su", "ta", "ve", "wi")
_LEAST_TOKENS, _MOST_TOKENS = 20, 200


def to_json(value: object) -> bytes:
    """JSON as Go's encoder writes it: ``<``, ``>``, ``&`` and the two line separators escaped."""
    plain = msgspec.json.encode(value)
    if b"<" in plain or b">" in plain or b"&" in plain:
        plain = plain.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")
    if b"\xe2\x80" in plain:
        plain = plain.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return plain


def in_json(text: str) -> bytes:
    """The text as it stands between the quotes of a JSON string."""
    return to_json(text)[1:-1]


def stamp(nanoseconds: int) -> bytes:
    """UTC in Go's RFC3339Nano: trailing zeros of the fraction are dropped."""
    seconds, rest = divmod(nanoseconds, 10**9)
    moment = datetime.fromtimestamp(seconds, UTC)
    fraction = f"{rest:09d}".rstrip("0")
    return (moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{fraction}" if fraction else "") + "Z").encode()


def local_stamp(seconds: float) -> str:
    """Local time with its offset, as Ollama shows ``modified_at`` and ``expires_at``."""
    if seconds == float("inf"):
        # what now + MaxInt64 nanoseconds comes to
        seconds = datetime.now(UTC).timestamp() + timedelta(days=292 * 365.25).total_seconds()
    moment = datetime.fromtimestamp(seconds, UTC).astimezone()
    offset = moment.strftime("%z")
    zone = "Z" if offset in ("+0000", "") else f"{offset[:3]}:{offset[3:]}"
    fraction = f"{moment.microsecond:06d}000".rstrip("0")
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{fraction}" if fraction else "") + zone


def _vocabulary() -> tuple[str, ...]:
    random = Random(20)
    words = {"".join(random.choices(_SYLLABLES, k=random.randint(1, 4))) for _ in range(700)}
    return tuple(" " + word for word in sorted(words))


_WORDS = _vocabulary()
MEAN_PIECE_BYTES = sum(map(len, _WORDS)) / len(_WORDS)
"""Of what :func:`write` makes of one token."""


def seed_of(prompt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(prompt, digest_size=8).digest(), "big")


def natural_length(prompt: bytes) -> int:
    """How many tokens the model would write by itself."""
    return _LEAST_TOKENS + seed_of(prompt) % (_MOST_TOKENS - _LEAST_TOKENS + 1)


def write(prompt: bytes, tokens: int) -> list[str]:
    """``tokens`` pieces of text, the same for the same prompt."""
    pieces = Random(seed_of(prompt)).choices(_WORDS, k=tokens)
    if pieces:
        pieces[0] = pieces[0].strip().capitalize()
    return pieces


def pieces_of(text: str, tokens: int) -> list[str]:
    """A given text cut into about ``tokens`` pieces (never none)."""
    size = max(1, -(-len(text) // max(tokens, 1)))
    return [text[start : start + size] for start in range(0, len(text), size)] or [""]


def token_ids(text: bytes) -> list[int]:
    """Numbers that stand for the tokens of a text (``context`` of ``/api/generate``)."""
    return [zlib.crc32(text[start : start + 4]) % 128_000 for start in range(0, len(text), 4)]


def vector(text: bytes, dimensions: int, *, unit: bool) -> list[float]:
    """The embedding of a text: the same for the same text."""
    random = Random(seed_of(text))
    values = [random.uniform(-1.0, 1.0) for _ in range(dimensions)]
    return unit_of(values) if unit else values


def unit_of(values: list[float]) -> list[float]:
    """Of length one, as Ollama gives embeddings."""
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    return [value / norm for value in values]


def instance_of(schema: Any, prompt: bytes) -> Any:
    """A value that a JSON schema allows (the parts of JSON schema that clients use for structured answers)."""
    if not isinstance(schema, dict):
        return {"answer": "".join(write(prompt, 6))}
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][seed_of(prompt) % len(schema["enum"])]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return instance_of(_resolved(schema[key][0], schema), prompt)
    return _typed_instance(schema, prompt)


def _typed_instance(schema: dict[str, Any], prompt: bytes) -> Any:
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or (kind is None and "properties" in schema):
        parts = schema.get("properties", {})
        return {name: instance_of(_resolved(part, schema), prompt + str(name).encode()) for name, part in parts.items()}
    if kind == "array":
        count = max(1, int(schema.get("minItems", 1)))
        item = _resolved(schema.get("items", {"type": "string"}), schema)
        return [instance_of(item, prompt + bytes([index % 256])) for index in range(count)]
    if kind in ("integer", "number"):
        return int(schema.get("minimum", 1))
    if kind == "boolean":
        return seed_of(prompt) % 2 == 0
    if kind == "null":
        return None
    return "".join(write(prompt, 3))


def _resolved(part: Any, root: dict[str, Any]) -> Any:
    """Follows ``$ref`` to ``$defs`` and hands the definitions down."""
    if not isinstance(part, dict):
        return part
    definitions = root.get("$defs", {})
    reference = part.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        part = definitions.get(reference.removeprefix("#/$defs/"), {})
    return {"$defs": definitions, **part} if definitions else part
