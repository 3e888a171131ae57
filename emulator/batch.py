"""The sequences one runner works on together: one step gives each decoding sequence a token."""

from __future__ import annotations

from collections.abc import Iterable
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
    """All sequences of one runner. A step takes those along that were there when it began; others wait for the next."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self._prefilling: list[Sequence] = []
        self._decoding: dict[Sequence, None] = {}
        self._context = 0
        """Tokens of context of all that decode."""
        self._budget = 0
        """Prompt tokens that the step under way works off."""

    def __len__(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def is_prefilling(self) -> bool:
        """A prompt is worked off, or will be from the next step on."""
        return bool(self._prefilling)

    @property
    def decoding(self) -> Iterable[Sequence]:
        return self._decoding

    def add(self, sequence: Sequence) -> None:
        self._prefilling.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Ended or aborted; unknown ones are ignored."""
        if sequence in self._decoding:
            del self._decoding[sequence]
            self._context -= sequence.context_tokens
        elif sequence in self._prefilling:
            self._prefilling.remove(sequence)

    def begin_step(self) -> float:
        """The next step begins with all that are here: how long it takes."""
        prompt = sum([sequence.prefill_left for sequence in self._prefilling]) if self._prefilling else 0
        self._budget = min(prompt, MICRO_BATCH_TOKENS)
        return self.speed.step_with_prefill_s(self._budget, len(self._decoding), self._context)

    def finish_step(self) -> list[Sequence]:
        """The step is over: the sequences that made a token in it."""
        made = [sequence for sequence in self._decoding if not sequence.paused]
        for sequence in made:
            sequence.context_tokens += 1
        self._context += len(made)
        if self._prefilling:
            made += self._prefill()
        return made

    # -- many steps at once, while all decode and none is paused --------------------------------------------------

    def steps_after_s(self, steps: int) -> float:
        """How long ``steps`` plain steps take that follow the one under way."""
        count = len(self._decoding)
        return self.speed.decode_steps_s(steps, count, self._context + count)

    def steps_after_in(self, seconds: float) -> int:
        """How many of these end within ``seconds``."""
        count = len(self._decoding)
        return self.speed.decode_steps_in(seconds, count, self._context + count)

    def skip(self, steps: int) -> None:
        """So many plain steps are over and as many begun: as ``finish_step`` and ``begin_step`` that often."""
        for sequence in self._decoding:
            sequence.context_tokens += steps
        self._context += steps * len(self._decoding)

    def _prefill(self) -> list[Sequence]:
        budget, self._budget = self._budget, 0
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
            self._context += sequence.context_tokens
        return finished
