"""Bodies in any pieces: the same bytes out, whole chunks only, the right count of lines, the right final line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.gateway.wire.bodies import HOLD_BYTES, LAST_CHUNK, ChunkedBody, CountedBody, UntilCloseBody, chunk

SIZES = st.lists(st.integers(1, 300) | st.integers(HOLD_BYTES, HOLD_BYTES + 3000), max_size=6)
CUTS = st.lists(st.integers(1, 300) | st.integers(3000, 70000), min_size=1, max_size=12)


def lines_of(sizes: list[int]) -> list[bytes]:
    """Lines of these lengths, each with other letters."""
    return [bytes([97 + index]) * (size - 1) + b"\n" for index, size in enumerate(sizes)]


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """``data`` cut into pieces of these sizes, all further ones of 50 000 bytes."""
    out = []
    at = 0
    for size in [*sizes, *[50_000] * (len(data) // 50_000 + 1)]:
        if at < len(data):
            out.append(data[at : at + size])
            at += size
    return out


@given(SIZES, CUTS)
def test_a_chunked_body_in_any_pieces(lengths: list[int], sizes: list[int]) -> None:
    payloads = lines_of(lengths)
    stream = b"".join(map(chunk, payloads)) + LAST_CHUNK + b"next"
    framed, bare = ChunkedBody(), ChunkedBody(framed=False)
    out = [(framed.feed(piece), bare.feed(piece)) for piece in pieces(stream, sizes) if not framed.ended]
    rest = stream[sum(map(len, pieces(stream, sizes)[: len(out)])) :]
    assert b"".join(each for each, _ in out) == b"".join(map(chunk, payloads))
    assert b"".join(each for _, each in out) == b"".join(payloads)
    assert framed.ended
    assert framed.broken is None
    assert framed.leftover() + rest == b"next"
    assert framed.lines == bare.lines == len(payloads)
    if payloads:
        assert framed.tail().endswith(payloads[-1][-HOLD_BYTES:])
        assert bare.tail().endswith(payloads[-1][-HOLD_BYTES:])


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), CUTS, st.integers(1, 300))
def test_only_whole_chunks_are_forwarded(payloads: list[bytes], sizes: list[int], missing: int) -> None:
    stream = b"".join(map(chunk, payloads))[:-missing]
    body = ChunkedBody()
    out = b"".join(body.feed(piece) for piece in pieces(stream, sizes))
    again = ChunkedBody()
    again.feed(out)
    assert again.feed(LAST_CHUNK) == b""
    assert again.ended  # what was forwarded is a body that can be ended at this point
    assert not body.eof()


@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.integers(0, 800))
def test_a_stream_cut_at_any_byte_is_read_as_if_it_were_not(lengths: list[int], at: int) -> None:
    stream = b"".join(map(chunk, lines_of(lengths)))
    body = ChunkedBody()
    assert body.feed(stream[:at]) + body.feed(stream[at:]) == stream
    assert body.lines == len(lengths)


def test_a_size_line_cut_after_its_cr_is_waited_for() -> None:
    body = ChunkedBody()
    whole = chunk(b"x" * 119 + b"\n")
    assert body.feed(whole + b"7b\r") == whole
    assert body.feed(b"\n" + b"y" * 123 + b"\r\n") == b"7b\r\n" + b"y" * 123 + b"\r\n"


def test_a_line_in_several_chunks_and_reads_is_one_line_of_the_tail() -> None:
    body = ChunkedBody()
    for piece in (b'{"done":false}\n', b'{"done"', b":tr", b"ue}\n"):
        body.feed(chunk(piece))
    assert body.tail().rstrip(b"\n").rpartition(b"\n")[2] == b'{"done":true}'


def test_one_byte_reads_cost_linear_time() -> None:
    """Counted, not timed: the bytes that pass through joins and copies stay in proportion to those that came."""
    size = 200_000
    for body, data in ((ChunkedBody(), b"%x\r\n" % size + b"x" * size), (CountedBody(size), b"x" * size)):
        for at in range(len(data)):
            body.feed(data[at : at + 1])
        assert len(body.tail()) <= size
    small = ChunkedBody(framed=False, tail=False)
    for at in range(0, 60_000):
        small.feed(b"ea60\r\n"[at : at + 1] or b"x")
    assert small.tail() == b""


@pytest.mark.parametrize(
    "bad",
    [
        b"0x5\r\nhello",
        b"+5\r\nhello",
        b"5 \r\nhello",
        b"5_0\r\n",
        b"g\r\n",
        b"\r\n",
        b"5\nhello\n",
        b";x\r\n",
        b"f" * 16,
        b"5\r\nhelloXX",
        b"0\r\nbad trailer\r\n\r\n",
        b"5;" + b"a" * 300,
        b"0\r\nA: b\n\r\n",
    ],
)
@pytest.mark.parametrize("split", [1, 1000])
def test_malformed_framing_breaks_the_body_after_what_was_good(bad: bytes, split: int) -> None:
    body = ChunkedBody()
    out = b"".join(body.feed(piece) for piece in pieces(chunk(b"good\n") + bad, [split] * 400) if not body.ended)
    assert out == chunk(b"good\n")
    assert body.broken
    assert not body.eof()


def test_trailers_are_dropped() -> None:
    body = ChunkedBody()
    assert body.feed(chunk(b"a") + b"0\r\nX-Trailer: 1\r\n\r\n") == chunk(b"a")
    assert body.eof()


@given(st.binary(max_size=500), st.binary(max_size=50), CUTS)
def test_a_counted_body_takes_its_length_and_no_more(payload: bytes, surplus: bytes, sizes: list[int]) -> None:
    body = CountedBody(len(payload))
    out = b"".join(body.feed(piece) for piece in pieces(payload + surplus, sizes))
    assert out == payload
    assert body.ended
    assert body.leftover() == surplus
    assert body.tail() == payload


def test_a_body_until_the_close_ends_with_it() -> None:
    body = UntilCloseBody()
    assert body.feed(b"a\nb\n") == b"a\nb\n"
    assert not body.ended
    assert body.eof()
    assert body.lines == 2
