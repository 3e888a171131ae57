"""What surrounds the replicas that Corral runs: the gateway they serve, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import aiohttp

from corral.gateway.config.owned import WarmupConfig
from corral.gateway.layout.plan import ReplicaPlan
from corral.gateway.run.census import Census
from corral.gateway.run.ledger import Ledger, StateDir
from corral.gateway.run.lifecycle import LifecycleRules
from corral.gateway.run.ports import Ports
from corral.model import ProcessStatus, Replica, normalise_model


class SupervisorFeed(Protocol):
    """The gateway's side. Called on the event loop; must not block."""

    def replicas_changed(self) -> None:
        """The set, an address or another fact of :meth:`Supervisor.replicas` is another now."""
        ...

    def hold(self, replica_id: str, reason: str) -> None:
        """It takes no new requests until :meth:`release`. Said again with another reason, and of a new replica before
        :meth:`replicas_changed` tells of it."""
        ...

    def release(self, replica_id: str) -> None:
        """It takes requests; or it is gone, and who has its name now is not held for it."""
        ...

    def inflight(self, replica_id: str) -> int:
        """Requests it is answering."""
        ...

    def process_changed(self, status: ProcessStatus) -> None:
        """Its state or reason is another now."""
        ...


@dataclass(slots=True)
class Surroundings:
    """What all keepers share."""

    feed: SupervisorFeed
    state: StateDir
    ledger: Ledger
    ports: Ports
    environ: Mapping[str, str]
    """The gateway's own."""
    rules: LifecycleRules
    warmup: WarmupConfig
    clock: Callable[[], float]
    rng: Random
    session: aiohttp.ClientSession
    census: Census = field(default_factory=Census)
    exclusive: frozenset[str] = frozenset()
    """Models that only the replicas that list them serve."""

    def replica(self, plan: ReplicaPlan) -> Replica:
        """Where it is, or will be."""
        return Replica(
            id=plan.id,
            host="127.0.0.1",
            port=self.ports.of(plan.id),
            weight=plan.weight,
            slots=plan.slots,
            models=plan.models,
            gpus=tuple(gpu.uuid for gpu in plan.gpus),
            max_loaded=plan.max_loaded,
            pinned=plan.pinned,
            kept_off=plan.kept_off,
            store=plan.store,
        )

    def warmup_models(self, plan: ReplicaPlan) -> list[str]:
        """Those of the models to be loaded at its start that it serves."""
        if plan.models is None:
            return [model for model in self.warmup.models if normalise_model(model) not in self.exclusive]
        return [model for model in self.warmup.models if normalise_model(model) in plan.models]
