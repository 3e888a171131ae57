"""Collecting the garbage of the model stores: where their folders are, whose turn it is, and what became of it.

A store is looked at only where its folder is known on this machine. Removing waits until nothing changes the store, and
keeps it so; all that touches a disk is done on a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from corral.gateway.config.owned import StoreConfig
from corral.gateway.run.threads import on_own_thread
from corral.gateway.store import garbage
from corral.gateway.store.garbage import Findings, Removal, Waste
from corral.gateway.store.operation import PullView
from corral.gateway.store.references import Unreadable
from corral.gateway.store.said import StoreError
from corral.model import Replica

log: Final = logging.getLogger("corral.gateway")

LOOK_S: Final = 60.0
"""A disk on the network that answers later than this is not waited for."""
PATIENCE_S: Final = 0.25
WORD_S: Final = 2.0
"""Between two words that it still waits."""
_STOP_S: Final = 2.0
_SILENT: Final = f"the disk does not answer within {LOOK_S:g} s"

Step = dict[str, Any]
Known = tuple[Sequence[Replica], Mapping[str, str | None], Mapping[str, StoreConfig]]


class Quiet(Protocol):
    """The stores, see :class:`corral.gateway.store.stores.Stores`."""

    def pulls(self) -> tuple[PullView, ...]: ...

    def quiet(self, *stores: str) -> AbstractAsyncContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class Place:
    """One folder, and the stores that are in it; or one store of which it is not known."""

    stores: tuple[str, ...]
    folder: Path | None
    problem: str | None = None
    """Why it cannot be looked at, and what to do."""


def places(
    replicas: Sequence[Replica], owned: Mapping[str, str | None], configured: Mapping[str, StoreConfig]
) -> list[Place]:
    """``owned``: by id of the replicas that Corral runs, their OLLAMA_MODELS. Looks at links on the disk."""
    found: dict[str, list[str]] = {}
    unknown = []
    for store in dict.fromkeys(replica.store for replica in replicas):
        users = [replica.id for replica in replicas if replica.store == store]
        named = {os.path.realpath(folder.strip().strip("\"'")) for id in users if (folder := owned.get(id))}
        if store in configured:
            named.add(os.path.realpath(configured[store].path))
        if len(named) == 1:
            found.setdefault(named.pop(), []).append(store)
        else:
            unknown.append(Place((store,), None, _why(store, users, sorted(named), owned)))
    return [*(Place(tuple(stores), Path(folder)) for folder, stores in found.items()), *unknown]


def _why(store: str, users: Sequence[str], named: Sequence[str], owned: Mapping[str, str | None]) -> str:
    if named:
        return f"its replicas use several folders ({', '.join(named)}); give them store names of their own"
    if any(id in owned for id in users):
        return "Ollama itself chooses its folder; name it: ollama: {models: /path}"
    return (
        f"Corral does not run {', '.join(users)}; if the folder (OLLAMA_MODELS) can be reached from this machine, name "
        f"it: stores: {{{store}: {{path: /path}}}}; else restart one Ollama there without OLLAMA_NOPRUNE while "
        "nothing is pulled"
    )


class Cleaner:
    """``known``: the replicas, the folders of those that Corral runs, and what is configured, see :func:`places`.
    ``is_stopping``: the gateway is about to end, and nothing is begun any more."""

    def __init__(
        self,
        stores: Quiet,
        known: Callable[[], Known],
        is_stopping: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stores = stores
        self._known = known
        self._is_stopping = is_stopping
        self._clock = clock
        """Unix time, as files have it."""

    async def clean(self, min_age_s: float, *, removes: bool) -> AsyncGenerator[Step, None]:
        """What is going on, and at the end what was found, or removed: ``{"stores": [...]}``."""
        reports: list[Step] = []
        for place in await self._places():
            if place.folder is None:
                reports.append(_report(place, place.problem))
            elif not removes:
                reports.append(await self._look(place, place.folder, min_age_s))
            else:
                async with aclosing(self._remove(place, place.folder, min_age_s, reports)) as steps:
                    async for step in steps:
                        yield step
        yield {"stores": reports}

    async def _places(self) -> list[Place]:
        known = self._known()
        try:
            async with asyncio.timeout(LOOK_S):
                return await on_own_thread(lambda: places(*known), "stores")
        except TimeoutError:
            return [Place((store,), None, _SILENT) for store in dict.fromkeys(replica.store for replica in known[0])]

    async def _look(self, place: Place, folder: Path, min_age_s: float) -> Step:
        busy = any(not pull.store or pull.store in place.stores for pull in self._stores.pulls())
        now_s = self._clock()
        try:
            async with asyncio.timeout(LOOK_S):
                found = await on_own_thread(
                    lambda: garbage.survey(folder, min_age_s, now_s, with_previous=not busy), "garbage"
                )
        except TimeoutError:
            return _report(place, _SILENT)
        except Unreadable as error:
            return _report(place, _refused(error))
        return _report(place, None, found)

    async def _remove(
        self, place: Place, folder: Path, min_age_s: float, reports: list[Step]
    ) -> AsyncGenerator[Step, None]:
        async with AsyncExitStack() as stack:
            try:
                async with aclosing(self._turn(place, stack)) as steps:
                    async for step in steps:
                        yield step
            except StoreError as error:
                reports.append(_report(place, error.message))
                return
            if self._is_stopping():
                reports.append(_report(place, "nothing is removed: the gateway is stopping"))
                return
            yield {"status": "removing", "stores": list(place.stores)}
            try:
                removal = await self._removed(folder, min_age_s)
            except Unreadable as error:
                reports.append(_report(place, _refused(error)))
            else:
                _log(place, removal)
                reports.append(_report(place, removal.stopped, removal=removal))

    async def _turn(self, place: Place, stack: AsyncExitStack) -> AsyncGenerator[Step, None]:
        """Have the stores to oneself until the stack is closed; says so while that is waited for."""
        entering = asyncio.ensure_future(stack.enter_async_context(self._stores.quiet(*place.stores)))
        patience_s = PATIENCE_S
        try:
            while not (await asyncio.wait({entering}, timeout=patience_s))[0]:
                patience_s = WORD_S
                models = list(dict.fromkeys(pull.model for pull in self._stores.pulls()))
                yield {"status": "waiting", "stores": list(place.stores), "pulls": models}
            entering.result()
        finally:
            if not entering.done():
                entering.cancel()
                await asyncio.wait({entering})

    async def _removed(self, folder: Path, min_age_s: float) -> Removal:
        """Whoever gives up waiting stops it, and its turn ends no sooner than its work, unless the disk hangs."""
        stop = threading.Event()

        def is_stopped() -> bool:
            return stop.is_set() or self._is_stopping()

        running = asyncio.ensure_future(
            on_own_thread(lambda: garbage.remove(folder, min_age_s, self._clock, is_stopped), "garbage")
        )
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({running}, timeout=_STOP_S)
            raise


def _refused(error: Unreadable) -> str:
    return f"nothing is removed: {error}; what the models there need is not known for certain"


def _log(place: Place, removal: Removal) -> None:
    log.info(
        "garbage_removed store=%s things=%d bytes=%d failed=%d",
        ",".join(place.stores),
        len(removal.removed),
        sum(waste.size_bytes for waste in removal.removed),
        len(removal.failed),
    )


def _report(
    place: Place, problem: str | None, findings: Findings | None = None, *, removal: Removal | None = None
) -> Step:
    waste = () if findings is None else findings.waste
    young = None if findings is None else {"files": findings.young_files, "size_bytes": findings.young_bytes}
    return {
        "stores": list(place.stores),
        "folder": None if place.folder is None else str(place.folder),
        "problem": problem,
        "waste": [_waste(one) for one in (waste if removal is None else removal.removed)],
        "removed": removal is not None,
        "young": young,
        "failed": [] if removal is None else [{"file": file, "why": why} for file, why in removal.failed],
    }


def _waste(one: Waste) -> Step:
    return {
        "kind": one.kind.value,
        "name": one.name,
        "files": len(one.files),
        "size_bytes": one.size_bytes,
        "age_s": round(one.age_s, 1),
    }
