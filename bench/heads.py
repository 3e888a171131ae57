"""`python -m bench.heads`: what parsing one varied request head costs in Python, by two ways."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from random import Random
from statistics import median

import httptools

Headers = list[tuple[bytes, bytes]]

HEADS, REPEATS = 2000, 25
STRICT_HEAD = re.compile(
    rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.[01]\r\n"
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t -~\x80-\xff]*+\r\n)*+\r\n"
)
"""Token names, no folding, no bare CR or LF, no control bytes; possessive, so a hostile head costs linear time."""


def varied_heads(random: Random) -> list[bytes]:
    """Ten headers each, as clients send them; ids, lengths, agents and the order differ."""
    agents = (
        "ollama-python/0.6.1 (x86_64 linux) Python/3.12.3",
        "OpenAI/Python 2.6.0",
        "curl/8.5.0",
        "python-httpx/0.28.1",
    )
    heads = []
    for _ in range(HEADS):
        lines = [
            b"Host: 127.0.0.1:11434",
            b"User-Agent: %s" % random.choice(agents).encode(),
            b"Accept: application/json",
            b"Accept-Encoding: gzip, deflate, br, zstd",
            b"Connection: keep-alive",
            b"Content-Type: application/json",
            b"Content-Length: %d" % random.randrange(80, 4000),
            b"X-Request-Id: %032x" % random.getrandbits(128),
            b"traceparent: 00-%032x-%016x-01" % (random.getrandbits(128), random.getrandbits(64)),
            b"Authorization: Bearer sk-%024x" % random.getrandbits(96),
        ]
        random.shuffle(lines)
        heads.append(b"POST /api/chat HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n")
    return heads


class Collector:
    """What httptools calls back."""

    __slots__ = ("headers", "url")

    def __init__(self) -> None:
        self.url = b""
        self.headers: Headers = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def by_httptools(head: bytes) -> tuple[bytes, bytes, Headers]:
    collector = Collector()
    parser = httptools.HttpRequestParser(collector)
    parser.feed_data(head)
    return parser.get_method(), collector.url, collector.headers


def by_regex(head: bytes) -> tuple[bytes, bytes, Headers]:
    if STRICT_HEAD.fullmatch(head) is None:
        raise ValueError("not a strict head")
    first, *lines = head[:-4].split(b"\r\n")
    method, target, _version = first.split(b" ")
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    return method, target, headers


def microseconds(parse: Callable[[bytes], object], heads: Sequence[bytes]) -> list[float]:
    """Per head, one figure for each repeat."""
    figures = []
    for _ in range(REPEATS):
        began_s = time.thread_time()
        for head in heads:
            parse(head)
        figures.append((time.thread_time() - began_s) / len(heads) * 1e6)
    return figures


def main() -> int:
    heads = varied_heads(Random(7))
    if any(by_httptools(head) != by_regex(head) for head in heads):
        print("the two ways disagree", file=sys.stderr)
        return 1
    size = sum(map(len, heads)) / len(heads)
    print(f"{HEADS} heads of ten headers, {size:.0f} bytes on average; median CPU time (least to greatest repeat)")
    for title, parse in (
        ("httptools with a collecting class", by_httptools),
        ("strict regex, then split and partition", by_regex),
        ("the regex alone", STRICT_HEAD.fullmatch),
    ):
        figures = microseconds(parse, heads)
        print(f"{title:42} {median(figures):6.2f} µs ({min(figures):.2f} to {max(figures):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
