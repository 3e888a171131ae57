"""Which models there are, where each is, and what is being pulled: for an operator, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from corral.gateway.serve.views import ReplicaPages
from corral.gateway.store.operation import PullView
from corral.model import Replica, ReplicaState
from corral.probes.ollama import PsEntry, TagsEntry

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway


@dataclass(slots=True)
class _Row:
    """One model, as far as it is put together."""

    name: str
    newest: TagsEntry | None = None
    """None: it is in memory, but in no store."""
    owners: dict[str, str] = field(default_factory=dict)
    """Digest by the id of each replica whose store has it."""


class Inventory:
    """Reads what the probes, the scheduler and the stores know."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def page(self) -> dict[str, Any]:
        """The models newest first; those that are in no store any more last."""
        poller, scheduler = self._gateway.poller, self._gateway.carrier.scheduler
        usable = scheduler.usable()
        if poller is None:
            return _page((), [], [], [], ())
        ids = [replica.id for replica in usable]
        await poller.catch_up_tags(ids)
        await poller.catch_up_ps(ids, scheduler.is_unsettled)
        pages = {replica.id: poller.pages(replica.id) for replica in usable}
        copies = self._copies(usable, pages)
        rows = _rows(pages.values(), copies)
        everyone = self._everyone(usable)
        models = [self._model(row, everyone, copies) for row in rows]
        states = {state.id: state for state in self._gateway.summary().replicas}
        replicas = [_replica(replica, states.get(replica.id)) for replica in everyone]
        stores = self._gateway.stores
        pulls = () if stores is None else stores.pulls()
        return _page(everyone, models, replicas, [self._pull(pull) for pull in pulls], ids)

    def _everyone(self, usable: Sequence[Replica]) -> Sequence[Replica]:
        owner = self._gateway.owner
        return usable if owner is None else owner.replicas()

    def _copies(
        self, replicas: Iterable[Replica], pages: Mapping[str, ReplicaPages]
    ) -> dict[str, list[dict[str, Any]]]:
        """By every name of the model."""
        found: dict[str, list[dict[str, Any]]] = {}
        for replica in replicas:
            page = pages[replica.id]
            for entry in page.ps or ():
                if not self._has_left(page, entry):
                    names = {entry.model.name, *self._gateway.carrier.scheduler.names_of(entry.model.name)}
                    copy = self._copy(replica, entry, names)
                    for name in names:
                        found.setdefault(name, []).append(copy)
        return found

    def _has_left(self, page: ReplicaPages, entry: PsEntry) -> bool:
        gateway, model = self._gateway, entry.model.name
        if page.ps_at_s is None or gateway.poller is None:
            return False
        if not gateway.poller.recent.has_left(page.replica_id, model, page.ps_at_s):
            return False
        return not gateway.carrier.scheduler.use_of(page.replica_id, model).inflight

    def _copy(self, replica: Replica, entry: PsEntry, names: set[str]) -> dict[str, Any]:
        use, now_s = self._gateway.carrier.scheduler.use_of(replica.id, entry.model.name), self._gateway.clock()
        return {
            "replica": replica.id,
            "loaded_as": entry.model.name,
            "size_bytes": entry.model.size_bytes,
            "size_vram_bytes": entry.model.size_vram_bytes,
            "context_length": entry.model.context_length,
            "age_s": _ago(use.since_s, now_s),
            "idle_s": _ago(use.used_s, now_s),
            "in_flight": use.inflight,
            "slots": use.slots,
            "pinned": not names.isdisjoint(replica.pinned),
        }

    def _model(
        self, row: _Row, replicas: Sequence[Replica], copies: Mapping[str, list[dict[str, Any]]]
    ) -> dict[str, Any]:
        newest = row.newest
        digest = None if newest is None else newest.model.digest
        stores = dict.fromkeys(replica.store for replica in replicas if row.owners.get(replica.id) == digest)
        return {
            "name": row.name if newest is None else newest.spelled,
            "digest": digest,
            "size_bytes": None if newest is None else newest.model.size_bytes,
            "modified_at": None if newest is None else _time(newest.modified_s),
            "remote": newest is not None and newest.model.remote,
            "stores": [] if newest is None else list(stores),
            "stored_at": [id for id, held in row.owners.items() if held == digest],
            "outdated_at": [id for id, held in row.owners.items() if held != digest],
            "kept_off": [replica.id for replica in replicas if row.name in replica.kept_off],
            "pinned_at": [replica.id for replica in replicas if row.name in replica.pinned],
            "copies": copies.get(row.name, []),
        }

    def _pull(self, pull: PullView) -> dict[str, Any]:
        return {
            "model": pull.model,
            "store": pull.store or None,
            "waiting": pull.waiting,
            "completed_bytes": pull.completed_bytes,
            "total_bytes": pull.total_bytes,
            "for_s": _ago(pull.since_s, self._gateway.clock()),
        }


def _rows(pages: Iterable[ReplicaPages], copies: Iterable[str]) -> list[_Row]:
    """Of several versions under one name the one that was pulled last speaks for it, as everywhere."""
    rows: dict[str, _Row] = {}
    for page in pages:
        for entry in page.tags or ():
            row = rows.setdefault(entry.model.name, _Row(entry.model.name))
            row.owners[page.replica_id] = entry.model.digest
            if row.newest is None or entry.modified_s > row.newest.modified_s:
                row.newest = entry
    stored = sorted(rows.values(), key=lambda row: -row.newest.modified_s if row.newest else 0.0)
    return [*stored, *(_Row(name) for name in sorted(copies) if name not in rows)]


def _replica(replica: Replica, state: ReplicaState | None) -> dict[str, Any]:
    return {
        "id": replica.id,
        "store": replica.store,
        "health": None if state is None else state.health.value,
        "enabled": state is None or state.enabled,
        "held": None if state is None else state.held,
        "changing": None if state is None else state.changing,
    }


def _page(
    everyone: Sequence[Replica],
    models: list[dict[str, Any]],
    replicas: list[dict[str, Any]],
    pulls: list[dict[str, Any]],
    usable: Iterable[str],
) -> dict[str, Any]:
    known = set(usable)
    reachable = {replica.store for replica in everyone if replica.id in known}
    stores = dict.fromkeys(replica.store for replica in everyone)
    return {
        "stores": [{"name": store, "reachable": store in reachable} for store in stores],
        "models": models,
        "replicas": replicas,
        "pulls": pulls,
    }


def _ago(at_s: float | None, now_s: float) -> float | None:
    return None if at_s is None else round(max(0.0, now_s - at_s), 3)


def _time(unix_s: float) -> str | None:
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):  # what a replica says may be any year
        return None
