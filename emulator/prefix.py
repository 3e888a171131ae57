"""What a runner remembers of earlier prompts: one text per slot and, since llama-server, a host cache beside them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sized
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

BYTES_PER_TOKEN = 4
_SIMILAR_RATIO = 0.10
"""llama-server's --slot-prompt-similarity."""
_KEEP_RATIO = 0.5
"""A slot about to lose more than this share of its text is first saved to the host cache."""


def tokens_in(text: Sized) -> int:
    """About how many tokens a text has."""
    return max(1, (len(text) + BYTES_PER_TOKEN - 1) // BYTES_PER_TOKEN)


def common_prefix(left: bytes, right: bytes) -> int:
    """Length in bytes of the longest common prefix."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Text(Sized, Hashable, Protocol):
    """What a prompt is to the cache: something with a length in bytes."""


T = TypeVar("T", bound=Text)


@dataclass(slots=True)
class _Slot(Generic[T]):
    text: T | None = None
    used_at: int = 0
    busy: bool = False


class PrefixCache(Generic[T]):
    """The slots of one runner. ``begin`` picks a slot for a prompt and says how much of it needs no prefill."""

    def __init__(self, slots: int, common: Callable[[T, T], int], host_bytes: int = 0) -> None:
        """``common``: bytes that two texts share at their beginning. ``host_bytes``: capacity of the host cache in text
        bytes; 0: none (before llama-server)."""
        self._common = common
        self._host_bytes = host_bytes
        self._slots: list[_Slot[T]] = [_Slot() for _ in range(slots)]
        self._host: OrderedDict[T, None] = OrderedDict()
        self._host_used = 0
        self._turn = 0

    def begin(self, prompt: T) -> tuple[int, int]:
        """Take a free slot: (its index, tokens of the prompt already in its cache)."""
        index, matched = self._choose(prompt)
        slot = self._slots[index]
        if self._host_bytes and slot.text is None:
            matched = self._best_saved(prompt)
        elif self._host_bytes and slot.text is not None and matched <= _KEEP_RATIO * len(slot.text):
            self._save(slot.text)
            matched = max(matched, self._best_saved(prompt))
        slot.busy = True
        slot.text = prompt
        # the last token is always evaluated again: something has to produce the first logits
        return index, min(matched // BYTES_PER_TOKEN, tokens_in(prompt) - 1)

    def end(self, index: int, text: T) -> None:
        """Give the slot back; it now remembers ``text`` (prompt and what was generated)."""
        slot = self._slots[index]
        self._turn += 1
        slot.text, slot.used_at, slot.busy = text, self._turn, False

    def _choose(self, prompt: T) -> tuple[int, int]:
        free = [index for index, slot in enumerate(self._slots) if not slot.busy]
        if not free:
            raise LookupError("no free slot: the caller must wait for one")
        matches = {index: self._matched(self._slots[index].text, prompt) for index in free}
        best = max(free, key=matches.__getitem__)
        if matches[best] > _SIMILAR_RATIO * len(prompt):
            return best, matches[best]
        oldest = min(free, key=lambda index: self._slots[index].used_at)
        return oldest, matches[oldest]

    def _matched(self, text: T | None, prompt: T) -> int:
        return 0 if text is None else self._common(text, prompt)

    def _save(self, text: T) -> None:
        if text in self._host:
            self._host.move_to_end(text)
            return
        self._host[text] = None
        self._host_used += len(text)
        while self._host_used > self._host_bytes:
            dropped, _ = self._host.popitem(last=False)
            self._host_used -= len(dropped)

    def _best_saved(self, prompt: T) -> int:
        best, length = None, 0
        for text in self._host:
            matched = self._common(text, prompt)
            if matched > length:
                best, length = text, matched
        if best is not None:
            self._host.move_to_end(best)
        return length
