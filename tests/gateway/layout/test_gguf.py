"""The header of a GGUF file, believed only within bounds."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral.gateway.layout.gguf import GgufError, read_shape
from tests.gateway.layout.gguf_file import LLAMA, header, text, value

START = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_keys_and_values_per_token_follow_from_the_shape(tmp_path: Path, version: int) -> None:
    shape = read_shape(write(tmp_path, header(LLAMA, version=version)))
    assert (shape.architecture, shape.layers, shape.context_length) == ("llama", 80, 131072)
    assert shape.kv_bytes_per_token == 327_680  # as Ollama's own log says of a 70B model: 320 KiB


def test_head_sizes_of_their_own_and_heads_per_layer_count(tmp_path: Path) -> None:
    keys = {
        **LLAMA,
        "llama.block_count": 3,
        "llama.attention.head_count_kv": [8, 0, 2],
        "llama.attention.key_length": 192,
        "llama.attention.value_length": 128,
    }
    assert read_shape(write(tmp_path, header(keys))).kv_bytes_per_token == 2 * (8 + 0 + 2) * (192 + 128)


def test_without_kv_heads_every_head_has_its_own(tmp_path: Path) -> None:
    keys = {key: content for key, content in LLAMA.items() if not key.endswith("_kv")}
    assert read_shape(write(tmp_path, header(keys))).kv_bytes_per_token == 2 * 80 * 64 * (128 + 128)


def test_what_the_header_does_not_say_is_not_known(tmp_path: Path) -> None:
    shape = read_shape(write(tmp_path, header({"general.architecture": "llama", "llama.block_count": 80})))
    assert (shape.kv_bytes_per_token, shape.context_length) == (None, None)


def test_the_vocabulary_is_not_read_after_the_shape(tmp_path: Path) -> None:
    """A vocabulary that is cut short does not matter: reading stops before it."""
    data = header({**LLAMA, "tokenizer.ggml.tokens": ["a"] * 1000})
    assert read_shape(write(tmp_path, data[: len(data) - 5000])).layers == 80


def test_a_vocabulary_before_the_shape_is_passed_over_without_being_kept(tmp_path: Path) -> None:
    path = write(
        tmp_path, header({"tokenizer.ggml.tokens": ["x" * 200] * 20_000, "tokenizer.ids": [7] * 9000, **LLAMA})
    )
    tracemalloc.start()
    assert read_shape(path).layers == 80
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut short"),
        (b"not a model at all, but text", "not a GGUF file"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "GGUF version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "GGUF version 50331648"),
        (header(LLAMA, count=1 << 60), "malformed: 1152921504606846976 keys"),
        (header(LLAMA, count=50), "cut short"),
        (header(LLAMA)[:-20], "cut short"),
        (START + struct.pack("<Q", 1 << 40), "bytes of text"),
        (START + text("k") + struct.pack("<I", 77), "malformed: a value of type 77"),
        (START + text("k") + struct.pack("<IIQ", 9, 8, 1 << 50), "texts"),
        (START + text("k") + struct.pack("<IIQ", 9, 4, 1 << 50), "elements"),
        (START + text("k") + struct.pack("<IIQ", 9, 9, 1), "an array of type 9"),
        (START + text("k") + struct.pack("<IIQ", 9, 4, 1000), "cut short"),
        (START + struct.pack("<Q", 1) + b"\xff" + value(1), "malformed"),
        (header({"a": 1}), "does not name its architecture"),
    ],
)
def test_a_file_that_cannot_be_believed_is_refused_with_the_reason(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(GgufError, match=said):
        read_shape(write(tmp_path, data))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="cannot be read: No such file"):
        read_shape(tmp_path / "gone")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), noise=st.binary(min_size=1, max_size=16))
def test_no_damage_does_more_than_refuse(tmp_path: Path, at: int, noise: bytes) -> None:
    data = header(LLAMA)
    try:
        read_shape(write(tmp_path, data[:at] + noise + data[at + len(noise) :]))
    except GgufError:
        pass
