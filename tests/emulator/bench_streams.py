"""What a streamed line costs: ``python -m tests.emulator.bench_streams [STREAMS] [TOKENS_PER_S] [SECONDS]``.

Not a test: it asserts nothing.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

import psutil

from tests.emulator.child import emulator


def main(streams: int, rate: float, seconds: float) -> None:
    tokens = int(rate * (seconds + 5))
    options = ["--model", "llama3.2:1b", "--parallel", str(streams), "--rate", str(rate), "--load-seconds", "0.01"]
    with emulator(*options, "--context-length", "4096") as ollama:
        selector = selectors.DefaultSelector()
        for number in range(streams):
            selector.register(_open(ollama.host, ollama.port, number, tokens), selectors.EVENT_READ)
        _read(selector, 1.0)
        process = psutil.Process(ollama.process.pid)
        before, began = process.cpu_times(), time.monotonic()
        lines = _read(selector, seconds)
        after, took = process.cpu_times(), time.monotonic() - began
        cpu = after.user + after.system - before.user - before.system
        sys.stdout.write(
            f"{streams} streams, {lines / took:.0f} lines/s, {100 * cpu / took:.0f} % of a core, "
            f"{1e6 * cpu / lines:.1f} us of CPU a line, {process.memory_info().rss >> 20} MiB\n"
        )


def _open(host: str, port: int, number: int, tokens: int) -> socket.socket:
    body = json.dumps(
        {
            "model": "llama3.2:1b",
            "messages": [{"role": "user", "content": f"stream {number}"}],
            "options": {"num_predict": tokens},
        }
    ).encode()
    connection = socket.create_connection((host, port))
    head = f"POST /api/chat HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    connection.setblocking(False)
    return connection


def _read(selector: selectors.BaseSelector, seconds: float) -> int:
    until, lines = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for key, _ in selector.select(0.1):
            assert isinstance(key.fileobj, socket.socket)
            lines += key.fileobj.recv(65536).count(b'"done":')
    return lines


if __name__ == "__main__":
    given = [float(text) for text in sys.argv[1:]]
    streams, rate, seconds = (*given, *(200.0, 100.0, 8.0)[len(given) :])
    main(int(streams), rate, seconds)
