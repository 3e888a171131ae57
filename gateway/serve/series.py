"""What is counted of one kind of thing: plain integers in small objects."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from corral.gateway.ended import Ended
from corral.model import Figures

QUEUE_BOUNDS_S: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
FIRST_TOKEN_BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKEN_BOUNDS_S: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
TOTAL_BOUNDS_S: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
LOAD_BOUNDS_S: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0)
RATIO_BOUNDS: Final = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
LAG_BOUNDS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)

OK: Final = "ok"
FAILED: Final = "failed"
CLASSES: Final = ("interactive", "normal", "batch")
"""By rank."""
GENERATING: Final = frozenset(
    {"chat", "generate", "openai_chat", "openai_completions", "openai_responses", "anthropic_messages"}
)
"""Kinds of requests whose answer is a text of tokens."""
PARTS: Final = ("first_byte", "end")
"""What is predicted of a request: the seconds from its sending until either."""


class Histogram:
    """Counts per bucket; ``bounds`` are inclusive upper edges, one more bucket holds the rest."""

    __slots__ = ("bounds", "count", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.count = 0
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.count += 1
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Series:
    """What became of the requests of one kind and one model."""

    __slots__ = ("lines", "outcomes")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.lines = 0

    def take(self, ended: Ended) -> None:
        self.outcomes[ended.outcome] = self.outcomes.get(ended.outcome, 0) + 1
        self.lines += ended.lines


class Timings:
    """Times and tokens of the requests of one model and one class. What never happened is None."""

    __slots__ = ("first_token", "outcomes", "output_tokens", "prompt_tokens", "queue", "token", "total")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.queue: dict[str, Histogram] = {}
        """By result, as :attr:`total`: who was refused or left says nothing of how quick answers are."""
        self.total: dict[str, Histogram] = {}
        self.first_token: Histogram | None = None
        self.token: Histogram | None = None
        self.prompt_tokens = 0
        self.output_tokens = 0

    def take(self, ended: Ended) -> None:
        outcome = ended.outcome
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        result = OK if outcome == OK else FAILED
        queue = self.queue.get(result)
        if queue is None:
            queue = self.queue[result] = Histogram(QUEUE_BOUNDS_S)
            self.total[result] = Histogram(TOTAL_BOUNDS_S)
        queue.observe(ended.queue_s)
        self.total[result].observe(ended.total_s)
        if ended.lines > 1 and ended.first_byte_s is not None and ended.kind in GENERATING:
            if self.first_token is None:
                self.first_token = Histogram(FIRST_TOKEN_BOUNDS_S)
            self.first_token.observe(ended.first_byte_s)
        if ended.figures is not None:
            self._take_tokens(ended, ended.figures)

    def _take_tokens(self, ended: Ended, figures: Figures) -> None:
        self.prompt_tokens += figures.prompt_tokens or 0
        self.output_tokens += figures.output_tokens or 0
        token_s = token_seconds(ended, figures)
        if token_s is not None:
            if self.token is None:
                self.token = Histogram(TOKEN_BOUNDS_S)
            self.token.observe(token_s)


def token_seconds(ended: Ended, figures: Figures) -> float | None:
    """Seconds between two tokens of one answer, on average; None: that cannot be known.

    The replica's own figure, where its dialect has one. Else from the first byte to the last, of a streamed answer:
    what its client saw. An answer in one piece says nothing of it.
    """
    tokens = figures.output_tokens
    if tokens is None or tokens < 2:
        return None
    if figures.decode_s is not None:
        return figures.decode_s / (tokens - 1)
    if ended.lines > 1 and ended.first_byte_s is not None:
        return max(0.0, ended.total_s - ended.first_byte_s) / (tokens - 1)
    return None


class Foresight:
    """How well one part of the predictions for one replica came true."""

    __slots__ = ("actual_s", "error_s", "predicted_s", "ratio")

    def __init__(self) -> None:
        self.predicted_s = 0.0
        self.actual_s = 0.0
        self.error_s = 0.0
        """Differences, all taken as positive."""
        self.ratio = Histogram(RATIO_BOUNDS)
        """Actual to predicted."""

    def take(self, predicted_s: float, actual_s: float) -> None:
        self.predicted_s += predicted_s
        self.actual_s += actual_s
        self.error_s += abs(actual_s - predicted_s)
        self.ratio.observe(actual_s / predicted_s)


class ReplicaSeries:
    """What one replica answered."""

    __slots__ = ("foresight", "outcomes", "output_tokens", "prompt_tokens")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.foresight = (Foresight(), Foresight())
        """In the order of PARTS."""

    def take(self, ended: Ended) -> None:
        self.outcomes[ended.outcome] = self.outcomes.get(ended.outcome, 0) + 1
        figures = ended.figures
        if figures is not None:
            self.prompt_tokens += figures.prompt_tokens or 0
            self.output_tokens += figures.output_tokens or 0
        if ended.predicted is not None and ended.outcome == "ok":
            self._compare(ended)

    def _compare(self, ended: Ended) -> None:
        """Predictions are from the sending on. A part of which nothing was known yet is predicted as zero."""
        predicted = ended.predicted
        assert predicted is not None
        first_s = (predicted.wait_s + predicted.prefill_s) * predicted.slowdown
        if predicted.prefill_s > 0.0 and ended.first_byte_s is not None and ended.lines > 1:
            self.foresight[0].take(first_s, ended.first_byte_s - ended.queue_s)
        if predicted.decode_s > 0.0:
            self.foresight[1].take(first_s + predicted.decode_s * predicted.slowdown, ended.total_s - ended.queue_s)


class ProbeSeries:
    """Everything counted for one part of one replica's probe."""

    __slots__ = ("failures", "last_ok", "last_s", "probes", "seconds")

    def __init__(self) -> None:
        self.probes = 0
        self.failures = 0
        self.seconds = 0.0
        self.last_s = 0.0
        self.last_ok = True

    def take(self, seconds: float, ok: bool) -> None:
        self.probes += 1
        self.failures += not ok
        self.seconds += seconds
        self.last_s, self.last_ok = seconds, ok
