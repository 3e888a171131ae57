"""Named regression tests, one per class of vulnerability that proxies have had; nothing hostile reaches a replica."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import pytest

from corral.gateway.wire.fields import route_request
from corral.gateway.wire.routes import find_route
from corral.model import RouteRequest
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, CHAT_WHOLE, Client, RunningGateway, post, until
from tests.gateway.wire.replica import Call

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HOST = b"Host: localhost\r\n"
CL = b"Content-Length: 5\r\n"
BODY = b"hello"


def raw(*lines: bytes, body: bytes = b"", line: bytes = b"POST /api/chat HTTP/1.1\r\n") -> bytes:
    return line + b"".join(lines) + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLING = {
    "content-length and transfer-encoding": raw(HOST, CL, CHUNKED, body=b"0\r\n\r\n"),
    "transfer-encoding and content-length": raw(HOST, CHUNKED, CL, body=b"0\r\n\r\n"),
    "chunked, chunked": raw(HOST, b"Transfer-Encoding: chunked, chunked\r\n", body=b"0\r\n\r\n"),
    ",chunked": raw(HOST, b"Transfer-Encoding: ,chunked\r\n", body=b"0\r\n\r\n"),
    "transfer-encoding twice": raw(HOST, CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "unknown coding": raw(HOST, b"Transfer-Encoding: xchunked\r\n", body=b"0\r\n\r\n"),
    "gzip, chunked": raw(HOST, b"Transfer-Encoding: gzip, chunked\r\n", body=b"0\r\n\r\n"),
    "vertical tab before chunked": raw(HOST, b"Transfer-Encoding: \x0bchunked\r\n", body=b"0\r\n\r\n"),
    "space before the colon": raw(HOST, b"Transfer-Encoding : chunked\r\n", body=b"0\r\n\r\n"),
    "transfer-encoding in http/1.0": raw(HOST, CHUNKED, line=b"POST / HTTP/1.0\r\n", body=b"0\r\n\r\n"),
    "duplicate content-length": raw(HOST, CL, b"Content-Length: 6\r\n", body=BODY),
    "equal duplicate content-length": raw(HOST, CL, CL, body=BODY),
    "content-length list": raw(HOST, b"Content-Length: 5, 5\r\n", body=BODY),
    "content-length +5": raw(HOST, b"Content-Length: +5\r\n", body=BODY),
    "content-length -5": raw(HOST, b"Content-Length: -5\r\n", body=BODY),
    "content-length 0x5": raw(HOST, b"Content-Length: 0x5\r\n", body=BODY),
    "content-length 5_0": raw(HOST, b"Content-Length: 5_0\r\n", body=BODY),
    "content-length empty": raw(HOST, b"Content-Length: \r\n", body=BODY),
    "content-length beyond 2**63": raw(HOST, b"Content-Length: 92233720368547758080\r\n", body=BODY),
    "obs-fold": raw(HOST, b"X-A: b\r\n c\r\n", CL, body=BODY),
    "obs-fold on content-length": raw(HOST, b"Content-Length:\r\n 5\r\n", body=BODY),
    "bare lf ends a header": raw(HOST, b"X-A: b\nX-B: c\r\n", CL, body=BODY),
    "bare lf ends the head": b"POST /api/chat HTTP/1.1\nHost: localhost\n\n",
    "bare cr in a value": raw(HOST, b"X-A: b\rX-B: c\r\n", CL, body=BODY),
    "nul in a value": raw(HOST, b"X-A: b\x00c\r\n", CL, body=BODY),
    "nul in a name": raw(HOST, b"X-\x00A: b\r\n", CL, body=BODY),
    "nul in the target": raw(HOST, line=b"GET /api/\x00 HTTP/1.1\r\n"),
    "empty header name": raw(HOST, b": b\r\n", CL, body=BODY),
    "header without colon": raw(HOST, b"X-A\r\n", CL, body=BODY),
    "non-ascii header name": raw(HOST, "X-Ä: b\r\n".encode(), CL, body=BODY),
    "space in a header name": raw(HOST, b"X A: b\r\n", CL, body=BODY),
    "first header starts with a space": raw(b" " + HOST, CL, body=BODY),
    "no host": raw(CL, body=BODY),
    "two hosts": raw(HOST, HOST, CL, body=BODY),
    "host with a path": raw(b"Host: localhost/x\r\n", CL, body=BODY),
    "host with a user": raw(b"Host: a@localhost\r\n", CL, body=BODY),
    "two origins": raw(HOST, b"Origin: http://a\r\nOrigin: http://b\r\n", CL, body=BODY),
    "request line with two spaces": raw(HOST, line=b"GET  / HTTP/1.1\r\n"),
    "request line with a tab": raw(HOST, line=b"GET\t/\tHTTP/1.1\r\n"),
    "request line without version": raw(HOST, line=b"GET /\r\n"),
    "lower-case version": raw(HOST, line=b"GET / http/1.1\r\n"),
    "target is not ascii": raw(HOST, line="GET /ä HTTP/1.1\r\n".encode()),
    "relative target": raw(HOST, line=b"GET api/tags HTTP/1.1\r\n"),
    "encoded slash": raw(HOST, line=b"GET /api%2ftags HTTP/1.1\r\n"),
    "encoded backslash": raw(HOST, line=b"GET /api%5Ctags HTTP/1.1\r\n"),
    "encoded nul": raw(HOST, line=b"GET /api/tags%00 HTTP/1.1\r\n"),
    "dot segments": raw(HOST, line=b"GET /x/../api/tags HTTP/1.1\r\n"),
    "encoded dot segments": raw(HOST, line=b"GET /x/%2e%2e/api/tags HTTP/1.1\r\n"),
    "backslash": raw(HOST, line=b"GET /api\\tags HTTP/1.1\r\n"),
    "fragment": raw(HOST, line=b"GET /api/tags#x HTTP/1.1\r\n"),
    "connect": raw(HOST, line=b"CONNECT example.org:443 HTTP/1.1\r\n"),
    "chunk size 0x5": raw(HOST, CHUNKED, body=b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size +5": raw(HOST, CHUNKED, body=b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size 5_0": raw(HOST, CHUNKED, body=b"5_0\r\nhello\r\n0\r\n\r\n"),
    "chunk size with a space": raw(HOST, CHUNKED, body=b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk size empty": raw(HOST, CHUNKED, body=b"\r\nhello\r\n0\r\n\r\n"),
    "chunk size of 17 digits": raw(HOST, CHUNKED, body=b"fffffffffffffffff\r\nhello"),
    "chunk ended by a bare lf": raw(HOST, CHUNKED, body=b"5\nhello\n0\n\n"),
    "chunk longer than its size": raw(HOST, CHUNKED, body=b"3\r\nhello\r\n0\r\n\r\n"),
    "lf in a chunk extension": raw(HOST, CHUNKED, body=b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "overlong chunk extension": raw(HOST, CHUNKED, body=b"5;" + b"a" * 5000 + b"\r\nhello\r\n0\r\n\r\n"),
    "trailers that are no fields": raw(HOST, CHUNKED, body=b"0\r\nbad\r\n\r\n"),
    "endless trailers": raw(HOST, CHUNKED, body=b"0\r\n" + b"X-A: b\r\n" * 2000),
}


async def refused(gateway: RunningGateway, request: bytes, status: int) -> None:
    client = await gateway.connect()
    # What a smuggler hopes to get through behind its first request.
    await client.send(request + b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", answer)) == 1  # one answer, then the connection ends
    assert b"Connection: close" in answer
    for replica in gateway.replicas:
        assert not replica.calls


@pytest.mark.parametrize("name", list(SMUGGLING))
async def test_smuggling(start: Start, name: str) -> None:
    await refused(await start(1), SMUGGLING[name], 400)


async def test_oversized_heads_are_431(start: Start) -> None:
    gateway = await start(1)
    await refused(gateway, raw(HOST, b"X-A: " + b"b" * 40000 + b"\r\n"), 431)
    await refused(gateway, raw(HOST, b"X-A: b\r\n" * 8000), 431)
    await refused(gateway, raw(HOST, line=b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\n"), 431)


async def test_an_oversized_head_is_refused_before_it_ends(start: Start) -> None:
    gateway = await start(1)
    client = await gateway.connect()
    await client.send(b"GET / HTTP/1.1\r\nX-A: " + b"b" * 40000)
    assert (await client.rest()).startswith(b"HTTP/1.1 431 ")


async def test_bodies_over_the_cap_are_413(start: Start) -> None:
    gateway = await start(1, "limits: {max_body_bytes: 2048}\n")
    await refused(gateway, raw(HOST, b"Content-Length: 3000\r\n", body=b"x" * 3000), 413)
    await refused(gateway, raw(HOST, b"Content-Length: 999999999999\r\n"), 413)
    await refused(gateway, raw(HOST, CHUNKED, body=b"fff\r\n" + b"x" * 4095 + b"\r\n0\r\n\r\n"), 413)


async def test_other_http_versions_are_505(start: Start) -> None:
    gateway = await start(1)
    await refused(gateway, raw(HOST, line=b"GET / HTTP/2.0\r\n"), 505)
    await refused(gateway, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505)


async def test_upgrade_never_makes_the_connection_opaque(start: Start) -> None:
    gateway = await start(1)

    async def switch(call: Call) -> None:
        await call.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nraw")
        await call.gone()

    gateway.replicas[0].answer = switch
    request = raw(HOST, b"Upgrade: websocket\r\nConnection: Upgrade\r\n", CL, body=BODY, line=b"POST /ws HTTP/1.1\r\n")
    status, _, body = await gateway.ask(request)
    assert status == 502
    assert b"raw" not in body
    assert gateway.replicas[0].calls[0].header("upgrade") is None
    assert gateway.replicas[0].calls[0].header("connection") is None


async def test_connection_cannot_strip_what_others_rely_on(start: Start) -> None:
    gateway = await start(1)
    named = b"Connection: Authorization, Host, Content-Length, Content-Type, X-Drop\r\n"
    request = raw(
        HOST,
        named,
        b"Authorization: Bearer k\r\nX-Drop: 1\r\n",
        b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(CHAT),
        body=CHAT,
    )
    assert (await gateway.ask(request))[0] == 200
    call = gateway.replicas[0].calls[0]
    assert call.header("authorization") == "Bearer k"
    assert call.header("content-type") == "application/json"
    assert call.body == CHAT
    assert call.header("x-drop") is None


async def test_underscore_twins_and_our_own_names_do_not_pass(start: Start) -> None:
    gateway = await start(1)
    own = ("Content_Length: 1", "X_Forwarded_For: 1.2.3.4", "x-corral-replica: evil", "X-Request-Id: bad value!")
    _, headers, _ = await gateway.ask(post("/api/chat", CHAT, *own))
    call = gateway.replicas[0].calls[0]
    assert b"_" not in call.head
    assert call.header("x-corral-replica") is None
    assert headers["x-corral-replica"] == "r0"
    assert "bad" not in headers["x-request-id"]


async def test_a_path_in_disguise_is_still_that_route(start: Start) -> None:
    """Percent-encoding must not lead around the slot accounting."""
    gateway = await start(1, slots=1)
    status, _, _ = await gateway.ask(
        raw(HOST, b"Content-Length: %d\r\n" % len(CHAT), body=CHAT, line=b"POST /api/%63hat HTTP/1.1\r\n")
    )
    assert status == 200
    assert ("chat", "llama3.1:8b") in gateway.app.metrics.series
    status, _, _ = await gateway.ask(
        raw(HOST, b"Content-Length: %d\r\n" % len(CHAT), body=CHAT, line=b"POST http://localhost/api/chat HTTP/1.1\r\n")
    )
    assert status == 200
    assert gateway.replicas[0].calls[1].line == "POST /api/chat HTTP/1.1"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11434", "8.8.8.8", "localhost.evil.example"])
async def test_dns_rebinding(start: Start, host: str) -> None:
    gateway = await start(1)
    status, _, body = await gateway.ask(raw(b"Host: %b\r\n" % host.encode(), line=b"GET /api/tags HTTP/1.1\r\n"))
    assert (status, body) == (403, b"")


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:11434", "[::1]:11434", "192.168.1.5", "box.local", "gpu.internal"]
)
async def test_local_hosts_are_let_in(start: Start, host: str) -> None:
    gateway = await start(1)
    assert (await gateway.ask(raw(b"Host: %b\r\n" % host.encode(), line=b"GET /api/tags HTTP/1.1\r\n")))[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "https://8.8.8.8"])
async def test_cross_site_requests_are_403(start: Start, origin: str) -> None:
    gateway = await start(1)
    status, _, body = await gateway.ask(post("/api/chat", CHAT, f"Origin: {origin}"))
    assert (status, body) == (403, b"")
    assert not gateway.replicas[0].calls


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1", "app://obsidian.md", "chrome-extension://abc"]
)
async def test_local_pages_may_ask_and_read(start: Start, origin: str) -> None:
    gateway = await start(1)
    status, headers, _ = await gateway.ask(post("/api/chat", CHAT, f"Origin: {origin}"))
    assert (status, headers["access-control-allow-origin"]) == (200, origin)
    preflight = raw(HOST, f"Origin: {origin}\r\n".encode(), line=b"OPTIONS /api/chat HTTP/1.1\r\n")
    client = await gateway.connect()
    await client.send(preflight)
    status, headers = await client.head()
    assert status == 204
    assert headers["access-control-allow-origin"] == origin
    assert "POST" in headers["access-control-allow-methods"]


async def test_origins_the_operator_named_are_let_in(start: Start) -> None:
    gateway = await start(1, 'origins: ["https://*.example.org"]\n')
    assert (await gateway.ask(post("/api/chat", CHAT, "Origin: https://chat.example.org")))[0] == 200
    assert (await gateway.ask(post("/api/chat", CHAT, "Origin: https://example.com")))[0] == 403


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[]", b'{"model":5}', b"\xff\xfe", b'{"model":"a"', b"[" * 5000, b'{"model":null}']
)
async def test_malformed_json_passes_to_ollamas_own_400(start: Start, body: bytes) -> None:
    async def own_400(call: Call) -> None:
        await call.json({"error": "unexpected EOF"}, "400 Bad Request")

    gateway = await start(1)
    gateway.replicas[0].answer = own_400
    status, _, answer = await gateway.ask(post("/api/chat", body))
    assert (status, json.loads(answer)) == (400, {"error": "unexpected EOF"})
    assert gateway.replicas[0].calls[0].body == body
    gateway.assert_nothing_held()


# ---- bodies that are read for routing only

_FORM = b"multipart/form-data; boundary="
_FILE = b'Content-Disposition: form-data; name="file"; filename="f"\r\n'
_ZSTD = b"\x28\xb5\x2f\xfd\x00\x58"  # a frame of unknown size, with a window of 2 MiB
FORMS: dict[str, Callable[[int], tuple[bytes, bytes]]] = {
    "a file of boundaries that are none": lambda n: (_FORM + b"b", _opened(_FILE) + b"\r\n--bx" * (n // 6)),
    "a file of half a boundary": lambda n: (_FORM + b"b", _opened(_FILE) + b"\r\n--" * (n // 4)),
    "a file of all but the last byte": lambda n: (
        _FORM + b"-" * 69 + b"b",
        _opened(_FILE, b"-" * 69 + b"b") + (b"\r\n--" + b"-" * 69) * (n // 73),
    ),
    "a file of dashes": lambda n: (_FORM + b"-" * 70, _opened(_FILE, b"-" * 70) + b"-" * n),
    "a file of line ends": lambda n: (_FORM + b"b", _opened(_FILE) + b"\r\n" * (n // 2)),
    "parts without number": lambda n: (_FORM + b"b", b"--b\r\n\r\n\r\n" * (n // 9)),
    "headers without number": lambda n: (_FORM + b"b", b"--b\r\n" + b"a:\r\n" * (n // 4)),
    "a header without end": lambda n: (_FORM + b"b", b"--b\r\nContent-Disposition: form-data" + b"x" * n),
    "parameters without number": lambda n: (_FORM + b"b", _opened(_FILE[:-2] + b";a=b" * (n // 4) + b"\r\n")),
    "quotes without end": lambda n: (
        _FORM + b"b",
        _opened(_FILE[:-2] + b';x="' + b"\\" * 7000 + b"\r\n") * (n // 7000),
    ),
    "spaces behind a boundary": lambda n: (_FORM + b"b", _opened(_FILE) + b"\r\n--b" + b" " * n + b"x"),
    "parameters of the content type": lambda n: (_FORM + b"b" + b";a=b" * min(n // 4, 8000), _opened(_FILE)),
    "quotes of the content type": lambda n: (_FORM + b'"' + b"\\" * min(n, 32_000), _opened(_FILE)),
}
COMPRESSED: dict[str, Callable[[int], bytes]] = {
    "empty blocks": lambda n: _ZSTD + b"\0\0\0" * (n // 3),
    "blocks of one byte": lambda n: _ZSTD + b"\x0a\0\0x" * (n // 4),
    "empty frames": lambda n: (_ZSTD + b"\x01\0\0") * (n // 9),
    "skippable frames": lambda n: b"\x50\x2a\x4d\x18\0\0\0\0" * (n // 8),
    "a bomb": lambda n: zstd.compress(b"\0" * (10 * n)),
    "noise": lambda n: random.Random(5).randbytes(n),
}


def _opened(head: bytes, boundary: bytes = b"b") -> bytes:
    """A form whose first part has this head."""
    return b"--%b\r\n%b\r\n" % (boundary, head)


def _seconds(work: Callable[[], object]) -> float:
    """Of three tries the best: whatever else goes on only makes it slower."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _route(path: str, body: bytes, content_type: bytes, encoding: bytes | None = None) -> RouteRequest:
    return route_request(find_route(b"POST", path), body, content_type, "t", encoding=encoding, target=b"/")


