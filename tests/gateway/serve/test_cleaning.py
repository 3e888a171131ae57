"""Whose turn it is while garbage is removed, whatever the disk and those who asked do."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from corral.gateway.config.owned import StoreConfig
from corral.gateway.serve import cleaning
from corral.gateway.serve.cleaning import Cleaner, Known
from corral.gateway.store import garbage
from corral.gateway.store.garbage import Removal
from corral.gateway.store.operation import PullView
from corral.gateway.store.said import StoreError
from corral.model import Replica
from tests.gateway.wire.harness import until

NOW_S = 2_000_000_000.0


class Stores:
    """Whoever wants a turn gets it when ``free`` is set."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.turns: list[str] = []
        self.error: StoreError | None = None

    def pulls(self) -> tuple[PullView, ...]:
        return () if self.free.is_set() else (PullView("m:latest", "far", 1, 5, 10, 0.0),)

    @asynccontextmanager
    async def quiet(self, *stores: str) -> AsyncIterator[None]:
        if self.error is not None:
            raise self.error
        await self.free.wait()
        self.turns.append(f"begun {' '.join(stores)}")
        try:
            yield
        finally:
            self.turns.append(f"ended {' '.join(stores)}")


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stores = Stores()
        self.stopping = False
        for part in ("blobs", "manifests"):
            (folder / part).mkdir()
        self.blob = folder / "blobs" / f"sha256-{'a' * 64}"
        self.blob.write_bytes(b"x")
        os.utime(self.blob, (NOW_S - 7200, NOW_S - 7200))
        replicas = [Replica("a", "127.0.0.1", 1, store="far")]
        known: Known = (replicas, {}, {"far": StoreConfig(path=folder)})
        self.cleaner = Cleaner(self.stores, lambda: known, lambda: self.stopping, lambda: NOW_S)

    async def clean(self, *, removes: bool) -> list[dict[str, Any]]:
        async with aclosing(self.cleaner.clean(3600, removes=removes)) as steps:
            return [step async for step in steps]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says at once that it waits."""
    monkeypatch.setattr(cleaning, "PATIENCE_S", 0.01)
    monkeypatch.setattr(cleaning, "WORD_S", 0.01)


async def test_the_stores_are_had_alone_from_the_first_look_to_the_last_file(bench: Bench) -> None:
    bench.stores.free.set()
    removing, [last] = (await bench.clean(removes=True))[0], (await bench.clean(removes=True))[-1]["stores"]
    assert removing == {"status": "removing", "stores": ["far"]}
    assert bench.stores.turns == ["begun far", "ended far"] * 2
    assert not bench.blob.exists()
    assert (last["waste"], last["problem"]) == ([], None)


@pytest.mark.usefixtures("patient")
async def test_who_gives_up_waiting_for_a_turn_has_none_later(bench: Bench) -> None:
    async with aclosing(bench.cleaner.clean(3600, removes=True)) as steps:
        assert await anext(steps) == {"status": "waiting", "stores": ["far"], "pulls": ["m:latest"]}
        assert (await anext(steps))["status"] == "waiting"
    bench.stores.free.set()
    await asyncio.sleep(0)
    assert bench.stores.turns == []
    assert bench.blob.exists()


async def test_a_turn_ends_no_sooner_than_the_work_of_one_who_was_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(folder: Path, age_s: float, clock: Callable[[], float], is_stopped: Callable[[], bool]) -> Removal:
        begun.set()
        assert may_end.wait(10)
        assert is_stopped()
        return Removal(stopped="it was told to stop")

    monkeypatch.setattr(garbage, "remove", slow)
    bench.stores.free.set()
    cleaning_up = asyncio.create_task(bench.clean(removes=True))
    await until(begun.is_set)
    cleaning_up.cancel()
    await asyncio.wait({cleaning_up}, timeout=0.05)
    assert bench.stores.turns == ["begun far"]
    may_end.set()
    await asyncio.wait({cleaning_up})
    assert bench.stores.turns == ["begun far", "ended far"]


async def test_a_disk_that_hangs_is_said_to(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    def hang(*args: object, **more: object) -> None:
        may_end.wait(10)

    monkeypatch.setattr(cleaning, "LOOK_S", 0.05)
    monkeypatch.setattr(garbage, "survey", hang)
    [page] = await bench.clean(removes=False)
    assert page["stores"][0]["problem"].startswith("the disk does not answer")
    monkeypatch.setattr(cleaning, "places", hang)
    [page] = await bench.clean(removes=False)
    assert page["stores"][0]["stores"] == ["far"]
    assert page["stores"][0]["problem"].startswith("the disk does not answer")
    may_end.set()


async def test_nothing_is_begun_while_the_gateway_stops(bench: Bench) -> None:
    bench.stores.free.set()
    bench.stopping = True
    [page] = await bench.clean(removes=True)
    assert page["stores"][0]["problem"] == "nothing is removed: the gateway is stopping"
    assert bench.blob.exists()


async def test_too_many_who_wait_are_an_error_of_that_store(bench: Bench) -> None:
    bench.stores.error = StoreError(503, "server busy")
    [page] = await bench.clean(removes=True)
    assert page["stores"][0]["problem"] == "server busy"
    assert bench.blob.exists()
