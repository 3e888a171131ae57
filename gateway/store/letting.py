"""A model that is being removed or replaced leaves every memory, and nobody has it loaded again meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import aiohttp

from corral.gateway.run.own_requests import OwnRequests, Trouble, in_one_line
from corral.gateway.serve.poller import Poller
from corral.gateway.store.fleet import Fleet
from corral.model import Replica, ReplicaState

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

log: Final = logging.getLogger("corral.gateway")

LET_GO_S: Final = 2.0
"""A replica that does not agree by then holds up nobody."""
LOADED_S: Final = 60.0
"""A load that was under way may take so long: an Ollama that is told to let go of what it is still loading keeps it."""
LOOK_S: Final = 0.02


class Freezer:
    """The scheduler freezes a set of models; here is the union of what everybody wants frozen."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._wanted: Counter[str] = Counter()

    @contextmanager
    def frozen(self, model: str) -> Iterator[None]:
        """Requests for the model wait."""
        self._wanted[model] += 1
        self._freeze()
        try:
            yield
        finally:
            self._wanted[model] -= 1
            if not self._wanted[model]:
                del self._wanted[model]
            self._freeze()

    def _freeze(self) -> None:
        gateway = self._gateway
        gateway.carrier.apply(gateway.carrier.scheduler.freeze(frozenset(self._wanted), gateway.clock()))


class Letting:
    """Has replicas let go of models."""

    def __init__(self, gateway: Gateway, poller: Poller, fleet: Fleet, session: aiohttp.ClientSession) -> None:
        self._gateway = gateway
        self._poller = poller
        self._fleet = fleet
        self._session = session

    def names(self, model: str) -> tuple[str, ...]:
        """All names of what it is: an Ollama has that in memory once. To be asked before it is frozen, when it stands
        apart."""
        return self._gateway.carrier.scheduler.names_of(model)

    async def let_go(self, store: str, names: Collection[str], name: str) -> None:
        """Every replica of the store that may hold a model with these names in memory lets go of it. ``name`` is what
        the version is called that they hold, as they spell it."""
        states = self._fleet.states()
        replicas = [
            replica for replica in self._fleet.answering(store) if self._may_hold(replica, states[replica.id], names)
        ]
        await asyncio.gather(*(self._one(replica, names, name) for replica in replicas))

    def _may_hold(self, replica: Replica, state: ReplicaState, names: Collection[str]) -> bool:
        """What is known may be of before a request that went there."""
        scheduler = self._gateway.carrier.scheduler
        if state.loaded is None or any(model in state.loaded for model in names):
            return True
        if any(scheduler.use_of(replica.id, model).inflight for model in names):
            return True
        if not self._poller.knows_memory(replica.id):  # a request that has ended may have loaded it
            return True
        listed = self._poller.pages(replica.id).ps or ()
        return any(entry.model.name in names for entry in listed) or scheduler.is_unsettled(replica.id)

    async def _loaded(self, replica: Replica, names: Collection[str]) -> None:
        """Wait for the end of a load that is under way there."""
        gateway = self._gateway
        until_s = gateway.clock() + LOADED_S
        while True:
            is_loading = any(gateway.carrier.scheduler.is_loading(replica.id, model) for model in names)
            if not is_loading or gateway.clock() >= until_s:
                return
            await asyncio.sleep(LOOK_S)

    async def _one(self, replica: Replica, names: Collection[str], name: str) -> None:
        gateway = self._gateway
        await self._loaded(replica, names)
        try:
            async with asyncio.timeout(LET_GO_S):
                await OwnRequests(self._session, replica.host, replica.port).unload(name)
        except (Trouble, TimeoutError) as trouble:
            why = str(trouble) or f"no answer within {LET_GO_S:g} s"
            log.warning('model_let_go_failed replica=%s model=%s error="%s"', replica.id, in_one_line(name), why)
        else:
            for model in names:
                gateway.carrier.recent.let_go(replica.id, model)
                gateway.carrier.apply(gateway.carrier.scheduler.left_memory(replica.id, model, gateway.clock()))
        self._poller.read_memory(replica.id)
