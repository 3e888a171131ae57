"""Writes headers of GGUF files, right ones and wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

LLAMA: Mapping[str, int | str | float | bool | Sequence[int] | Sequence[str]] = {
    "general.architecture": "llama",
    "general.name": "A model",
    "general.tags": ["a", "b"],
    "llama.block_count": 80,
    "llama.context_length": 131072,
    "llama.embedding_length": 8192,
    "llama.attention.head_count": 64,
    "llama.attention.head_count_kv": 8,
    "llama.rope.freq_base": 500000.0,
    "llama.rope.scaled": True,
}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(content: int | str | float | bool | Sequence[int] | Sequence[str]) -> bytes:
    """Its type and itself."""
    if isinstance(content, bool):
        return struct.pack("<I?", 7, content)
    if isinstance(content, int):
        return struct.pack("<II", 4, content)
    if isinstance(content, float):
        return struct.pack("<If", 6, content)
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    if content and isinstance(content[0], str):
        return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(text(str(item)) for item in content)
    return struct.pack("<IIQ", 9, 5, len(content)) + b"".join(struct.pack("<i", int(item)) for item in content)


def header(
    keys: Mapping[str, int | str | float | bool | Sequence[int] | Sequence[str]],
    *,
    version: int = 3,
    count: int | None = None,
) -> bytes:
    """A header without tensors; ``count``: how many keys it claims."""
    start = struct.pack("<4sIQQ", b"GGUF", version, 0, len(keys) if count is None else count)
    return start + b"".join(text(key) + value(content) for key, content in keys.items())


def write_store(root: Path, models: Mapping[str, tuple[bytes, int]]) -> None:
    """``HOST/NAMESPACE/MODEL/TAG`` to a header and the size that the manifest claims."""
    import hashlib
    import json

    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for name, (data, size) in models.items():
        digest = hashlib.sha256(data).hexdigest()
        (root / "blobs" / f"sha256-{digest}").write_bytes(data)
        path = root / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        layers = [
            {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": size},
            {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{digest}", "size": 99},
        ]
        path.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
