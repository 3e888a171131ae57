"""The demo as an installed program, with nothing of this repository within its reach."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def demo(corral: list[str], folder: Path, **env: str) -> Iterator[dict[str, str]]:
    """``corral demo`` by this program; its addresses as the start-up card has them: ``clients`` and ``admin``."""
    plain = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_STATE_HOME": str(folder)}
    where = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    with subprocess.Popen(
        [*corral, "demo", "--speed", "20", *where],
        cwd=folder,
        env=plain | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said: list[str] = []
            for line in process.stdout:
                said.append(line)
                if "Ctrl-C" in line:
                    break
            card = dict(re.findall(r"^\s+(clients|admin)\s+(http://\S+)", "".join(said), flags=re.MULTILINE))
            assert card.keys() == {"clients", "admin"}, "".join(said)
            yield card
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            assert process.wait(30) == 0
        finally:
            process.kill()


def chat(url: str) -> list[dict[str, object]]:
    """The lines of a short answer."""
    asked = {"model": "llama3.1:8b", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 4}}
    request = urllib.request.Request(f"{url}/api/chat", json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [json.loads(line) for line in answer]
