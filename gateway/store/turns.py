"""Whose turn it is to change a model store.

Rules of this file:

1. A claim begins once nothing that came before it, and is not over, stands in its way; so nothing overtakes what it
   conflicts with, and what conflicts with nothing never waits.
2. Two claims on one store conflict where they name the same model, or one of them is for the whole store.
3. Removing a model takes the layers that no readable manifest names: not beside what is about to name some. A pull is
   no such obstacle, for it may take an hour; it is repeated instead, see ``removals.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Sort(Enum):
    """What a claim is for, as far as that decides about conflicts."""

    DOWNLOADS = "downloads"
    READS = "reads"
    NAMES_LAYERS = "names layers"
    """Writes a manifest of layers that are there already."""
    REMOVES = "removes"
    WHOLE_STORE = "whole store"


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """On models in some stores. Two claims are never the same one."""

    sort: Sort
    stores: frozenset[str]
    models: frozenset[str] = frozenset()
    """Normalised; each is the claim's alone."""


_APART = (frozenset((Sort.REMOVES, Sort.NAMES_LAYERS)),)


def conflict(one: Claim, other: Claim) -> bool:
    """Whether they must not be under way at once."""
    if not one.stores & other.stores:
        return False
    if Sort.WHOLE_STORE in (one.sort, other.sort):
        return True
    return bool(one.models & other.models) or frozenset((one.sort, other.sort)) in _APART


class Turns:
    """The claims under way and those that wait, in order of arrival."""

    def __init__(self) -> None:
        self._begun: dict[Claim, bool] = {}

    @property
    def waiting(self) -> int:
        return sum(not begun for begun in self._begun.values())

    def enter(self, claim: Claim) -> bool:
        """True: it may begin at once. It must :meth:`leave` in any case."""
        begins = not any(conflict(claim, other) for other in self._begun)
        self._begun[claim] = begins
        return begins

    def leave(self, claim: Claim) -> list[Claim]:
        """It is over, or waits no more; those that begin now."""
        del self._begun[claim]
        before: list[Claim] = []
        begin = []
        for other, begun in self._begun.items():
            if not begun and conflict(claim, other) and not any(conflict(other, each) for each in before):
                self._begun[other] = True
                begin.append(other)
            before.append(other)
        return begin