@pytest.mark.alone
@pytest.mark.parametrize("name", list(FORMS))
def test_no_form_takes_more_time_than_its_length_allows(name: str) -> None:
    taken = []
    for size in (1 << 18, 1 << 21):
        content_type, body = FORMS[name](size)
        assert _route("/v1/audio/transcriptions", body, content_type).model is None
        taken.append(_seconds(partial(_route, "/v1/audio/transcriptions", body, content_type)))
    assert taken[1] < 8 * 3 * taken[0] + 0.02, "a square would take 64 times as long"


@pytest.mark.alone
@pytest.mark.parametrize("name", list(COMPRESSED))
def test_no_compressed_body_takes_more_time_than_its_length_allows(name: str) -> None:
    taken = []
    for size in (1 << 18, 1 << 21):
        body = COMPRESSED[name](size)
        assert _route("/v1/responses", body, b"application/json", b"zstd").model is None
        taken.append(_seconds(partial(_route, "/v1/responses", body, b"application/json", b"zstd")))
    assert taken[1] < 8 * 3 * taken[0] + 0.02, "a square would take 64 times as long"


async def test_a_query_of_many_fields_is_not_read(start: Start) -> None:
    gateway = await start(1)
    body = b"--b\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--b--"
    request = post("/v1/audio/transcriptions?" + "a&" * 15_000, body, f"Content-Type: {_FORM.decode()}b")
    assert (await gateway.ask(request))[0] == 200
    assert gateway.replicas[0].calls[0].body == body


