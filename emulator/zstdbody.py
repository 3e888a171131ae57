"""Request bodies that come compressed with zstd, as Ollama takes them: so much at most, and on some routes only."""

from __future__ import annotations

import sys
from typing import Final

from corral.emulator.ask import Rejected

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"})
"""Those that may be passed on to the cloud."""
_MOST_BYTES: Final = 20 << 20
_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 23}


def unpacked(body: bytes) -> bytes:
    """What is in it; Rejected in the words of Ollama's decoder."""
    parts, size = [], 0
    while body:
        frame = zstd.ZstdDecompressor(options=_OPTIONS)
        try:
            part = frame.decompress(body, _MOST_BYTES + 1 - size)
        except zstd.ZstdError as error:
            words = "window size exceeded" if "memory" in str(error) else "invalid input: magic number mismatch"
            raise Rejected(400, words) from None
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise Rejected(400, "http: request body too large")
        if not frame.eof:
            raise Rejected(400, "unexpected EOF")
        body = frame.unused_data
    return b"".join(parts)
