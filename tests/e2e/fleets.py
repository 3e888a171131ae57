"""A gateway in front of emulated replicas, all of them real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.e2e.processes import START_S, Emulator, Gateway, emulators, gateway, write_config


class Fleet:
    """A gateway in front of emulators."""

    def __init__(self, gateway: Gateway, emulators: Sequence[Emulator]) -> None:
        self.gateway = gateway
        self.emulators = emulators

    def __getitem__(self, name: str) -> Emulator:
        return next(each for each in self.emulators if each.name == name)

    @property
    def ports(self) -> list[int]:
        return [each.port for each in self.emulators]


@asynccontextmanager
async def fleet(folder: Path, count: int, *options: str, slots: int | str = 4, more: str = "") -> AsyncIterator[Fleet]:
    """A gateway in front of ``count`` emulators, all of them up, and known what they have and hold in memory."""
    async with emulators(folder, count, *options) as replicas:
        config = write_config(folder / "corral.yaml", replicas, slots, more)
        async with gateway(config) as front:
            await front.until(
                lambda page: all(map(_is_known, page["replicas"])),
                START_S,
                "a fleet that is up",
            )
            yield Fleet(front, replicas)


def _is_known(replica: dict[str, Any]) -> bool:
    return replica["health"] == "up" and bool(replica["installed"]) and replica["loaded"] is not None
