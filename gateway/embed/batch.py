"""A body with many texts to embed, cut into bodies with fewer texts; all else stays as the client wrote it."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

import msgspec

_MOST_BODY: Final = 16 << 20
"""A larger one takes too long to read and cut at once, while everybody waits."""
_MOST_COMMAS: Final = 250_000
"""One stands between two texts at least: each is an object, and while a million are made everybody waits."""
_FIXED_BYTES: Final = 128
"""What a text costs beside its length, in bytes of text."""

_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_texts: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_strings: Final = msgspec.json.Decoder(list[str]).decode

_STAYS: Final = re.compile(rb'null|-?[1-9]\d{0,17}|"-?[1-9]\d{0,8}(s|m|h)?"')
"""A ``keep_alive`` that leaves the model in memory after each part; others may, but it takes Go to tell."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The texts, as they are spelled, and what stands around their list."""

    before: bytes
    texts: tuple[msgspec.Raw, ...]
    sizes: tuple[int, ...]
    """Of the texts, in bytes."""
    after: bytes

    @property
    def weight(self) -> int:
        """About how much work it is, in bytes of text."""
        return sum(self.sizes) + _FIXED_BYTES * len(self.sizes)


@dataclass(frozen=True, slots=True)
class Part:
    """A body with some of the texts."""

    body: bytes
    first: int
    """The place of its first text in the whole."""
    texts: int
    text_bytes: int


def read_batch(body: bytes | bytearray) -> Batch | None:
    """None: it has no list of texts, or something about it is unusual."""
    if len(body) > _MOST_BODY or body.count(b",") > _MOST_COMMAS:
        return None
    whole = bytes(body)
    try:
        members = _members(whole)
        given = bytes(members.get("input", b""))
        texts = _texts(given)
        sizes = tuple(len(text.encode()) for text in _strings(given))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    # Go matches names of fields whatever their case: only as everybody writes them is it sure which one counts.
    if not all(name.isascii() and name == name.lower() for name in members):
        return None
    if "keep_alive" in members and _STAYS.fullmatch(bytes(members["keep_alive"])) is None:
        return None
    start = whole.find(given)
    if whole.find(given, start + 1) >= 0:  # the same list twice
        return None
    return Batch(whole[:start], tuple(texts), sizes, whole[start + len(given) :])


def cut(batch: Batch, count: int) -> list[Part]:
    """``count`` parts at most, about as much work each, in order; none is empty."""
    sums = [0, *accumulate(size + _FIXED_BYTES for size in batch.sizes)]
    edges = {bisect_left(sums, sums[-1] * number / count) for number in range(1, count)}
    return [_part(batch, start, end) for start, end in pairwise(sorted({0, *edges, len(batch.sizes)}))]


def _part(batch: Batch, start: int, end: int) -> Part:
    body = b"%b[%b]%b" % (batch.before, b",".join(map(bytes, batch.texts[start:end])), batch.after)
    return Part(body, start, end - start, sum(batch.sizes[start:end]))
