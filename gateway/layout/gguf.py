"""Reads what the header of a GGUF file says of the model's size; nothing of it is believed without a bound.

Own code, because the library (``gguf``) needs numpy and maps whole files of tens of GB to answer six numbers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

MAX_KEYS: Final = 65_536
MAX_KEY_BYTES: Final = 65_535
MAX_TEXT_BYTES: Final = 16 << 20
MAX_ARRAY: Final = 16 << 20
MAX_TEXTS: Final = 2 << 20
"""Elements of an array of texts, which must be read one by one to be passed over."""
MAX_KEPT: Final = 4096
"""Elements of an array that is kept: one per layer."""

_SCALARS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_SIZES: Final = {kind: struct.calcsize(form) for kind, form in _SCALARS.items()}
_BYTES_PER_ELEMENT = 2
"""Of keys and of values, with 16 bits."""

Value = int | float | bool | str | tuple[int | float | bool, ...] | None


class GgufError(Exception):
    """Not a GGUF file, or not one that can be believed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the memory of a model beside its weights."""

    architecture: str
    layers: int | None
    kv_bytes_per_token: int | None
    context_length: int | None


def read_shape(path: Path) -> Shape:
    """Raises :class:`GgufError` with the reason, also where the file cannot be read."""
    try:
        with path.open("rb") as file:
            return _shape(_Header(file))
    except OSError as error:
        raise GgufError(f"cannot be read: {error.strerror or error}") from error
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise GgufError(f"malformed: {error}") from error


class _Header:
    """One pass over the keys and values at the beginning of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        file.seek(0)
        if self._take(4) != b"GGUF":
            raise GgufError("not a GGUF file")
        version = self._number("<I")
        if version not in (2, 3):
            raise GgufError(f"GGUF version {version}: only 2 and 3, little-endian, are read")
        self._number("<Q")  # tensors
        self.count = self._bounded(self._number("<Q"), MAX_KEYS, "keys")

    def key(self) -> str:
        """The next key; :meth:`value` must follow."""
        return self._text(MAX_KEY_BYTES)

    def value(self, keep: bool) -> Value:
        """The next value; None where it is passed over, or of no use here."""
        return self._value(self._number("<I"), keep)

    def _value(self, kind: int, keep: bool) -> Value:
        if kind in _SCALARS:
            value: Value = struct.unpack(_SCALARS[kind], self._take(_SIZES[kind]))[0]
            return value
        if kind == _TEXT:
            if keep:
                return self._text(MAX_TEXT_BYTES)
            self._pass_text()
            return None
        if kind == _ARRAY:
            return self._array(keep)
        raise GgufError(f"malformed: a value of type {kind}")

    def _array(self, keep: bool) -> Value:
        kind, count = self._number("<I"), self._number("<Q")
        if kind == _TEXT:
            for _ in range(self._bounded(count, MAX_TEXTS, "texts")):
                self._pass_text()
            return None
        if kind not in _SCALARS:
            raise GgufError(f"malformed: an array of type {kind}")
        size = self._bounded(count, MAX_ARRAY, "elements") * _SIZES[kind]
        if not keep or count > MAX_KEPT:
            self._pass(size)
            return None
        form = f"<{count}{_SCALARS[kind][1:]}"
        return tuple(struct.unpack(form, self._take(size)))

    def _text(self, most: int) -> str:
        return self._take(self._bounded(self._number("<Q"), most, "bytes of text")).decode()

    def _pass_text(self) -> None:
        self._pass(self._bounded(self._number("<Q"), MAX_TEXT_BYTES, "bytes of text"))

    def _number(self, form: str) -> int:
        value = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        assert isinstance(value, int)
        return value

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise GgufError("cut short")
        return data

    def _pass(self, size: int) -> None:
        if self._file.seek(size, 1) > self._size:
            raise GgufError("cut short")

    @staticmethod
    def _bounded(value: int, most: int, what: str) -> int:
        if value > most:
            raise GgufError(f"malformed: {value} {what}")
        return value


_WANTED = frozenset(
    {
        "architecture",
        "block_count",
        "context_length",
        "embedding_length",
        "head_count",
        "head_count_kv",
        "key_length",
        "value_length",
    }
)


def _shape(header: _Header) -> Shape:
    found: dict[str, Value] = {}
    for _ in range(header.count):
        key = header.key()
        is_vocabulary = key.startswith("tokenizer.")
        if is_vocabulary and _is_complete(found):
            break  # megabytes of texts
        value = header.value(keep=not is_vocabulary and key.rpartition(".")[2] in _WANTED)
        if value is not None:
            found[key] = value
    architecture = found.get("general.architecture")
    if not isinstance(architecture, str):
        raise GgufError("does not name its architecture")
    return _shape_of(architecture, {key.removeprefix(f"{architecture}."): value for key, value in found.items()})


def _is_complete(found: dict[str, Value]) -> bool:
    architecture = found.get("general.architecture")
    return all(f"{architecture}.{name}" in found for name in ("block_count", "embedding_length"))


def _shape_of(architecture: str, found: dict[str, Value]) -> Shape:
    layers = _count(found.get("block_count"))
    return Shape(architecture, layers, _kv_bytes(found, layers), _count(found.get("context_length")))


def _kv_bytes(found: dict[str, Value], layers: int | None) -> int | None:
    """Per token, 16 bits each; None where the header does not say enough."""
    heads = _per_layer(found.get("attention.head_count"), layers)
    kv_heads = _per_layer(found.get("attention.head_count_kv"), layers) or heads
    if not heads or not kv_heads:
        return None
    embedding = _count(found.get("embedding_length"))
    head = embedding // max(heads) if embedding is not None and max(heads) else None
    key, value = _count(found.get("attention.key_length")) or head, _count(found.get("attention.value_length")) or head
    return None if key is None or value is None else _BYTES_PER_ELEMENT * sum(kv_heads) * (key + value)


def _per_layer(value: Value, layers: int | None) -> list[int] | None:
    """One number for all layers, or one for each (0: a layer without attention)."""
    if layers is None or layers > MAX_KEPT:
        return None
    if isinstance(value, tuple):
        counts = [int(count) for count in value if 0 <= count <= MAX_KEPT]
        return counts if len(counts) == len(value) == layers else None
    count = _count(value)
    return None if count is None else [count] * layers


def _count(value: Value) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else None
