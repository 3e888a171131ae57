"""`python -m bench.embeddings`: a batch of embeddings through Corral before one replica, and before several.

The replicas are emulators (`corral emulate`), equal ones; each has the model in memory, and works on one request for it
at a time, as an Ollama does for a model that only embeds. Both gateways and all emulators run all the time, one batch
at a time is asked for, and the two gateways take turns. A text takes a fixed emulated time; making up its numbers and
writing them costs real CPU time on top, for which the emulators of one machine compete: the slower the emulated GPUs
(`--speed`), the less it counts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench import machine
from bench.contenders import CONTENDERS, Command, Proxy, free_port

MODEL = "all-minilm:22m"
TARGET = 3.5
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Round:
    """One batch through each gateway."""

    alone_s: float
    together_s: float
    parts: int
    same: bool
    """Both gave the same vectors."""


@contextmanager
def emulator(speed: float) -> Iterator[int]:
    """The port of one that runs as a process of its own."""
    command = [sys.executable, "-m", "corral", "emulate", "--listen", "127.0.0.1:0", "--model", MODEL]
    command += ["--speed", str(speed), "--load-seconds", "0.5", "--until-stdin-closes"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield int(line.split("http://127.0.0.1:")[1].split()[0].rstrip("/"))
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


@contextmanager
def gateway(replicas: Sequence[int]) -> Iterator[Proxy]:
    """Corral with its default configuration before these ports; all of them hold the model."""
    listed = [{"id": f"r{n}", "url": f"http://127.0.0.1:{port}", "pin": [MODEL]} for n, port in enumerate(replicas)]

    def command(folder: Path, port: int, _: Sequence[int]) -> Command:
        config = {"listen": f"127.0.0.1:{port}", "admin_listen": f"127.0.0.1:{free_port()}", "replicas": listed}
        path = folder / "corral.yaml"
        path.write_text(json.dumps(config))  # YAML understands JSON
        return [sys.executable, "-m", "corral", "serve", "--config", str(path)]

    with tempfile.TemporaryDirectory() as folder:
        contender = replace(CONTENDERS["corral"], command=command)
        with Proxy(contender, Path(folder), None, replicas) as proxy:
            _wait_loaded(proxy.port, len(replicas))
            yield proxy


def _wait_loaded(port: int, copies: int) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until_s:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        connection.request("GET", "/api/ps")
        answer = json.load(connection.getresponse())
        connection.close()
        if len(answer["models"]) >= copies:
            return
        time.sleep(0.1)
    raise SystemExit(f"the model was not in the memory of all {copies} replicas after {_PATIENCE_S:g} s")


def embed(port: int, texts: Sequence[str]) -> tuple[float, list[list[float]], int]:
    """Seconds to the last byte, the vectors, and in how many parts it was worked off."""
    body = json.dumps({"model": MODEL, "input": texts})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    began_s = time.monotonic()
    connection.request("POST", "/api/embed", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    took_s = time.monotonic() - began_s
    connection.close()
    if response.status != 200:
        raise SystemExit(f"status {response.status}: {answer[:200]!r}")
    return took_s, json.loads(answer)["embeddings"], int(response.headers.get("x-corral-parts", 1))


def measure(texts: int, replicas: int, rounds: int, speed: float) -> list[Round]:
    batch = [f"text {number}: " + "what somebody wants to find again " * (1 + number % 7) for number in range(texts)]
    with ExitStack() as stack:
        ports = [stack.enter_context(emulator(speed)) for _ in range(replicas)]
        alone = stack.enter_context(gateway(ports[:1])).port
        together = stack.enter_context(gateway(ports)).port
        for port in (alone, together):  # both know then what a text takes
            embed(port, batch)
        return [_round(alone, together, batch) for _ in range(rounds)]


def _round(alone: int, together: int, batch: Sequence[str]) -> Round:
    alone_s, expected, _ = embed(alone, batch)
    together_s, found, parts = embed(together, batch)
    return Round(alone_s, together_s, parts, expected == found)


def report(rounds: Sequence[Round], texts: int, replicas: int, speed: float) -> str:
    """The figures and whether they meet their target, as Markdown."""
    alone, together = [each.alone_s for each in rounds], [each.together_s for each in rounds]
    ratios = [each.alone_s / each.together_s for each in rounds]
    met = "met" if median(ratios) >= TARGET else "missed"
    parts = ", ".join(map(str, sorted({each.parts for each in rounds})))
    wrong = sum(not each.same for each in rounds)
    return "\n".join(
        [
            f"{texts} texts, {len(rounds)} rounds, emulators {speed:g} times as fast as their GPU; "
            f"{parts} parts; {wrong} answers that differ",
            "",
            "| figure | least | median | greatest | target |",
            "|---|---:|---:|---:|---|",
            _row("one replica, s", alone),
            _row(f"{replicas} equal replicas, s", together),
            _row("ratio", ratios, f"≥ {TARGET}: {met}"),
        ]
    )


def _row(title: str, values: Sequence[float], target: str = "") -> str:
    return f"| {title} | {min(values):.3f} | {median(values):.3f} | {max(values):.3f} | {target} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.embeddings", description=__doc__)
    parser.add_argument("--texts", type=int, default=512, help="in the batch")
    parser.add_argument("--replicas", type=int, default=4, help="that are compared with one")
    parser.add_argument("--rounds", type=int, default=7, help="one batch through each gateway")
    parser.add_argument("--speed", type=float, default=4.0, help="of the emulators: 1 is as slow as their GPU")
    options = parser.parse_args(arguments)
    with machine.cores_to_ourselves():
        rounds = measure(options.texts, options.replicas, options.rounds, options.speed)
    print(report(rounds, options.texts, options.replicas, options.speed))
    return 0 if all(each.same for each in rounds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
