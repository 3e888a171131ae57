"""Which names mean one runner: Ollama finds the runner of a model by its weights, whatever the name.

Rules of this file:

1. Equal manifests are one. So are different ones of the same weights, adapters and projectors, once that is known.
2. Only names that exactly the same replicas have, each in one version: who may serve one of them may serve them all.
3. What the file of a model says of its options is what a request for it asks for. So one name without any stands for
   all of its weights; names that all have some stand only for those that have the same.
4. That name is the one that was there first, so that a copy takes away nothing of what was learned of its original.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from msgspec.structs import replace

from corral.model import InstalledModel, RouteRequest, is_cloud_model

RELOADING: Final = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
"""The options that Ollama loads a model anew for, in the order of a signature."""
_ORDER: Final = (*RELOADING, "shift")
_NEAR_BYTES: Final = 1 << 20
"""Models of the same weights differ in their texts, which are no larger, but for strange ones."""


class Weights(NamedTuple):
    """What a model is made of, as far as that decides who runs it."""

    blobs: tuple[str, ...]
    """Of its weights, adapters and projectors; empty: it does not say."""
    options: str = ""
    """Those of :data:`RELOADING` that its file names, as in a signature."""


class Alias(NamedTuple):
    """What a name is asked for as."""

    runner: str
    """Another name of the same weights."""
    options: str = ""
    """What its file names and the runner's does not."""


class Move(NamedTuple):
    """What was in memory under one name is there under another from now on."""

    to: str
    before: str
    """The options that the file of the old name names; the next: of the new one."""
    after: str

    def signature(self, given: str | None) -> str | None:
        """Options that were added to the old name, as they are added to the new one; None: not known."""
        if given is None or self.before == self.after:
            return given
        return None if self.after else merged(self.before, given)


class Unknown(NamedTuple):
    """A model of which it should be known what it is made of: there is another one of about its size."""

    digest: str
    name: str
    replicas: tuple[str, ...]
    """Ids of those that have it."""


class _Model:
    """One name, as all replicas list it."""

    __slots__ = ("digest", "holders", "is_apart", "size_bytes")

    def __init__(self, model: InstalledModel, is_apart: bool) -> None:
        self.digest = model.digest
        self.size_bytes = model.size_bytes
        self.holders: tuple[str, ...] = ()
        self.is_apart = is_apart or not model.digest

    def add(self, holder: str, model: InstalledModel) -> None:
        self.holders += (holder,)
        self.is_apart |= model.remote or model.digest != self.digest


