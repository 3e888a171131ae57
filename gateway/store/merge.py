"""The progress of one operation in several stores as that of one: never further than in the slowest that matters.

With one store every line passes as it came. With several

1. a layer is as far as in that store, of those that still need it, where it is least far: said whenever that changes,
   but not before each store has said something: else the first line of all would not be the first;
2. any other status is passed on, once, when all stores that are still at it have reached it;
3. a store where it failed counts no more: that is told at the end, by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from corral.gateway.store.lines import Line, layer_line


class _Side:
    """One store."""

    def __init__(self) -> None:
        self.layers: dict[str, Line] = {}
        """By digest: the last that was said."""
        self.reached: dict[str | bytes, Line] = {}
        self.is_over = False

    @property
    def is_silent(self) -> bool:
        return not (self.is_over or self.reached or self.layers)

    def lacks(self, digest: str) -> bool:
        layer = self.layers.get(digest)
        return not self.is_over and (layer is None or layer.completed < layer.total)

    def completed(self, digest: str) -> int:
        layer = self.layers.get(digest)
        return 0 if layer is None else layer.completed


class Merge:
    """One operation. Each method returns what is to be told."""

    def __init__(self, stores: Iterable[str]) -> None:
        self._sides = {store: _Side() for store in stores}
        self._told_layers: dict[str, int] = {}
        self._told: set[str | bytes] = set()
        self._any_done = False

    @property
    def is_of_one(self) -> bool:
        return len(self._sides) == 1

    def hear(self, store: str, line: Line) -> list[Line]:
        """What was said in one store."""
        side = self._sides[store]
        if line.digest:
            side.layers[line.digest] = line
        else:
            side.reached.setdefault(line.key, line)
        if self.is_of_one:
            return [line]
        return list(self._layer(line.digest) if line.digest else self._statuses_and_held())

    def ended(self, store: str, *, ok: bool) -> list[Line]:
        """It is over there."""
        self._sides[store].is_over = True
        self._any_done |= ok
        if self.is_of_one:
            return []
        return list(self._statuses_and_held())

    def bytes_of(self, store: str) -> tuple[int, int] | None:
        """How many of how many are there; None: nothing is known of any layer yet."""
        side = self._sides.get(store)
        if side is None or not side.layers:
            return None
        layers = side.layers.values()
        return sum(min(layer.completed, layer.total) for layer in layers), sum(layer.total for layer in layers)

    def _statuses_and_held(self) -> Iterator[Line]:
        yield from self._statuses()
        yield from self._layers()

    def _layers(self) -> Iterator[Line]:
        for digest in dict.fromkeys(digest for side in self._sides.values() for digest in side.layers):
            yield from self._layer(digest)

    def _layer(self, digest: str) -> Iterator[Line]:
        if any(side.is_silent for side in self._sides.values()):
            return
        said = next(side.layers[digest] for side in self._sides.values() if digest in side.layers)
        if not self._any_done and all(side.is_over for side in self._sides.values()):
            return
        lacking = [side.completed(digest) for side in self._sides.values() if side.lacks(digest)]
        completed = min(lacking, default=said.total)
        if self._told_layers.get(digest) != completed:
            self._told_layers[digest] = completed
            yield layer_line(said.status, digest, said.total, completed)

    def _statuses(self) -> Iterator[Line]:
        active = [side for side in self._sides.values() if not side.is_over]
        if not active:
            return
        for key, line in list(active[0].reached.items()):
            if key not in self._told and all(key in side.reached for side in active):
                self._told.add(key)
                yield line
