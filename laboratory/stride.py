"""Steps a batch in virtual time, and takes all steps at once between two that matter: first tokens and last ones.

What a step is and how long it takes is the emulator's :class:`~corral.emulator.batch.Batch`. That many steps at once
come to the same as one after the other is tested.
"""

from __future__ import annotations

from collections.abc import Callable

from corral.emulator.batch import Batch, Sequence


class Stride:
    """One batch. ``event_s`` is when the next step ends that matters; until then any time may be caught up with."""

    def __init__(self, batch: Batch, last_context: Callable[[Sequence], int], stretch: float) -> None:
        """``last_context``: a sequence's context when it has made its last token."""
        self.batch = batch
        self.event_s: float | None = None
        self._last_context = last_context
        self._stretch = stretch
        self._due_s = 0.0
        """When the step under way ends."""
        self._ahead = 0
        """Steps until the one that matters, the one under way not counted."""

    def join(self, sequence: Sequence, now_s: float) -> None:
        """It takes part from the next step on; where nothing was under way that begins now."""
        if self.event_s is None:
            self.batch.add(sequence)
            self.begin(now_s)
        else:
            self.catch_up(now_s)
            self.batch.add(sequence)
            self._predict()

    def leave(self, sequence: Sequence, now_s: float) -> None:
        """Aborted."""
        self.catch_up(now_s)
        self.batch.remove(sequence)
        self._predict()

    def stretch(self, factor: float, now_s: float) -> None:
        """Steps that begin from now on take so many times as long."""
        if factor != self._stretch:
            self.catch_up(now_s)
            self._stretch = factor
            self._predict()

    def fire(self) -> list[Sequence]:
        """The step that matters ends: those that made a token in it. :meth:`begin` has to follow."""
        assert self.event_s is not None
        if self._ahead:
            self.batch.skip(self._ahead)
        self._due_s, self.event_s, self._ahead = self.event_s, None, 0
        return self.batch.finish_step()

    def begin(self, now_s: float) -> None:
        """The next step begins, if there is anything to do."""
        if len(self.batch):
            self._due_s = now_s + self.batch.begin_step() * self._stretch
            self._predict()

    def catch_up(self, now_s: float) -> None:
        """Let the steps be over that ended by now, none of which matters."""
        if not self._ahead or now_s < self._due_s:
            return
        over = 1 + self.batch.steps_after_in((now_s - self._due_s) / self._stretch)
        over = min(over, self._ahead)
        self._due_s += self.batch.steps_after_s(over) * self._stretch
        self.batch.skip(over)
        self._ahead -= over

    def _predict(self) -> None:
        if not len(self.batch):
            self.event_s = None
            return
        self._ahead = 0 if self.batch.is_prefilling else self._least_left() - 1
        self.event_s = self._due_s
        if self._ahead:
            self.event_s += self.batch.steps_after_s(self._ahead) * self._stretch

    def _least_left(self) -> int:
        last = self._last_context
        return min([last(sequence) - sequence.context_tokens for sequence in self.batch.decoding])
