"""What a runner remembers of earlier prompts: one text per slot and, since llama-server, a host cache beside them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

BYTES_PER_TOKEN = 4
_SIMILAR_RATIO = 0.10
"""llama-server's --slot-prompt-similarity."""
_KEEP_RATIO = 0.5
"""A slot about to lose more than this share of its text is first saved to the host cache."""


def tokens_in(text: bytes) -> int:
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


@dataclass(slots=True)
class _Slot:
    text: bytes = b""
    used_at: int = 0
    busy: bool = False


@dataclass(slots=True)
class PrefixCache:
    """The slots of one runner. ``begin`` picks a slot for a prompt and says how much of it needs no prefill."""

    slots: int
    host_bytes: int = 0
    """Capacity of the host cache in text bytes; 0: none (before llama-server)."""
    _slots: list[_Slot] = field(init=False)
    _host: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    _host_used: int = 0
    _turn: int = 0

    def __post_init__(self) -> None:
        self._slots = [_Slot() for _ in range(self.slots)]

    def begin(self, prompt: bytes) -> tuple[int, int]:
        """Take a free slot: (its index, tokens of the prompt already in its cache)."""
        index, matched = self._choose(prompt)
        slot = self._slots[index]
        if self.host_bytes and matched <= _KEEP_RATIO * len(slot.text):
            self._save(slot.text)
            matched = max(matched, self._best_saved(prompt))
        slot.busy = True
        slot.text = prompt
        # the last token is always evaluated again: something has to produce the first logits
        return index, min(matched // BYTES_PER_TOKEN, tokens_in(prompt) - 1)

    def end(self, index: int, text: bytes) -> None:
        """Give the slot back; it now remembers ``text`` (prompt and what was generated)."""
        slot = self._slots[index]
        self._turn += 1
        slot.text, slot.used_at, slot.busy = text, self._turn, False

    def _choose(self, prompt: bytes) -> tuple[int, int]:
        free = [index for index, slot in enumerate(self._slots) if not slot.busy]
        if not free:
            raise LookupError("no free slot: the caller must wait for one")
        matches = {index: common_prefix(self._slots[index].text, prompt) for index in free}
        best = max(free, key=lambda index: matches[index])
        if matches[best] > _SIMILAR_RATIO * len(prompt):
            return best, matches[best]
        oldest = min(free, key=lambda index: self._slots[index].used_at)
        return oldest, matches[oldest]

    def _save(self, text: bytes) -> None:
        if not text:
            return
        self._host.pop(text, None)
        self._host[text] = None
        self._host_used = sum(map(len, self._host))
        while self._host_used > self.host_bytes:
            dropped, _ = self._host.popitem(last=False)
            self._host_used -= len(dropped)

    def _best_saved(self, prompt: bytes) -> int:
        best, length = None, 0
        for text in self._host:
            matched = common_prefix(text, prompt)
            if matched > length:
                best, length = text, matched
        if best is not None:
            self._host.move_to_end(best)
        return length
