"""A policy that learns while it works: a bandit that tries several ways to weigh the predicted seconds.

    policy: {path: ./examples/bandit.py, name: Bandit}

or, in the laboratory, `--policies corral:examples/bandit.py:Bandit`. Where a policy has a method `learn`, the scheduler
calls it with what became of each request that was answered; that is all a policy needs in order to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, sqrt
from random import Random
from typing import ClassVar, NamedTuple

from corral.model import Choice, Decision, Figures, Prediction, ReplicaView, RouteRequest
from corral.policies import lowest

UNKNOWN_SPREAD = 1.0
"""Standard deviation of a score before there are two: a factor of about 3 in seconds."""


class Weights(NamedTuple):
    """What a second is worth, beside one until the request's own first token."""

    end: float
    """Until its own end."""
    others: float
    """Of what the requests that are there already lose by it."""

    def cost_s(self, seen: Prediction) -> float:
        first_s = seen.wait_s + seen.prefill_s
        return (first_s + self.end * (first_s + seen.decode_s) + self.others * seen.others_s) * seen.slowdown


ARMS = (
    Weights(0.1, 0.1),
    Weights(0.1, 0.5),
    Weights(0.1, 1.0),
    Weights(0.5, 0.1),
    Weights(0.5, 0.5),
    Weights(0.0, 0.0),
)
"""The first is how Corral weighs them itself."""
CONTEXTS = ("calm", "busy", "full")


@dataclass(slots=True)
class Record:
    """The scores of one arm in one context; old ones fade."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, score: float, kept: float) -> None:
        self.count = self.count * kept + 1
        before, self.mean = self.mean, self.mean + (score - self.mean) / self.count
        self.squares = self.squares * kept + (score - before) * (score - self.mean)

    @property
    def spread(self) -> float:
        return sqrt(self.squares / (self.count - 1)) if self.count > 2 else UNKNOWN_SPREAD


@dataclass(slots=True)
class Bandit:
    """Thompson sampling: in each context, the arm that a draw from what is known of all arms calls the best, for some
    requests in a row; a request's place is where it costs the least seconds by that arm's weights."""

    predicts: ClassVar[bool] = True
    """Asks the scheduler for predictions, see :attr:`ReplicaView.predicted`."""
    places: ClassVar[bool] = True

    hold: int = 40
    """Requests that an arm is kept for: what it does to the queue shows only after a while."""
    kept: float = 0.998
    """What is left of the weight of a score with each that comes after it."""
    alike: float = 8.0
    """So many requests in a row tell about as much as one alone: they meet the same queue."""
    _records: dict[tuple[str, int], Record] = field(default_factory=dict, init=False)
    _arm: int = field(default=0, init=False)
    _left: int = field(default=0, init=False)
    _most: int = field(default=0, init=False)
    """The most candidates that there ever were."""

    def __post_init__(self) -> None:
        if self.hold < 1 or not 0 < self.kept <= 1 or self.alike < 1:
            raise ValueError("hold and alike must be 1 or more, kept above 0 and at most 1")

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        self._most = max(self._most, len(candidates))
        if self._left <= 0:
            self._arm, self._left = self._draw(self._context(candidates), rng), self.hold
        seen = {view.id: view.predicted for view in candidates if view.predicted is not None}
        if len(seen) < len(candidates):
            return Decision(lowest(candidates, lambda view: (view.inflight + 1) / view.weight, rng).id, "least load")
        self._left -= 1
        weights = ARMS[self._arm]
        return Decision(lowest(candidates, lambda view: weights.cost_s(seen[view.id]), rng).id, f"arm {self._arm}")

    def learn(
        self, request: RouteRequest, choice: Choice, ttft_s: float, e2e_s: float, figures: Figures | None
    ) -> None:
        """A request was answered. ``ttft_s``, ``e2e_s``: from sending; it waited ``choice.waited_s`` before."""
        word, _, arm = choice.decision.reason.partition(" ")
        best_s = min(
            (_alone_s(view.predicted) for view in choice.candidates if view.predicted is not None), default=0.0
        )
        if word != "arm" or best_s <= 0:
            return
        felt_s = choice.waited_s + ttft_s + 0.1 * (choice.waited_s + e2e_s)
        # a logarithm: long requests must not decide alone, and twice as slow is as bad for a short one
        record = self._records.setdefault((self._context(choice.candidates), int(arm)), Record())
        record.add(log(max(felt_s, 1e-3) / best_s), self.kept)

    def _context(self, candidates: Sequence[ReplicaView]) -> str:
        """Only replicas with a free slot are candidates: where some are missing, those are full."""
        if len(candidates) < self._most:
            return "full"
        used = sum(view.inflight_model for view in candidates) / sum(view.slots for view in candidates)
        return "busy" if used >= 0.4 else "calm"

    def _draw(self, context: str, rng: Random) -> int:
        known = [self._records.get((context, arm), Record()) for arm in range(len(ARMS))]
        heard = [record for record in known if record.count]
        middle = sum(record.mean for record in heard) / len(heard) if heard else 0.0
        drawn = [self._sample(record, middle, rng) for record in known]
        return drawn.index(min(drawn))

    def _sample(self, record: Record, middle: float, rng: Random) -> float:
        """What the arm's mean may be: near the others' while little is known of it."""
        heard = record.count / self.alike
        mean = (middle + record.mean * heard) / (1 + heard)
        return rng.gauss(mean, record.spread / sqrt(1 + heard))


def _alone_s(seen: Prediction) -> float:
    """What it would feel like there with nobody else; the least of these is the yardstick."""
    return seen.prefill_s + seen.saved_s + 0.1 * (seen.prefill_s + seen.saved_s + seen.decode_s)
