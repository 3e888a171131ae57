"""Which model stores there are, and which replicas read and write each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from corral.gateway.store.said import all_of
from corral.model import Health, Replica, ReplicaState

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway


@dataclass(frozen=True, slots=True)
class Targets:
    """Where an operation is to be carried out."""

    stores: tuple[str, ...]
    down: dict[str, str]
    """Stores of which no replica answers, and which these are, for a person."""


class Fleet:
    """As the scheduler and the owner of the replicas know it at the moment of each question."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def names(self) -> tuple[str, ...]:
        """The stores, as they are first mentioned."""
        return tuple(dict.fromkeys(replica.store for replica in self._replicas()))

    def has(self, replica: Replica) -> bool:
        """At its address: a reload may have given its name to another one."""
        places = {(each.id, each.host, each.port) for each in self._replicas()}
        return (replica.id, replica.host, replica.port) in places

    def targets(self) -> Targets:
        """All stores but those whose replicas are drained or held: none of these is asked for anything new.

        Where no store can be reached, all are named: the scheduler knows whether one is coming.
        """
        states = self.states()
        usable = {replica.store for replica in self._gateway.carrier.scheduler.usable()}
        down: dict[str, list[str]] = {}
        for replica in self._replicas():
            state = states.get(replica.id)
            if replica.store not in usable and state is not None and _is_down(state):
                down.setdefault(replica.store, []).append(replica.id)
        if not usable:
            return Targets(self.names(), {})
        stores = tuple(store for store in self.names() if store in usable)
        return Targets(stores, {store: all_of(ids) for store, ids in down.items()})

    def answering(self, store: str) -> list[Replica]:
        """Its replicas that have a process to be spoken to, drained ones too."""
        states = self.states()
        return [
            replica
            for replica in self._replicas()
            if replica.store == store and replica.id in states and states[replica.id].health is not Health.DOWN
        ]

    def states(self) -> dict[str, ReplicaState]:
        gateway = self._gateway
        return {state.id: state for state in gateway.carrier.scheduler.snapshot(gateway.clock()).replicas}

    def _replicas(self) -> tuple[Replica, ...]:
        gateway = self._gateway
        return gateway.carrier.scheduler.usable() if gateway.owner is None else gateway.owner.replicas()


def _is_down(state: ReplicaState) -> bool:
    return state.enabled and state.held is None and state.health is Health.DOWN
