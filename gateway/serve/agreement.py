"""Whether replicas that are said to share a model store list the same models.

One list may be older than the other, and the store may have changed between the two. What speaks for two stores is a
model that is listed by one replica, then not by the other, then again by the first: in one store it would have had to
go and come back. It is believed when it happens to a model twice, for a manifest that is being written over does go and
come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from corral.gateway.serve.views import ReplicaPages

_Models = frozenset[tuple[str, str]]
"""Names and digests."""
_NONE: Final[_Models] = frozenset()


@dataclass(frozen=True, slots=True)
class _List:
    models: _Models
    began_s: float
    ended_s: float
    last: _List | None
    """The one before; that has none."""


class Agreement:
    """Told of every list of models that was read; knows the stores that are none."""

    def __init__(self) -> None:
        self._stores: dict[str, str] = {}
        self._lists: dict[str, _List] = {}
        self._doubts: dict[tuple[str, str], _Models] = {}
        """By who listed and who did not: the models to which it happened last."""
        self._differing: set[frozenset[str]] = set()
        """Pairs of replicas of which it is believed."""

    def use(self, stores: Mapping[str, str]) -> None:
        """These replicas have these stores from now on."""
        self._stores = dict(stores)
        self._lists = {each: read for each, read in self._lists.items() if each in stores}
        for one, other in [*self._doubts, *map(tuple, self._differing)]:
            if one not in stores or stores[one] != stores.get(other):
                self._settle(one, other)

    def changed(self, store: str) -> None:
        """The gateway itself changed it: a model may have gone and come back."""
        for replica_id in self._sharing(store):
            self._lists.pop(replica_id, None)
            for pair in [pair for pair in self._doubts if replica_id in pair]:
                del self._doubts[pair]

    def read(self, page: ReplicaPages, ended_s: float) -> bool:
        """A replica's list was read. True: it is believed of its store from now on that it is none."""
        store = self._stores.get(page.replica_id)
        if store is None or page.tags is None or page.tags_at_s is None:
            return False
        was_one, last = self.is_one(store), self._lists.get(page.replica_id)
        models = frozenset((entry.model.name, entry.model.digest) for entry in page.tags)
        before = None if last is None else _List(last.models, last.began_s, last.ended_s, None)
        read = self._lists[page.replica_id] = _List(models, page.tags_at_s, ended_s, before)
        for other in self._sharing(store):
            if other != page.replica_id and other in self._lists:
                self._compare(page.replica_id, other, read, self._lists[other])
        return was_one and not self.is_one(store)

    def is_one(self, store: str) -> bool:
        return not any(self._stores[replica_id] == store for pair in self._differing for replica_id in pair)

    @property
    def advice(self) -> tuple[str, ...]:
        """A sentence for each store that is none."""
        return tuple(self.sentence(store) for store in dict.fromkeys(self._stores.values()) if not self.is_one(store))

    def sentence(self, store: str) -> str:
        differing = frozenset().union(*self._differing)
        *ids, last = [replica_id for replica_id in self._sharing(store) if replica_id in differing]
        return (
            f"{', '.join(ids)} and {last} are said to share the store {store!r} but list different models: "
            "give them `store:` names of their own"
        )

    def _sharing(self, store: str) -> Iterable[str]:
        return [replica_id for replica_id, shared in self._stores.items() if shared == store]

    def _compare(self, one: str, other: str, read: _List, others: _List) -> None:
        if read.models == others.models:
            self._settle(one, other)
        elif read.last is not None and read.last.ended_s < others.began_s and others.ended_s < read.began_s:
            came_back = (read.models & read.last.models) - others.models
            if came_back & self._doubts.get((one, other), _NONE):
                self._differing.add(frozenset((one, other)))
            self._doubts[one, other] = came_back

    def _settle(self, one: str, other: str) -> None:
        self._doubts.pop((one, other), None)
        self._doubts.pop((other, one), None)
        self._differing.discard(frozenset((one, other)))
