"""A program that stands in for ``ollama serve``; what it does wrong is said by FAKE_* variables.

FAKE_EXIT=3: ends at once with that code. FAKE_LIFE=0.2: ends after so many seconds. FAKE_DEAF: ignores SIGTERM.
FAKE_SLOW=1: listens only after so long; FAKE_MUTE: never. FAKE_CHILD=group|session: leaves a child, which ignores
SIGTERM, in its group or in a session of its own. FAKE_SAY: a line to print. FAKE_CHATTY: prints without end.
FAKE_ONCE=path: FAKE_EXIT counts only while that file is not there. FAKE_RECORD=path: what is posted, a line each.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

env = os.environ
DEAF_SLEEP = "trap '' TERM; exec sleep 300"  # what is ignored stays so


def begin() -> None:
    if "FAKE_SAY" in env:
        sys.stdout.write(env["FAKE_SAY"] + "\n")
        sys.stdout.flush()
    if "FAKE_DEAF" in env:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "FAKE_CHILD" in env:
        subprocess.Popen(["/bin/sh", "-c", DEAF_SLEEP], start_new_session=env["FAKE_CHILD"] == "session")
    if "FAKE_EXIT" in env and not os.path.exists(env.get("FAKE_ONCE", "/nowhere")):
        sys.exit(int(env["FAKE_EXIT"]))
    time.sleep(float(env.get("FAKE_SLOW", "0")))
    while "FAKE_MUTE" in env:
        time.sleep(1)


def serve() -> None:
    host, _, port = env["OLLAMA_HOST"].partition(":")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    listener.listen(16)
    listener.settimeout(0.02)
    until = time.monotonic() + float(env.get("FAKE_LIFE", "inf"))
    while time.monotonic() < until:
        if "FAKE_CHATTY" in env:
            sys.stderr.write("chat " * 200 + "\n")
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            connection.settimeout(5)
            answer(connection)


def answer(connection: socket.socket) -> None:
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = connection.recv(65536)
        if not piece:
            return
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    status, page = reply(head.split()[1].decode(), json.loads(body or b"{}"))
    text = json.dumps(page).encode()
    connection.sendall(
        b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
        % (status, len(text), text)
    )


def reply(path: str, asked: dict[str, object]) -> tuple[int, object]:
    if path == "/api/version":
        return 200, {"version": "0.30.1"}
    if "FAKE_RECORD" in env:
        with open(env["FAKE_RECORD"], "a") as record:
            record.write(json.dumps([path, asked]) + "\n")
    model = str(asked.get("model"))
    if model.startswith("missing"):
        return 404, {"error": f"model '{model}' not found"}
    if model.startswith("embedder") and path == "/api/generate":
        return 400, {"error": f'"{model}" does not support generate'}
    return 200, {"model": model, "done": True}


if __name__ == "__main__":
    begin()
    serve()
