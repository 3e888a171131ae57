"""One gateway in front of three unequal emulated replicas with one model store, for all tests of the clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.processes import Stack, stack

CHAT, THINKING, EMBEDDING = "llama3.1:8b", "qwen3:8b", "nomic-embed-text"
MODELS = tuple(option for model in (CHAT, THINKING, EMBEDDING) for option in ("--model", model))
SPEED = ("--speed", "20", "--context-length", "4096")


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A healthy gateway; its tests leave it at rest."""
    folder: Path = tmp_path_factory.mktemp("clients")
    with stack(folder, (*MODELS, *SPEED, "--store", str(folder / "models"))) as started:
        yield started
        assert started.at_rest()
        assert all(replica["health"] == "up" for replica in started.snapshot()["replicas"])
