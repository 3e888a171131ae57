"""Request bodies that come compressed with zstd: what routing reads of them. What is forwarded stays as it came.

Ollama takes 20 MiB of text and a window of 8 MiB. So does this: a body that would become more is given up where it
does, so it costs no more memory than these two, and no more time than a plain body of that size.
"""

from __future__ import annotations

import sys
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MOST_BYTES: Final = 20 << 20
_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 23}
_MOST_FRAMES: Final = 64
"""Clients send one. Each costs a decoder, however little is in it."""
_PIECE_BYTES: Final = 64 * 1024


def decompressed(body: bytes | bytearray) -> bytearray | None:
    """What is in ``body``; None: it is not whole, no zstd, or more than Ollama takes."""
    if len(body) > MOST_BYTES:  # no text grows by being compressed
        return None
    text = bytearray()
    with memoryview(body) as data:
        at = 0
        for _ in range(_MOST_FRAMES):
            try:
                at = _take_frame(data, at, text)
            except (zstd.ZstdError, ValueError):
                return None
            if at == len(data):
                return text
    return None


def _take_frame(data: memoryview, at: int, text: bytearray) -> int:
    """Add to ``text`` what is in the frame that begins at ``at``; returns where the next one begins."""
    frame = zstd.ZstdDecompressor(options=_OPTIONS)
    while not frame.eof:
        piece = data[at : at + _PIECE_BYTES] if frame.needs_input else b""
        if frame.needs_input and not piece:
            raise ValueError("cut off")
        at += len(piece)
        text += frame.decompress(piece, min(_PIECE_BYTES, MOST_BYTES + 1 - len(text)))
        if len(text) > MOST_BYTES:
            raise ValueError("too large")
    return at - len(frame.unused_data)
