"""A gateway in front of emulators as one thing to be asked: real processes that end with the test run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.e2e.processes import START_S, Emulator, Gateway, write_config


@dataclass(frozen=True, slots=True)
class Front:
    """A gateway and what is behind it."""

    gateway: Gateway
    emulators: tuple[Emulator, ...]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"


@contextmanager
def gateway_before(count: int, *options: str, one_store: bool) -> Iterator[Front]:
    """A gateway that knows its ``count`` emulators; these share one store, or have one each."""
    with TemporaryDirectory() as name, ExitStack() as ending:
        folder = Path(name)
        given = (*options, "--store", str(folder / "store")) if one_store else options
        emulators: list[Emulator] = []
        for number in range(count):
            emulators.append(Emulator(folder / f"r{number}.log", f"r{number}", *given))
            ending.callback(emulators[-1].end)
        asyncio.run(_listening(emulators))
        gateway = Gateway(folder, write_config(folder / "corral.yaml", emulators, "null", own_stores=not one_store))
        ending.callback(gateway.end)
        asyncio.run(_in_the_know(gateway))
        yield Front(gateway, tuple(emulators))


async def _listening(emulators: list[Emulator]) -> None:
    for each in emulators:
        await each.ready()


async def _in_the_know(gateway: Gateway) -> None:
    await gateway.ready()
    await gateway.until(lambda page: all(map(_is_known, page["replicas"])), START_S, "knowledge of the replicas")


def _is_known(replica: dict[str, Any]) -> bool:
    """Its pages were read; there may be nothing on them."""
    return replica["health"] == "up" and None not in (replica["installed"], replica["loaded"])