async def test_what_cannot_be_read_takes_no_slot_and_reaches_the_replica_as_it_came(start: Start) -> None:
    gateway = await start(1, slots=1)
    taken: list[int] = []

    async def own_400(call: Call) -> None:
        taken.append(sum(gateway.states[0].inflight_by_model.values()))
        await call.json({"error": "unexpected EOF"}, "400 Bad Request")

    gateway.replicas[0].answer = own_400
    sent = []
    for make in FORMS.values():
        content_type, body = make(4096)
        content_type = content_type[:4000]
        sent.append((post("/v1/audio/transcriptions", body, f"Content-Type: {content_type.decode()}"), body))
    for pack in COMPRESSED.values():
        body = pack(4096)
        sent.append((post("/v1/responses", body, "Content-Encoding: zstd"), body))
    for request, body in sent:
        assert (await gateway.ask(request))[0] == 400
        assert gateway.replicas[0].calls[-1].body == body
    assert set(taken) == {0}
    gateway.assert_nothing_held()


# ---- the replica's side

MALFORMED = {
    "not http": b"hello\r\n\r\n",
    "http/2": b"HTTP/2 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "status 42": b"HTTP/1.1 42 x\r\n\r\n",
    "two content-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
    "content-length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi",
    "bad content-length": b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nhi",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "bare lf": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi\r\n\r\n",
    "nul in a header": b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 2\r\n\r\nhi",
    "obs-fold": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nhi",
    "bad first chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n",
    "header bomb": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20000 + b"\r\n",
    "endless header": b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 100000,
    "1xx flood": b"HTTP/1.1 102 Processing\r\n\r\n" * 100,
}


