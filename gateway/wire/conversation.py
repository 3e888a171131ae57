"""What a model will read of a request: how much it is, and hashes by which a shared beginning is recognised.

All dialects are rendered to one text, tools first, then the messages in order, each behind a mark with its role. An
appended message only ever adds to its end. An image stands in it as a digest, and does not count as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from corral.gateway.wire.shapes import Chat, Message, Part

BLOCK_BYTES: Final = 512
MAX_BLOCKS: Final = 1024
_MAX_BYTES: Final = BLOCK_BYTES * MAX_BLOCKS

_IMAGE_BYTES: Final = 18
_WHOLE_IMAGE_BYTES: Final = 64 * 1024
_SAMPLE_BYTES: Final = 16 * 1024
_MASK: Final = (1 << 64) - 1


def measure(chat: Chat) -> tuple[int, tuple[int, ...]]:
    """The length in bytes of its text, and the chained hashes of the text's blocks."""
    pieces: list[str] = []
    images = _add_chat(pieces, chat)
    if sum(map(len, pieces)) <= _MAX_BYTES:
        text = "".join(pieces).encode()
        text_bytes = len(text)
    else:
        text = _beginning(pieces).encode()
        text_bytes = sum([len(piece) if piece.isascii() else len(piece.encode()) for piece in pieces])
    return text_bytes - images * _IMAGE_BYTES, block_hashes(text)


def block_hashes(text: bytes) -> tuple[int, ...]:
    """One number for each whole block: equal ones at the same place mean equal texts up to there."""
    chained = 0
    hashes: list[int] = []
    for end in range(BLOCK_BYTES, min(len(text), _MAX_BYTES) + 1, BLOCK_BYTES):
        chained = hash((chained, text[end - BLOCK_BYTES : end]))
        hashes.append(chained)
    return tuple(hashes)


def _beginning(pieces: Sequence[str]) -> str:
    """So much of the text as is hashed: to copy all of a large one takes time that others wait."""
    room = _MAX_BYTES
    for number, piece in enumerate(pieces):
        room -= len(piece)
        if room < 0:
            return "".join((*pieces[:number], piece[:room]))
    return "".join(pieces)


# Each of these adds to ``pieces`` and returns how many images it added.


def _add_chat(pieces: list[str], chat: Chat) -> int:
    images = 0
    tools = _plain(chat.tools) if chat.tools else ""
    if tools:
        pieces += ("\x02tools\n", tools)
    for text in (chat.system, chat.instructions):
        if text:
            pieces.append("\x02system\n")
            images += _add_content(pieces, text)
    for message in chat.messages or ():
        images += _add_message(pieces, message)
    return images + _add_prompt(pieces, chat)


def _add_prompt(pieces: list[str], chat: Chat) -> int:
    if chat.context:
        pieces.append(_plain(chat.context))
    if chat.prompt:
        pieces += ("\x02user\n", chat.prompt)
    if chat.suffix:
        pieces += ("\x02suffix\n", chat.suffix)
    given = chat.input
    if isinstance(given, str):
        pieces.append("\x02user\n")
    images = _add_content(pieces, given) if given else 0
    return images + _add_images(pieces, chat.images) if chat.images else images


def _add_message(pieces: list[str], message: Message) -> int:
    pieces.append(f"\x02{message.role}\n")
    if message.thinking:
        pieces.append(message.thinking)
    if message.reasoning:
        pieces.append(message.reasoning)
    content = message.content
    images = 0
    if isinstance(content, str):
        pieces.append(content)
    elif content:
        images = _add_content(pieces, content)
    if message.tool_calls:
        pieces.append(_plain(message.tool_calls))
    return images + _add_images(pieces, message.images) if message.images else images


def _add_content(pieces: list[str], content: str | Sequence[Part]) -> int:
    if isinstance(content, str):
        pieces.append(content)
        return 0
    return sum([_add_part(pieces, part) for part in content])


def _add_part(pieces: list[str], part: Part) -> int:
    if part.role:
        pieces.append(f"\x02{part.role}\n")
    pieces += [text for text in (part.thinking, part.encrypted_content, part.text, part.name) if text]
    images = _add_content(pieces, part.content) if part.content else 0
    told = None if part.encrypted_content else part.summary  # the same again, shorter
    pieces += [_plain(raw) for raw in (part.input, part.arguments, told) if raw]
    if part.output:
        images += _add_content(pieces, [part.output] if isinstance(part.output, Part) else part.output)
    shown = [raw for raw in (part.image_url, part.source, part.input_audio, part.file) if raw]
    return images + _add_images(pieces, shown) if shown else images


def _add_images(pieces: list[str], images: Sequence[msgspec.Raw]) -> int:
    digests = [_digest(image) & _MASK for image in images if bytes(memoryview(image)[:5]) != b"null"]
    pieces += [f"\x03{digest:016x}\n" for digest in digests]
    return len(digests)


def _plain(raw: msgspec.Raw) -> str:
    """JSON as the client wrote it; of ``null`` nothing."""
    text = str(raw, "utf-8", "replace")
    return "" if text == "null" else text


def _digest(image: msgspec.Raw) -> int:
    """Of a large image its beginning, middle and end: hashing all of it takes time that others wait."""
    with memoryview(image) as data:
        if len(data) <= _WHOLE_IMAGE_BYTES:
            return hash(bytes(data))
        middle = (len(data) - _SAMPLE_BYTES) // 2
        samples = (data[:_SAMPLE_BYTES], data[middle : middle + _SAMPLE_BYTES], data[-_SAMPLE_BYTES:])
        return hash((len(data), *map(bytes, samples)))
