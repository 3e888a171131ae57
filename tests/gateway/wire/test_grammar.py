"""Corral's own head parser beside llhttp: whatever Corral accepts, llhttp reads alike."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from corral.errors import ClientError, ReplicaError
from corral.gateway.wire.request_head import RequestHead, parse_request_head
from corral.gateway.wire.response_head import parse_response_head

TOKEN = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
NAMES = (
    st.sampled_from(["Content-Length", "Transfer-Encoding", "Connection", "Host", "Origin", "Expect", "X-A"]) | TOKEN
)
VALUES = st.sampled_from(["5", "0", "chunked", "close", "keep-alive", "localhost", "", " 7 ", "gzip, chunked"]) | VALUE
HEADS = st.builds(
    lambda method, target, minor, fields: (
        f"{method} {target} HTTP/1.{minor}\r\nHost: h\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields) + "\r\n"
    ).encode(),
    st.sampled_from(["GET", "POST", "DELETE", "HEAD"]),
    st.sampled_from(["/", "/api/chat", "/api/tags?x=1", "/%41", "*", "/a//b"]),
    st.sampled_from("01"),
    st.lists(st.tuples(NAMES, VALUES), max_size=5),
)


class Seen:
    """What llhttp saw."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def accepted(head: bytes) -> RequestHead | None:
    try:
        return parse_request_head(head)
    except ClientError:
        return None


@given(HEADS)
@example(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX-A: b\r\n\r\n")
def test_what_corral_accepts_llhttp_reads_alike(head: bytes) -> None:
    ours = accepted(head)
    assume(ours is not None)
    assert ours is not None
    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(head)
    assert seen.complete
    assert parser.get_method() == ours.method
    theirs = {name.lower(): value.strip(b" \t") for name, value in seen.headers}
    assert ours.content_length == (int(theirs[b"content-length"]) if b"content-length" in theirs else None)
    assert ours.chunked == (b"transfer-encoding" in theirs)
    forwarded = [line.partition(b":") for line in ours.forward.split(b"\r\n")[:-1]]
    assert {name.lower() for name, _, _ in forwarded} <= set(theirs)
    assert all(value.strip(b" \t") in [v.strip(b" \t") for _, v in seen.headers] for _, _, value in forwarded)


@given(HEADS, st.integers(0, 200), st.sampled_from([b"\r", b"\n", b"\0", b" ", b"\t", b":", b"\x7f", b"\xff", b""]))
def test_a_damaged_head_is_refused_or_still_one_head(head: bytes, at: int, put: bytes) -> None:
    at = min(at, len(head) - 4)
    damaged = head[:at] + put + head[at + 1 :]
    ours = accepted(damaged)
    if ours is not None:
        for line in ours.forward.split(b"\r\n")[:-1]:
            assert b"\n" not in line
            assert b"\r" not in line
            assert b"\0" not in line
        assert b" " not in ours.target


@pytest.mark.parametrize(
    ("line", "status", "chunked", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, True, None),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, False, 0),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", 404, False, None),
    ],
)
def test_response_heads(line: bytes, status: int, chunked: bool, length: int | None) -> None:
    response = parse_response_head(line)
    assert (response.status, response.chunked, response.content_length) == (status, chunked, length)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_response_parser(data: bytes) -> None:
    for head in (data + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n"):
        try:
            response = parse_response_head(head)
        except ReplicaError:
            continue
        assert 100 <= response.status < 600
