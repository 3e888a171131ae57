"""What changed, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from corral.laboratory.contender import Contender
from corral.laboratory.sim.effect import Effect

ALIKE_RATIO = 0.05
"""Less than that is chance."""
_LEAST_S = 0.005
_LEAST_SHARE = 0.05
POLICY_FAILED = "policy failed"
"""The reason of a decision that Corral had to make itself."""


def changes(whos: Sequence[Contender], effects: Sequence[Effect]) -> list[str]:
    """The first one beside each other, a sentence each."""
    first, mine = whos[0], effects[0]
    if len(whos) == 1:
        return [f"{first.name} is compared with nothing: --against NAME"]
    return [_beside(first.name, mine, who.name, its) for who, its in zip(whos[1:], effects[1:], strict=True)]


def _beside(name: str, mine: Effect, other: str, its: Effect) -> str:
    told = list(_told(mine, its))
    return f"{name} beside {other}: {'; '.join(told) or 'nothing changes'}."


def _told(mine: Effect, its: Effect) -> Iterator[str]:
    a, b = mine.figures, its.figures
    yield _times("the first token comes", a["ttft_mean"], b["ttft_mean"], "on average")
    yield _times("the slowest 1 % get it", a["ttft_p99"], b["ttft_p99"], "")
    yield _times("answers end", a["e2e_mean"], b["e2e_mean"], "on average")
    for key, what in (("refused", "refused"), ("failed", "failed")):
        if a[key] != b[key]:
            yield f"{a[key]:.0f} {'request is' if a[key] == 1 else 'requests are'} {what} instead of {b[key]:.0f}"
    points = (a["good_slowest_ratio"] - b["good_slowest_ratio"]) * 100
    if abs(points) >= 1:
        yield f"{abs(points):.0f} of 100 requests {'more' if points > 0 else 'fewer'} are within the SLO"
    if abs(a["loads"] - b["loads"]) > ALIKE_RATIO * max(a["loads"], b["loads"]):
        yield f"models are loaded {_count(a['loads'])} instead of {_count(b['loads'])}"
    yield from _moved(mine.shares, its.shares)


def _times(what: str, mine_s: float, its_s: float, when: str) -> str:
    words = f"{what} {{}}{' ' if when else ''}{when}"
    most_s = max(mine_s, its_s)
    if most_s - min(mine_s, its_s) <= max(_LEAST_S, ALIKE_RATIO * most_s):
        return f"{words.format('about as soon')} ({seconds(mine_s)})"
    return f"{words.format(_much(mine_s, its_s))} ({seconds(mine_s)} instead of {seconds(its_s)})"


def _much(mine_s: float, its_s: float) -> str:
    if mine_s < its_s:
        return f"{min(99.0, (1 - mine_s / its_s) * 100):.0f} % sooner"
    if mine_s < 2 * its_s:
        return f"{(mine_s / its_s - 1) * 100:.0f} % later"
    return f"{mine_s / its_s:.1f} times as late" if its_s else "later"


def _moved(mine: dict[str, float], its: dict[str, float]) -> Iterator[str]:
    """The replica whose share changes most, where that is much."""
    moved = max(mine, key=lambda replica: abs(mine[replica] - its.get(replica, 0.0)), default=None)
    if moved is not None and abs(mine[moved] - its.get(moved, 0.0)) >= _LEAST_SHARE:
        share, before = mine[moved] * 100, its.get(moved, 0.0) * 100
        yield f"{moved} answers {share:.0f} % of the requests instead of {before:.0f} %"


def _count(count: float) -> str:
    return "once" if count == 1 else f"{count:.0f} times"


def seconds(value_s: float) -> str:
    """``0.283 s``, ``4.21 s``, ``83 s``."""
    if value_s < 0.0005:
        return "0 s"
    if value_s < 1:
        return f"{value_s:.3f} s"
    return f"{value_s:.2f} s" if value_s < 10 else f"{value_s:.0f} s"
