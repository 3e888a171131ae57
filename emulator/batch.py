"""The sequences one runner works on together: one step gives each decoding sequence a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from corral.emulator.gpu import Speed

MICRO_BATCH_TOKENS = 512
"""llama-server's n_ubatch: how much of a prompt one step works off."""


class Sink(Protocol):
    """Where a sequence's tokens go."""

    def step(self, stamp: bytes) -> bool:
        """One token was made (the first ends the prefill); True when it was the last."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in a slot."""

    sink: Sink
    prefill_left: int
    """Prompt tokens not in the cache and not yet worked off."""
    context_tokens: int
    paused: bool = False
    """Its client does not read: it makes no tokens, and keeps its slot."""


class Batch:
    """All sequences of one runner."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self._prefilling: list[Sequence] = []
        self._decoding: dict[Sequence, None] = {}

    def __len__(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    def add(self, sequence: Sequence) -> None:
        self._prefilling.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Ended or aborted; unknown ones are ignored."""
        if sequence in self._decoding:
            del self._decoding[sequence]
        elif sequence in self._prefilling:
            self._prefilling.remove(sequence)

    def step_s(self) -> float:
        """How long the step that begins now takes."""
        prompt = min(sum(sequence.prefill_left for sequence in self._prefilling), MICRO_BATCH_TOKENS)
        context = sum([sequence.context_tokens for sequence in self._decoding])
        return self.speed.step_with_prefill_s(prompt, len(self._decoding), context)

    def finish_step(self) -> list[Sequence]:
        """The step is over: the sequences that made a token in it."""
        made = [sequence for sequence in self._decoding if not sequence.paused]
        for sequence in made:
            sequence.context_tokens += 1
        if self._prefilling:
            made += self._prefill()
        return made

    def _prefill(self) -> list[Sequence]:
        budget = MICRO_BATCH_TOKENS
        finished = []
        for sequence in self._prefilling:
            part = min(budget, sequence.prefill_left)
            sequence.prefill_left -= part
            budget -= part
            if sequence.prefill_left:
                break
            finished.append(sequence)
        for sequence in finished:
            self._prefilling.remove(sequence)
            self._decoding[sequence] = None
        return finished
