"""The Ollama probe against answers right and wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator

import aiohttp
import pytest

from corral.model import InstalledModel, LoadedModel, ProbeResult, Replica
from corral.probes.ollama import MAX_ANSWER_BYTES, Miss, OllamaProbe, probe_session
from tests.probes.fake_ollama import (
    LOADED,
    TAG,
    Answer,
    FakeOllama,
    document,
    endless,
    fake_ollama,
    held,
    octets,
    page,
    reset,
)

SOON_S = 5.0
"""A deadline that is not met by accident; nothing here waits for it."""


@pytest.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    async with fake_ollama() as fake:
        yield fake


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with probe_session() as session:
        yield session


@pytest.fixture
def probe(session: aiohttp.ClientSession, ollama: FakeOllama) -> OllamaProbe:
    return OllamaProbe(session, ollama.replica())


NONSENSE: dict[str, Answer] = {
    "a login page": page(b"<html><body>Sign in</body></html>"),
    "empty": page(b""),
    "an empty object": page(b"{}"),
    "null": page(b"null"),
    "a list": page(b"[]"),
    "half a document": page(b'{"version":"0.32.15","models":['),
    "bytes that are not UTF-8 in a field nobody reads": page(b'{"version":"1.0.0","models":[],"x":"\xff"}'),
    "two documents": page(b'{"version":"1.0.0","models":[]} {}'),
    "not UTF-8": page(b'{"version":"\xff","models":["\xff"]}'),
    "a byte order mark": page(b'\xef\xbb\xbf{"version":"1.0.0","models":[]}'),
    "a hundred thousand brackets": page(
        b'{"version":"1.0.0","models":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    ),
    "null fields": page(b'{"version":null,"models":null}'),
    "wrong types": page(b'{"version":1,"models":{}}'),
    "an empty and a numeric": page(b'{"version":"","models":[1]}'),
    "control characters": page(b'{"version":"1\\n2","models":[{"name":"x\n"}]}'),
    "a server error": page(b'{"version":"1.0.0","models":[]}', status="500 Internal Server Error"),
    "no content": octets(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "not HTTP": octets(b"SSH-2.0-OpenSSH_9.2p1\r\n"),
    "a bad length": octets(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"),
    "a bad chunk": octets(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n"),
    "less than its length": octets(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"version":"1.0.0","models":[]}'),
    "no last chunk": octets(
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\n{"version":"1.0.0","models":[]}\r\n'
    ),
    "compressed": page(gzip.compress(b'{"version":"1.0.0","models":[]}'), extra=b"Content-Encoding: gzip\r\n"),
    "an endless body": endless(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536),
    "an endless head": endless(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"b" * 3000 + b"\r\n"),
    "an endless header": endless(b"HTTP/1.1 200 OK\r\nX-A: ", b"b" * 65536),
}

MALFORMED_TAGS = {
    "no name": {key: value for key, value in TAG.items() if key != "name"},
    "an empty name": TAG | {"name": ""},
    "a negative size": TAG | {"size": -1},
    "a size as text": TAG | {"size": "4920753328"},
    "a size beyond 64 bits": TAG | {"size": 2**63},
    "a fractional size": TAG | {"size": 1.5},
    "no date": {key: value for key, value in TAG.items() if key != "modified_at"},
    "a date without zone": TAG | {"modified_at": "2026-08-21T18:48:11"},
    "a date as number": TAG | {"modified_at": 1787331191},
}

MALFORMED_PS = {
    "a negative size": LOADED | {"size": -1},
    "a negative size_vram": LOADED | {"size_vram": -1},
    "N/A for size_vram": LOADED | {"size_vram": "[N/A]"},
    "null size_vram": LOADED | {"size_vram": None},
    "no size_vram": {key: value for key, value in LOADED.items() if key != "size_vram"},
    "a negative context": LOADED | {"context_length": -4096},
}


async def test_a_living_ollama_answers_with_its_version(probe: OllamaProbe) -> None:
    assert await probe.liveness(SOON_S) == (ProbeResult.ANSWERED, "0.32.15")


@pytest.mark.parametrize("version", ["0.32.15\n", "0.32.15 x=1", "", "1" * 65, "\u0661.0"])
async def test_a_version_that_would_forge_a_log_line_is_nonsense(
    probe: OllamaProbe, ollama: FakeOllama, version: str
) -> None:
    ollama.answers["/api/version"] = document({"version": version})
    assert await probe.liveness(SOON_S) == (ProbeResult.NONSENSE, None)


async def test_tags_are_parsed_and_every_entry_survives_verbatim(probe: OllamaProbe, ollama: FakeOllama) -> None:
    strange = b'{"zeta" : 1.50, "name":"Llama3.1", "size":0,"digest":"d","modified_at":"0001-01-01T00:00:00Z","a":null}'
    stub = json.dumps(TAG | {"name": "gpt-oss:120b-cloud", "remote_host": "https://ollama.com:443"}).encode()
    ollama.answers["/api/tags"] = page(b'{"models":[' + strange + b" , " + stub + b'],"next":null}')
    tags = await probe.tags(SOON_S)
    assert not isinstance(tags, Miss)
    assert [entry.raw for entry in tags] == [strange, stub]
    assert [entry.model for entry in tags] == [
        InstalledModel("llama3.1:latest", "d"),
        InstalledModel("gpt-oss:120b-cloud", "46e0c10c039e", remote=True, size_bytes=4920753328),
    ]
    assert [entry.spelled for entry in tags] == ["Llama3.1", "gpt-oss:120b-cloud"]
    assert [entry.modified_s for entry in tags] == [-62135596800.0, pytest.approx(1787330891.123457, abs=1e-5)]


async def test_ps_is_parsed_with_nanoseconds_zones_and_the_far_future(probe: OllamaProbe, ollama: FakeOllama) -> None:
    ps = await probe.ps(SOON_S)
    assert not isinstance(ps, Miss)
    assert [entry.model for entry in ps] == [LoadedModel("llama3.1:8b", 6654289920, 6654289000, 4096)]
    assert ps[0].expires_s == 11010556800.5
    assert json.loads(ps[0].raw) == LOADED


@pytest.mark.parametrize("context", [{}, {"context_length": None}, {"context_length": 0}])
async def test_an_unknown_context_length_is_none(
    probe: OllamaProbe, ollama: FakeOllama, context: dict[str, object]
) -> None:
    entry = {key: value for key, value in LOADED.items() if key != "context_length"} | context
    ollama.answers["/api/ps"] = document({"models": [entry]})
    ps = await probe.ps(SOON_S)
    assert not isinstance(ps, Miss)
    assert ps[0].model.context_length is None


async def test_no_models_is_an_empty_page_and_not_a_miss(probe: OllamaProbe, ollama: FakeOllama) -> None:
    ollama.answers["/api/tags"] = ollama.answers["/api/ps"] = document({"models": []})
    assert (await probe.tags(SOON_S), await probe.ps(SOON_S)) == ((), ())


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_is_a_miss_on_every_page_and_never_an_exception_or_a_zero(
    probe: OllamaProbe, ollama: FakeOllama, answer: Answer
) -> None:
    ollama.answers = dict.fromkeys(ollama.answers, answer)
    assert await probe.liveness(SOON_S) == (ProbeResult.NONSENSE, None)
    assert await probe.tags(SOON_S) is Miss.NONSENSE
    assert await probe.ps(SOON_S) is Miss.NONSENSE


@pytest.mark.parametrize("entry", MALFORMED_TAGS.values(), ids=MALFORMED_TAGS.keys())
async def test_one_malformed_entry_makes_the_whole_tags_a_miss(
    probe: OllamaProbe, ollama: FakeOllama, entry: dict[str, object]
) -> None:
    ollama.answers["/api/tags"] = document({"models": [TAG, entry]})
    assert await probe.tags(SOON_S) is Miss.NONSENSE


@pytest.mark.parametrize("entry", MALFORMED_PS.values(), ids=MALFORMED_PS.keys())
async def test_one_malformed_entry_makes_the_whole_ps_a_miss(
    probe: OllamaProbe, ollama: FakeOllama, entry: dict[str, object]
) -> None:
    ollama.answers["/api/ps"] = document({"models": [LOADED, entry]})
    assert await probe.ps(SOON_S) is Miss.NONSENSE


async def test_random_octets_never_raise(probe: OllamaProbe, ollama: FakeOllama) -> None:
    rng = random.Random(7)
    valid = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n14\r\n{"version":"0.32.1"}\r\n0\r\n\r\n'
    for _ in range(400):
        damaged = bytearray(valid)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        ollama.answers["/api/version"] = octets(bytes(damaged[: rng.randint(1, len(damaged))]))
        result, version = await probe.liveness(SOON_S)
        assert result is not ProbeResult.TIMED_OUT
        assert (version is None) == (result is not ProbeResult.ANSWERED)


async def test_the_longest_allowed_answer_is_read(probe: OllamaProbe, ollama: FakeOllama) -> None:
    body = b'{"models":[]}'
    ollama.answers["/api/ps"] = page(body.ljust(MAX_ANSWER_BYTES))
    assert await probe.ps(SOON_S) == ()
    ollama.answers["/api/ps"] = page(body.ljust(MAX_ANSWER_BYTES + 1))
    assert await probe.ps(SOON_S) is Miss.NONSENSE


@pytest.mark.parametrize("entry", [b"[],", b"1,", b'{"name":1},', b"{},"])
async def test_a_huge_page_of_bad_entries_costs_little_more_than_itself(
    probe: OllamaProbe, ollama: FakeOllama, entry: bytes
) -> None:
    count = (MAX_ANSWER_BYTES - 100) // len(entry)
    body = b'{"models":[' + entry * count + b"0]}"
    ollama.answers["/api/tags"] = page(body)
    tracemalloc.start()
    try:
        assert await probe.tags(SOON_S) is Miss.NONSENSE
        assert tracemalloc.get_traced_memory()[1] < 5 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this system does not let a program choose")
async def test_a_silent_connection_is_asked_whether_its_machine_is_still_there(
    session: aiohttp.ClientSession, ollama: FakeOllama
) -> None:
    """A load may take minutes without a byte; a machine that lost its power must not take as long."""
    ollama.answers["/api/version"] = held(asyncio.Event(), reset(), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    async with session.get(f"http://127.0.0.1:{ollama.port}/api/version") as response:
        assert response.connection is not None
        assert response.connection.transport is not None
        connected = response.connection.transport.get_extra_info("socket")
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        ways = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        silent_s, between_s, times = [connected.getsockopt(socket.IPPROTO_TCP, way) for way in ways]
        assert silent_s + between_s * times <= 60


async def test_a_redirect_is_not_followed(probe: OllamaProbe, ollama: FakeOllama) -> None:
    elsewhere = f"Location: http://127.0.0.1:{ollama.port}/elsewhere\r\n".encode()
    ollama.answers["/api/version"] = page(b"", status="302 Found", extra=elsewhere)
    assert await probe.liveness(SOON_S) == (ProbeResult.NONSENSE, None)
    assert list(ollama.asked) == ["/api/version"]


async def test_a_page_the_ollama_does_not_have_is_absent_and_not_failed(probe: OllamaProbe, ollama: FakeOllama) -> None:
    ollama.answers["/api/ps"] = page(b"404 page not found", status="404 Not Found")
    ollama.answers["/api/tags"] = page(b"405 method not allowed", status="405 Method Not Allowed")
    assert (await probe.ps(SOON_S), await probe.tags(SOON_S)) == (Miss.ABSENT, Miss.ABSENT)


async def test_nobody_listening_is_refused(session: aiohttp.ClientSession, ollama: FakeOllama) -> None:
    probe = OllamaProbe(session, ollama.replica())
    await ollama.stop()
    assert await probe.liveness(SOON_S) == (ProbeResult.REFUSED, None)
    assert await probe.tags(SOON_S) is Miss.REFUSED


@pytest.mark.parametrize("host", ["x" * 64, "a..b"])
async def test_a_host_name_that_cannot_exist_is_refused(session: aiohttp.ClientSession, host: str) -> None:
    probe = OllamaProbe(session, Replica("a", host, 11434))
    assert await probe.liveness(SOON_S) == (ProbeResult.REFUSED, None)


@pytest.mark.parametrize("answer", [reset(), octets(b"")], ids=["reset", "closed"])
async def test_a_connection_that_ends_unanswered_is_refused(
    probe: OllamaProbe, ollama: FakeOllama, answer: Answer
) -> None:
    ollama.answers["/api/version"] = answer
    assert await probe.liveness(SOON_S) == (ProbeResult.REFUSED, None)


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\n", b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"ver'])
async def test_a_stall_anywhere_in_the_answer_ends_at_the_deadline(
    probe: OllamaProbe, ollama: FakeOllama, first: bytes
) -> None:
    ollama.answers["/api/version"] = held(asyncio.Event(), reset(), first)
    began_s = time.monotonic()
    assert await probe.liveness(0.1) == (ProbeResult.TIMED_OUT, None)
    assert 0.09 <= time.monotonic() - began_s < 2.0


async def test_a_frozen_process_whose_kernel_still_accepts_times_out(session: aiohttp.ClientSession) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        probe = OllamaProbe(session, Replica("a", "127.0.0.1", frozen.getsockname()[1]))
        assert await probe.liveness(0.1) == (ProbeResult.TIMED_OUT, None)


async def test_a_connection_the_ollama_closed_while_idle_is_not_held_against_it(
    probe: OllamaProbe, ollama: FakeOllama
) -> None:
    assert await probe.liveness(SOON_S) == (ProbeResult.ANSWERED, "0.32.15")
    await ollama.stop()
    await ollama.start()
    assert await probe.liveness(SOON_S) == (ProbeResult.ANSWERED, "0.32.15")


async def test_a_cancelled_reading_stays_cancelled(probe: OllamaProbe, ollama: FakeOllama) -> None:
    ollama.answers["/api/ps"] = held(asyncio.Event(), reset())
    reading = asyncio.create_task(probe.ps(SOON_S))
    while not ollama.asked["/api/ps"]:
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_probe_sends_the_replica_its_own_host_and_nothing_of_a_browser(
    probe: OllamaProbe, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    ollama.answers["/api/version"] = page(b'{"version":"0.32.15"}', extra=b"Set-Cookie: a=b; Path=/\r\n")
    await probe.liveness(SOON_S)
    await probe.tags(SOON_S)
    lines = {line.partition(":")[0].lower(): line.partition(": ")[2] for line in ollama.heads[-1].split("\r\n")}
    assert lines["host"] == f"127.0.0.1:{ollama.port}"
    assert not {"origin", "referer", "cookie", "authorization"} & lines.keys()
    assert lines["accept-encoding"] == "identity"
