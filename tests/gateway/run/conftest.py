"""What every test with real processes gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.gateway.run import keeper, supervisor
from tests.gateway.run.stage import end_all


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    """A state folder; whatever carries its mark at the end of the test is ended."""
    path = tmp_path / "state"
    yield path
    end_all(path)


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than is needed in real life, so that tests wait less."""
    monkeypatch.setattr(supervisor, "TICK_S", 0.01)
    monkeypatch.setattr(keeper, "READY_EVERY_S", 0.02)