class Aliases:
    """What is known of the names. :meth:`group` makes of it who is whose alias."""

    def __init__(self) -> None:
        self.by_name: dict[str, Alias] = {}
        """Only names that are asked for as another."""
        self.unknown: tuple[Unknown, ...] = ()
        self._groups: dict[str, tuple[str, ...]] = {}
        """By runner's name, all that it is called, itself among them; only where that is more than one."""
        self._weights: dict[str, Weights] = {}
        """By digest of a manifest that somebody lists."""
        self._models: dict[str, _Model] = {}
        self._since: dict[str, int] = {}
        """By name: in which grouping it came."""
        self._count = 0

    def know(self, digest: str, weights: Weights) -> None:
        """Counts from the next grouping on."""
        self._weights[digest] = weights

    def runner(self, name: str) -> str:
        alias = self.by_name.get(name)
        return name if alias is None else alias.runner

    def names(self, name: str) -> tuple[str, ...]:
        """All that its runner is called."""
        return self._groups.get(self.runner(name)) or (name,)

    def of(self, request: RouteRequest) -> RouteRequest:
        """The request as it is asked of the runner."""
        alias = self.by_name.get(request.model or "")
        if alias is None:
            return request
        signature = merged(alias.options, request.signature) if alias.options else request.signature
        return replace(request, model=alias.runner, signature=signature, alias=request.model)

    # ---- who is whose

    def group(
        self, lists: Mapping[str, Mapping[str, InstalledModel]], apart: Collection[str]
    ) -> dict[str, Move] | None:
        """Take over what replicas list, by id; names that are to stand ``apart`` are nobody's aliases.

        None: nobody is called otherwise than before. Else, by runner's name, what became of those that changed it.
        """
        models = _models(lists, apart)
        self._note(models)
        groups: dict[str, tuple[str, ...]] = {}
        by_name: dict[str, Alias] = {}
        for names in self._alike(models):
            for runner, called in self._runners(names, models):
                groups[runner] = called
                base = self._options(models[runner])
                for name in called:
                    options = self._options(models[name])
                    by_name[name] = Alias(runner, "" if options == base else options)
                del by_name[runner]
        before = (self._groups, self.by_name, self._models)
        self._groups, self.by_name, self._models = groups, by_name, models
        moves = None if before[:2] == (groups, by_name) else self._moves(*before)
        listed = {model.digest for model in models.values()}
        self._weights = {digest: weights for digest, weights in self._weights.items() if digest in listed}
        self.unknown = tuple(self._find_unknown(models))
        return moves

    def _note(self, models: Mapping[str, _Model]) -> None:
        """When each came; a name that comes back comes anew."""
        self._count += 1
        self._since = {name: self._since.get(name, self._count) for name in models}

    def _alike(self, models: Mapping[str, _Model]) -> Iterable[list[str]]:
        """Names of the same weights at the same replicas, where there are several."""
        found: dict[tuple[object, ...], list[str]] = {}
        for name, model in models.items():
            if not model.is_apart:
                weights = self._weights.get(model.digest)
                made_of = weights.blobs if weights is not None and weights.blobs else model.digest
                found.setdefault((made_of, model.holders), []).append(name)
        return [names for names in found.values() if len(names) > 1]

    def _runners(self, names: Collection[str], models: Mapping[str, _Model]) -> Iterable[tuple[str, tuple[str, ...]]]:
        """Whoever of them stands for others, and for whom, itself among them."""
        by_options: dict[str, list[str]] = {}
        for name in names:
            by_options.setdefault(self._options(models[name]), []).append(name)
        if "" in by_options:
            yield self._first(by_options[""]), tuple(sorted(names))
            return
        for alike in by_options.values():
            if len(alike) > 1:
                yield self._first(alike), tuple(sorted(alike))

    def _first(self, names: Collection[str]) -> str:
        return min(names, key=lambda name: (self._since[name], name))

    def _options(self, model: _Model) -> str:
        weights = self._weights.get(model.digest)
        return "" if weights is None else weights.options

    # ---- what that changes

    def _moves(
        self, groups: Mapping[str, tuple[str, ...]], by_name: Mapping[str, Alias], models: Mapping[str, _Model]
    ) -> dict[str, Move]:
        """What is in memory under a runner's old name is there under its new one, or that of those who are left."""
        names = {name for called in (*groups.values(), *self._groups.values()) for name in called}
        moves: dict[str, Move] = {}
        for runner in sorted({by_name[name].runner if name in by_name else name for name in names}):
            left = [name for name in groups.get(runner, (runner,)) if self._is_left(name, models)]
            found = {self.runner(name) for name in left}
            to = self.runner(runner) if runner in left or len(found) != 1 else found.pop()
            if to != runner and runner in models:
                moves[runner] = Move(to, self._options(models[runner]), self._options(self._models[to]))
        return moves

    def _is_left(self, name: str, before: Mapping[str, _Model]) -> bool:
        """Whether the name means what it meant, and is nobody's business now."""
        now = self._models.get(name)
        return now is not None and not now.is_apart and name in before and now.digest == before[name].digest

    def _find_unknown(self, models: Mapping[str, _Model]) -> Iterable[Unknown]:
        """To know of all models costs every one a look: those that nobody resembles are like nobody."""
        by_holders: dict[tuple[str, ...], dict[str, tuple[int, str]]] = {}
        for name, model in models.items():
            if not model.is_apart:
                by_holders.setdefault(model.holders, {})[model.digest] = (model.size_bytes or 0, name)
        for holders, found in by_holders.items():
            ordered = sorted((size, name, digest) for digest, (size, name) in found.items())
            near: dict[str, str] = {}
            for (less, name, digest), (more, other, next_digest) in pairwise(ordered):
                if more - less <= _NEAR_BYTES or not less:
                    near |= {digest: name, next_digest: other}
            yield from (Unknown(digest, name, holders) for digest, name in near.items() if digest not in self._weights)


def _models(lists: Mapping[str, Mapping[str, InstalledModel]], apart: Collection[str]) -> dict[str, _Model]:
    models: dict[str, _Model] = {}
    for holder, listed in lists.items():
        for name, model in listed.items():
            known = models.get(name)
            if known is None:
                known = models[name] = _Model(model, name in apart or is_cloud_model(name))
            known.add(holder, model)
    return models


@lru_cache(maxsize=1024)
def merged(options: str, more: str) -> str:
    """Two signatures as one; where both name an option the second has its way.

    >>> merged("num_ctx=8192,num_gpu=1", "num_ctx=4096,shift=0")
    'num_ctx=4096,num_gpu=1,shift=0'
    """
    values = dict(each.split("=", 1) for each in (*options.split(","), *more.split(",")) if each)
    return ",".join(f"{name}={values[name]}" for name in _ORDER if name in values)
