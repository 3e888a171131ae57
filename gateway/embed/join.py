"""Answers to parts, joined to the one that the whole would have got: spliced, so that no number is written anew.

Every field is the first part's, but for the vectors, which follow each other; the durations, of which the longest
counts, since the parts are worked off beside each other; and the counts of tokens, which are added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from corral.errors import CorralError
from corral.gateway.wire.dialect import Dialect
from corral.model import Figures

_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_entries: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_whole: Final = msgspec.json.Decoder(int).decode
_encode: Final = msgspec.json.encode

_LONGEST: Final = ("total_duration", "load_duration")
_ADDED: Final = ("prompt_eval_count",)

Members = dict[str, msgspec.Raw]


class Unjoinable(CorralError):
    """It is no answer to so many texts as Ollama gives it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The answer to one part, taken apart."""

    members: Members
    """All of its fields, in its order; that of the vectors without its value."""
    vectors: memoryview
    """What stands between the brackets of their list; OpenAI's numbered as in the whole."""
    usage: dict[str, int]
    """OpenAI's counts."""
    end: bytes
    """What follows the answer, such as a newline."""
    figures: Figures


def take_apart(dialect: Dialect, body: bytes, first: int, texts: int) -> Piece:
    """The answer to ``texts`` texts, of which the first is number ``first`` of the whole. Raises Unjoinable."""
    try:
        members = _members(body)
        if dialect is Dialect.OPENAI:
            return _openai(members, body, first, texts)
        return _native(members, body, texts)
    except (msgspec.MsgspecError, ValueError, KeyError, RecursionError) as error:
        raise Unjoinable("not an answer to a part of a batch") from error


def _native(members: Members, body: bytes, texts: int) -> Piece:
    listed = bytes(members["embeddings"])
    _expect(listed.count(b"["), texts + 1)  # the list's own bracket, and each vector's
    counts = {name: _whole(members[name]) for name in (*_LONGEST, *_ADDED) if name in members}
    load_ns, total_ns = counts.get("load_duration"), counts.get("total_duration")
    figures = Figures(
        prompt_tokens=counts.get("prompt_eval_count"),
        load_s=None if load_ns is None else load_ns / 1e9,
        # what is left of it is all prefill; the time that it waited inside the replica cannot be told apart
        prefill_s=None if load_ns is None or total_ns is None else max(0, total_ns - load_ns) / 1e9,
    )
    return Piece(_few(members, "embeddings"), memoryview(listed)[1:-1], {}, _behind(body), figures)


def _openai(members: Members, body: bytes, first: int, texts: int) -> Piece:
    entries = _entries(members["data"])
    _expect(len(entries), texts)
    for number, entry in enumerate(entries):
        if _whole(entry["index"]) != number:
            raise ValueError("out of order")
        entry["index"] = msgspec.Raw(b"%d" % (first + number))
    usage = {name: _whole(count) for name, count in _members(members["usage"]).items()} if "usage" in members else {}
    vectors = memoryview(_encode(entries))[1:-1]
    figures = Figures(prompt_tokens=usage.get("prompt_tokens"))
    return Piece(_few(members, "data"), vectors, usage, _behind(body), figures)


def _few(members: Members, listed: str) -> Members:
    """Copies of all but one: the body itself is not held any longer."""
    return {name: msgspec.Raw() if name == listed else msgspec.Raw(bytes(raw)) for name, raw in members.items()}


def _expect(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"{found} where there should be {wanted}")


def _behind(body: bytes) -> bytes:
    return body[len(body.rstrip()) :]


def join(dialect: Dialect, pieces: Sequence[Piece]) -> list[bytes]:
    """The answer to the whole, in slices: one for each part, and what follows the vectors."""
    listed = "data" if dialect is Dialect.OPENAI else "embeddings"
    slices: list[bytes] = []
    text = b"{"
    for name in dict.fromkeys(name for piece in pieces for name in piece.members):  # one may leave out what is zero
        text += b"%b%b:" % (b"" if text == b"{" else b",", _encode(name))
        if name == listed:
            leads = (text + b"[", *[b","] * (len(pieces) - 1))
            slices = [b"".join(each) for each in zip(leads, (piece.vectors for piece in pieces), strict=True)]
            text = b"]"
        else:
            text += _value(dialect, name, pieces)
    return [*slices, text + b"}" + pieces[0].end]


def _value(dialect: Dialect, name: str, pieces: Sequence[Piece]) -> bytes:
    values = [piece.members[name] for piece in pieces if name in piece.members]
    if dialect is Dialect.OPENAI:
        return _encode(_sums(piece.usage for piece in pieces)) if name == "usage" else bytes(values[0])
    if name in _LONGEST:
        return b"%d" % max(map(_whole, values))
    if name in _ADDED:
        return b"%d" % sum(map(_whole, values))
    return bytes(values[0])


def _sums(usages: Iterable[dict[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for usage in usages:
        for name, count in usage.items():
            sums[name] = sums.get(name, 0) + count
    return sums
