"""What the conformance suite runs against: emulators of both engines, alone and behind a gateway, a real Ollama, or
any URL.

- nothing set: emulators, and gateways in front of them (and one skipped test that says how to add a real Ollama);
- ``OLLAMA_BIN`` and ``OLLAMA_TEST_MODEL``: also that binary, serving its own models on a free port;
- ``CORRAL_CONFORMANCE_URL``: only that address, for instance a gateway; ``CORRAL_CONFORMANCE_MODEL`` (default
  ``llama3.2:1b``) and ``CORRAL_CONFORMANCE_EMBEDDING`` (default ``all-minilm``) name models that it has.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from tests.conformance.gateways import gateway_before
from tests.conformance.raw import ask
from tests.emulator.child import emulator

VERSIONS = ("0.32.15", "0.24.0")
BEFORE = {"gateway of 1": (1, False), "gateway of 4, one store": (4, True), "gateway of 4, separate stores": (4, False)}
"""Emulators behind it, and whether they share a store."""
EMULATED = tuple(f"{what} {version}" for what in ("emulator", *BEFORE) for version in VERSIONS)
MODEL, EMBEDDING, THINKING = "llama3.2:1b", "all-minilm", "qwen3:8b"
SPEED = 20


@dataclass(frozen=True, slots=True)
class Target:
    """Something that should behave as an Ollama."""

    url: str
    model: str
    embedding: str | None
    version: tuple[int, ...]
    emulated: bool
    """Made of emulators, alone or behind a gateway, which have nothing that a test could spoil."""
    others: tuple[str, ...] = ()
    """What else an emulated one has."""
    speed: float = 1.0
    """How much faster than the clock its time goes: a model kept for 60 s is kept for 3 s where it is 20."""

    @property
    def legacy(self) -> bool:
        return self.version < (0, 30)


def kinds() -> tuple[str, ...]:
    """Which targets this run has."""
    if os.environ.get("CORRAL_CONFORMANCE_URL"):
        return ("url",)
    return (*EMULATED, "ollama") if os.environ.get("OLLAMA_BIN") else EMULATED


def kind_in(test: str) -> str | None:
    """The target in the name of a test."""
    return next((kind for kind in kinds() if f"[{kind}]" in test or f"[{kind}-" in test), None)


@contextmanager
def target_of(kind: str) -> Iterator[Target]:
    if kind == "url":
        yield _given()
    elif kind == "ollama":
        with _real() as target:
            yield target
    else:
        what, _, version = kind.rpartition(" ")
        with _emulated(what, version) as url:
            yield _target(url, MODEL, EMBEDDING, emulated=True)


@contextmanager
def _emulated(what: str, version: str) -> Iterator[str]:
    models = [option for name in (MODEL, EMBEDDING, THINKING) for option in ("--model", name)]
    options = (*models, "--ollama-version", version, "--speed", f"{SPEED}", "--pull-seconds", "1")
    options += ("--parallel", "2", "--context-length", "4096")
    if what == "emulator":
        with emulator(*options) as child:
            yield child.url
    else:
        count, one_store = BEFORE[what]
        with gateway_before(count, *options, one_store=one_store) as front:
            yield front.url


def _given() -> Target:
    model = os.environ.get("CORRAL_CONFORMANCE_MODEL", MODEL)
    embedding = os.environ.get("CORRAL_CONFORMANCE_EMBEDDING", EMBEDDING)
    return _target(os.environ["CORRAL_CONFORMANCE_URL"].rstrip("/"), model, embedding or None, emulated=False)


@contextmanager
def _real() -> Iterator[Target]:
    binary, model = os.environ["OLLAMA_BIN"], os.environ.get("OLLAMA_TEST_MODEL")
    if not model:
        pytest.skip("OLLAMA_BIN is set, but not OLLAMA_TEST_MODEL: a model that this Ollama has")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [binary, "serve"],
        env={**os.environ, "OLLAMA_HOST": host, "OLLAMA_NUM_PARALLEL": "2", "OLLAMA_NOPRUNE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _until_it_answers(f"http://{host}")
        yield _target(f"http://{host}", model, os.environ.get("OLLAMA_TEST_EMBEDDING"), emulated=False)
    finally:
        process.terminate()
        process.wait(30)


def _until_it_answers(url: str) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            ask(url, "GET", "/api/version")
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _target(url: str, model: str, embedding: str | None, *, emulated: bool) -> Target:
    version = ask(url, "GET", "/api/version").json()["version"]
    numbers = tuple(int(part) for part in version.partition("-")[0].split("."))
    found = Target(url, model, embedding, numbers, emulated)
    return replace(found, others=(THINKING,), speed=SPEED) if emulated else found
