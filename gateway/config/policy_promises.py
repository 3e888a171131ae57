"""What every policy promises, tried on made-up requests: for whoever writes one outside this repository."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

from corral.model import Decision, GpuLoad, Policy, ReplicaView, RequestKind, RouteRequest

ROUNDS: Final = 1000
_REASON_CHARS: Final = 30
_REASONS: Final = 8
_MODEL: Final = "llama3.1:8b"


def broken_promises(policy: Policy, rng: Random, rounds: int = ROUNDS) -> list[str]:
    """A sentence for each that is broken, with the first question that showed it; none: it keeps them all."""
    broken: dict[str, str] = {}
    reasons: set[str] = set()
    for number in range(rounds):
        request, candidates, seed = _request(rng), _candidates(rng), rng.getrandbits(32)
        try:
            decision = policy.choose(request, candidates, Random(seed))
            for promise in _broken(policy, request, candidates, seed, decision):
                broken.setdefault(promise, _shown(number, candidates))
            reasons.add(getattr(decision, "reason", ""))
        except Exception as error:  # it is foreign code
            broken.setdefault(f"it raises {type(error).__name__}: {error}", _shown(number, candidates))
    if len(reasons) > _REASONS:
        broken[f"its reasons become labels of a metric, so there must be few; there are {len(reasons)}"] = ""
    return [f"{promise}{where}" for promise, where in broken.items()]


def _broken(
    policy: Policy, request: RouteRequest, candidates: Sequence[ReplicaView], seed: int, decision: object
) -> Iterator[str]:
    if not isinstance(decision, Decision):
        yield f"choose() returns a Decision, not {type(decision).__name__}"
        return
    if decision.replica_id not in {view.id for view in candidates}:
        yield f"it chooses one of the candidates; {decision.replica_id!r} is none"
    if not 0 < len(decision.reason) <= _REASON_CHARS:
        yield f"its reason is a few words, {_REASON_CHARS} characters at most"
    if policy.choose(request, candidates, Random(seed)) != decision:
        yield "the same question gets the same answer: chance comes only from rng, and nothing is kept in between"


def _shown(number: int, candidates: Sequence[ReplicaView]) -> str:
    views = ", ".join(f"{view.id}: {view.inflight} in flight" for view in candidates)
    return f" (question {number + 1}: {views})"


def _request(rng: Random) -> RouteRequest:
    model = None if rng.random() < 0.1 else _MODEL
    size = rng.choice((0, 200, 3_000, 40_000))
    known = rng.random() < 0.8
    return RouteRequest(
        RequestKind.INFERENCE,
        model,
        body_bytes=size,
        text_bytes=size if known else None,
        output_limit=rng.choice((None, 16, 512)),
        rank=rng.randrange(3),
    )


def _candidates(rng: Random) -> list[ReplicaView]:
    return [_view(f"gpu{number}", rng) for number in rng.sample(range(8), rng.randint(1, 5))]


def _view(name: str, rng: Random) -> ReplicaView:
    inflight = rng.randint(0, 6)
    loaded = rng.choice((None, frozenset(), frozenset({_MODEL}), frozenset({"other:latest"})))
    gpu = None if rng.random() < 0.3 else GpuLoad(utilisation_ratio=rng.random(), memory_ratio=rng.choice((None, 0.5)))
    return ReplicaView(
        id=name,
        weight=rng.choice((0.5, 1.0, 2.8)),
        slots=rng.choice((1, 4)),
        inflight=inflight,
        inflight_model=rng.randint(0, inflight),
        loaded=loaded,
        turn=rng.random(),
        gpu=gpu,
    )
