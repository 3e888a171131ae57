"""Compressed request bodies: read for routing, forwarded as they came."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc

import pytest

from corral.gateway.wire.fields import route_request
from corral.gateway.wire.routes import find_route
from corral.gateway.wire.zstd import MOST_BYTES, decompressed
from corral.model import RequestKind, RouteRequest
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import post
from tests.gateway.wire.replica import MODEL, Call

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = json.dumps({"model": "m", "input": "The quick brown fox jumps over the lazy dog. " * 400}).encode()
MIB = 1 << 20


def request(path: str, body: bytes, encoding: bytes | None = b"zstd") -> RouteRequest:
    return route_request(find_route(b"POST", path), body, b"application/json", "t", encoding=encoding)


def read(body: bytes | bytearray) -> bytes | None:
    text = decompressed(body)
    return None if text is None else bytes(text)


def streamed(text: bytes, *, step: int = 100) -> bytes:
    """As a client compresses that does not know how much will come: no size in the head, many blocks."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
    starts = range(0, len(text), step)
    pieces = [compressor.compress(text[at : at + step], compressor.FLUSH_BLOCK) for at in starts]
    return b"".join((*pieces, compressor.flush()))


@pytest.mark.parametrize("level", [-5, 1, 3, 10, 19])
def test_what_was_compressed_comes_out(level: int) -> None:
    for text in (TEXT, b"x", b"", os.urandom(300_000)):
        assert read(zstd.compress(text, level)) == text
        assert read(bytearray(zstd.compress(text, level))) == text


def test_bodies_in_many_blocks_and_in_several_frames_are_read() -> None:
    assert read(streamed(TEXT)) == TEXT
    assert read(zstd.compress(TEXT[:100]) + zstd.compress(TEXT[100:])) == TEXT
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"extra"
    assert read(skippable + zstd.compress(TEXT)) == TEXT


def test_exactly_as_much_as_ollama_takes_is_read_and_not_a_byte_more() -> None:
    assert read(zstd.compress(b"x" * MOST_BYTES)) == b"x" * MOST_BYTES
    assert read(zstd.compress(b"x" * (MOST_BYTES + 1))) is None
    halves = zstd.compress(b"x" * (MOST_BYTES // 2))
    assert read(halves * 2) is not None
    assert read(halves * 3) is None


WHOLE = zstd.compress(TEXT)
UNREADABLE = {
    "nothing": b"",
    "plain text": TEXT,
    "cut off": WHOLE[:-1],
    "only its head": WHOLE[:8],
    "something behind it": WHOLE + b"{}",
    "a broken checksum": streamed(TEXT)[:-1] + b"\0",
    "too many frames": zstd.compress(b"") * 65,
    "a window of 16 MiB": b"\x28\xb5\x2f\xfd\x00\x70" + b"\x0b\x00\x00x",
    "a window of 2 TiB": b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x0b\x00\x00x",
    "a dictionary": b"\x28\xb5\x2f\xfd\x01\x58\x07" + b"\x0b\x00\x00x",
}


@pytest.mark.parametrize("name", list(UNREADABLE))
def test_what_cannot_be_read_routes_without_a_model(name: str) -> None:
    body = UNREADABLE[name]
    assert read(body) is None
    assert request("/v1/responses", body) == RouteRequest(RequestKind.OTHER, None, "", len(body), "t")


def test_a_window_of_eight_mebibytes_is_what_ollama_takes_too() -> None:
    assert read(b"\x28\xb5\x2f\xfd\x00\x68" + b"\x0b\x00\x00x") == b"x"


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/embeddings", "/v1/new"]
)
def test_a_compressed_request_is_routed_as_the_plain_one(path: str) -> None:
    plain, found = request(path, TEXT, None), request(path, WHOLE)
    assert plain.model == "m:latest"
    assert (found.kind, found.key, found.prefix) == (RequestKind.INFERENCE, plain.key, plain.prefix)
    assert (found.text_bytes, found.body_bytes) == (plain.text_bytes, len(WHOLE))


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/show", "/api/pull"])
def test_where_ollama_takes_no_compressed_body_nothing_is_loaded_for_one(path: str) -> None:
    assert request(path, WHOLE).model is None


@pytest.mark.parametrize("encoding", [None, b"", b"gzip", b"identity", b"ZSTD", b"zstd, gzip"])
def test_any_other_encoding_is_none_as_for_ollama(encoding: bytes | None) -> None:
    assert request("/v1/responses", TEXT, encoding).model == "m:latest"
    assert request("/v1/responses", WHOLE, encoding).model is None


def test_a_compressed_request_for_a_cloud_model_takes_no_slot() -> None:
    assert request("/v1/responses", zstd.compress(b'{"model":"big:cloud"}')).kind is RequestKind.CLOUD


def test_reading_takes_no_more_memory_than_the_most_that_is_read() -> None:
    bomb = zstd.compress(b"\0" * (64 * MIB))
    assert len(bomb) < 8192
    for body in (bomb, zstd.compress(b"\0" * MOST_BYTES)):
        tracemalloc.start()
        try:
            decompressed(body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MOST_BYTES * 1.25


async def answered(call: Call) -> None:
    await call.json({"object": "response", "status": "completed"})


async def test_the_replica_gets_the_bytes_and_the_header_of_the_client(start: Start) -> None:
    gateway = await start(1, slots=1)
    gateway.replicas[0].answer = answered
    body = zstd.compress(json.dumps({"model": MODEL, "input": "hi"}).encode())
    status, _, _ = await gateway.ask(post("/v1/responses", body, "Content-Encoding: zstd"))
    call = gateway.replicas[0].calls[0]
    assert (status, call.body, call.header("content-encoding")) == (200, body, "zstd")
    assert ("openai_responses", MODEL) in gateway.app.metrics.series


async def test_of_several_encodings_the_first_counts_and_connection_names_none_away(start: Start) -> None:
    gateway = await start(1)
    gateway.replicas[0].answer = answered
    body = zstd.compress(json.dumps({"model": MODEL, "input": "hi"}).encode())
    lines = ("Content-Encoding: zstd", "Content-Encoding: gzip", "Connection: Content-Encoding")
    assert (await gateway.ask(post("/v1/responses", body, *lines)))[0] == 200
    assert gateway.replicas[0].calls[0].head.count(b"Content-Encoding: ") == 2
    assert ("openai_responses", MODEL) in gateway.app.metrics.series
    await gateway.ask(post("/v1/responses", body, *lines[1:]))
    assert ("openai_responses", "none") in gateway.app.metrics.series