@pytest.mark.parametrize("name", list(MALFORMED))
async def test_a_replicas_malformed_answer_is_502_and_its_connection_is_never_reused(start: Start, name: str) -> None:
    async def answer(call: Call) -> None:
        await call.write(MALFORMED[name])
        await call.gone()
        raise ConnectionResetError

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    before = gateway.replicas[0].connections
    for _ in range(2):
        status, _, body = await gateway.ask(post("/api/chat", CHAT))
        assert status == 502
        assert isinstance(json.loads(body)["error"], str)
    assert len(gateway.replicas[0].calls) == 2
    assert gateway.replicas[0].connections - before >= 2
    gateway.assert_nothing_held()


async def test_a_few_interim_responses_are_skipped(start: Start) -> None:
    async def answer(call: Call) -> None:
        await call.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 3)
        await call.json({"done": True})

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200


async def test_data_after_the_end_is_not_the_next_answer(start: Start) -> None:
    async def answer(call: Call) -> None:
        body = b'{"done":true}'
        poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b%b" % (len(body), body, poison))

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    for _ in range(3):
        await client.send(post("/api/chat", CHAT_WHOLE))
        assert (await client.answer())[2] == b'{"done":true}'
    assert gateway.replicas[0].connections >= 3  # plus the probe's


async def test_unasked_bytes_on_an_idle_connection_end_it(start: Start) -> None:
    gateway = await start(1)
    calls: list[Call] = []

    async def answer(call: Call) -> None:
        calls.append(call)
        await call.json({"done": True})

    gateway.replicas[0].answer = answer
    await gateway.ask(post("/api/chat", CHAT_WHOLE))
    await calls[0].write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    await until(lambda: calls[0].reader.at_eof())
    assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[2] == b'{"done": true}'


