"""What becomes of a model that is replaced by another one of its name.

An Ollama knows what is in its memory by the weights' file: once the name means other weights, the old ones cannot be
told to leave by it. So the old version is kept under a name of the gateway's own until every replica has let go of it.
Where the gateway ends before it has removed that name, it removes it when it sees it next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from random import Random
from typing import Final

from corral.gateway.errand import Failed
from corral.gateway.store.lists import Lists, Page
from corral.gateway.store.mutation import copy_of
from corral.gateway.store.names import is_ours, previous_name
from corral.gateway.store.requests import StoreRequests
from corral.model import Replica

_COPY_S: Final = 5.0
"""A copy is another manifest, nothing more."""


class Previous:
    """All that are kept now, in any store."""

    def __init__(self, requests: StoreRequests, lists: Lists, rng: Random, remove: Callable[[str, str], None]) -> None:
        self.requests = requests
        self.lists = lists
        self._rng = rng
        self._remove = remove
        """Removes a name from a store, later; then :meth:`removed` or :meth:`stays` is called."""
        self._names: set[str] = set()
        """Those in use, and those that are being removed."""
        self._staying: set[str] = set()

    def new_name(self) -> str:
        name = previous_name(self._rng.getrandbits(64))
        self._names.add(name)
        return name

    def give_up(self, store: str, name: str) -> None:
        """Nobody needs it any more."""
        self._remove(store, name)

    def removed(self, name: str) -> None:
        self._names.discard(name)

    def stays(self, name: str) -> None:
        """It could not be removed: that is tried again with the next operation that replaces something."""
        self._staying.add(name)

    def found(self, store: str, names: Iterable[str]) -> None:
        """A store has these: remove what an earlier gateway left."""
        for name in names:
            if name not in self._names:
                self._names.add(name)
                self._remove(store, name)

    def sweep(self, store: str, page: Page) -> None:
        """The same, and what could not be removed before."""
        ours = [entry.model.name for entry in page.entries if is_ours(entry.model.name)]
        self._names -= self._staying.intersection(ours)
        self._staying.difference_update(ours)
        self.found(store, ours)


class Keeping:
    """One model in one store while it may be replaced."""

    def __init__(self, previous: Previous, store: str, model: str | None) -> None:
        self._previous = previous
        self._store = store
        self.model = model
        """None: nothing is replaced."""
        self.name = ""
        """What the old version is called meanwhile."""
        self._digest = ""
        self._is_kept = False
        self._is_tried = False

    async def keep(self, replica: Replica) -> None:
        """Give the installed version another name, if there is one; where that fails it is left."""
        previous, model = self._previous, self.model
        if self._is_tried or model is None:
            return
        page = await previous.lists.read(replica)
        if page is None:
            return
        self._is_tried = True
        previous.sweep(self._store, page)
        entry = page.find(model)
        if entry is None or entry.model.remote:
            return
        self.name, self._digest = previous.new_name(), entry.model.digest
        try:
            async with asyncio.timeout(_COPY_S):
                said = await previous.requests.change(replica, copy_of(entry.spelled, self.name), lambda line: None)
        except (Failed, TimeoutError):
            return
        self._is_kept = said.ok

    def is_replaced_in(self, page: Page | None) -> bool:
        """Whether another version is there now, and the old one can still be named."""
        if page is None or self.model is None or not self._is_kept:
            return False
        entry = page.find(self.model)
        return entry is not None and entry.model.digest != self._digest

    def is_same_in(self, page: Page | None) -> bool:
        """Whether the version that was kept has its own name still."""
        entry = None if page is None or self.model is None else page.find(self.model)
        return entry is not None and self._is_kept and entry.model.digest == self._digest

    def removed(self) -> None:
        """The other name of the version."""
        self._previous.removed(self.name)
        self.name = ""

    def give_up(self) -> None:
        if self.name:
            self._previous.give_up(self._store, self.name)