# ---- asymmetry, secrets


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_less_than_ten_times_memory_per_hostile_byte(start: Start, size: int) -> None:
    gateway = await start(1)
    client = await gateway.connect()
    total = 400_000 if size > 1 else 60_000
    await client.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    await until(lambda: gateway.gateway.slow)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        sent = 0
        while sent < total:
            piece = b"%x\r\n%b\r\n" % (size, b"x" * size)
            await client.send(piece * max(1, 4000 // len(piece)))
            sent += max(1, 4000 // len(piece)) * len(piece)
            await asyncio.sleep(0)
        (connection,) = gateway.gateway.connections
        body = connection._body
        assert body is not None
        await until(lambda: len(body.kept) >= sent // (size + 8) * size)
        assert tracemalloc.get_traced_memory()[0] - before < 10 * sent
    finally:
        tracemalloc.stop()


async def test_nothing_a_client_or_the_log_sees_names_prompts_secrets_or_replicas(
    start: Start, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="corral")
    gateway = await start(2)
    secret, prompt = "sk-very-secret", "my innermost thoughts"
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]}).encode()

    async def reset(call: Call) -> None:
        call.reset()
        raise ConnectionResetError

    async def cut(call: Call) -> None:
        await call.start_stream()
        await call.line_of(done=False)
        call.reset()
        raise ConnectionResetError

    seen = b""
    for script in (reset, cut):
        for replica in gateway.replicas:
            replica.answer = script
        for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
            status, headers, answer = await gateway.ask(post(path, body, f"Authorization: Bearer {secret}"))
            seen += f"{status} {headers}".encode() + answer
    seen += await (await broken(gateway, body)).rest()
    logged = caplog.text + "".join(capfd.readouterr())
    for text in (seen.decode(), logged):
        assert "Traceback" not in text
        assert secret not in text
        assert prompt not in text
    for replica in gateway.replicas:
        assert str(replica.port) not in seen.decode()


async def broken(gateway: RunningGateway, body: bytes) -> Client:
    client = await gateway.connect()
    await client.send(post("/api/chat", body, "X-Bad : 1"))
    return client


async def test_mutated_requests_crash_nothing_and_smuggle_nothing(start: Start) -> None:
    rng = random.Random(20261121)
    seeds = [post("/api/chat", CHAT_WHOLE, "Accept: */*"), *SMUGGLING.values()]
    gateway = await start(1)
    answered = 0
    for _ in range(60):
        clients = [await gateway.connect() for _ in range(20)]
        for client in clients:
            data = bytearray(rng.choice(seeds))
            for _ in range(rng.randint(1, 6)):
                at = rng.randrange(len(data))
                data[at : at + rng.randint(0, 3)] = rng.choice(
                    [b"\r\n", b"\n", b"\0", b" ", b":", b"chunked", bytes([rng.randrange(256)])]
                )
            await client.send(bytes(data))
            client.writer.write_eof()
        for client in clients:
            try:
                answered += (await client.rest()).count(b"HTTP/1.1 ")
            except ConnectionError:
                answered += 1
            client.close()
    assert answered > 0
    await until(lambda: gateway.scheduler.inflight == 0 and not gateway.gateway.connections)
    gateway.assert_nothing_held()
    assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
