"""Whose turn it is to change a store, as tables."""

from __future__ import annotations

from random import Random

import pytest

from corral.gateway.store.turns import Claim, Sort, Turns, conflict


def claim(words: str) -> Claim:
    """``removes a,b in s,t``."""
    words, _, stores = words.partition(" in ")
    sort, _, models = words.partition(" ")
    return Claim(
        Sort(sort.replace("-", " ")),
        frozenset(stores.split(",") if stores else ["s"]),
        frozenset(filter(None, models.split(","))),
    )


@pytest.mark.parametrize(
    ("one", "other", "conflicts"),
    [
        ("downloads a", "downloads a", True),
        ("downloads a", "downloads b", False),
        ("downloads a", "removes a", True),
        ("downloads a", "removes b", False),
        ("downloads a", "names-layers b", False),
        ("downloads a", "names-layers b,a", True),
        ("downloads a", "reads a", True),
        ("removes a", "removes b", False),
        ("removes a", "names-layers b", True),
        ("removes a", "reads b", False),
        ("names-layers a", "names-layers b", False),
        ("names-layers a,x", "names-layers b,x", True),
        ("reads", "reads", False),
        ("reads", "removes a", False),
        ("whole-store", "reads", True),
        ("whole-store", "downloads a", True),
        ("whole-store in t", "downloads a in s", False),
        ("removes a in s", "removes a in t", False),
        ("removes a in s,t", "removes a in t,u", True),
    ],
)
def test_what_gets_in_whose_way(one: str, other: str, conflicts: bool) -> None:
    assert conflict(claim(one), claim(other)) is conflicts
    assert conflict(claim(other), claim(one)) is conflicts


class Play:
    """Turns and what has begun, in order."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.begun: list[Claim] = []

    def enter(self, words: str) -> Claim:
        new = claim(words)
        if self.turns.enter(new):
            self.begun.append(new)
        return new

    def leave(self, over: Claim) -> None:
        self.begun += self.turns.leave(over)

    def begins(self, *claims: Claim) -> bool:
        begun, self.begun = self.begun, []
        return begun == list(claims)


def test_what_conflicts_waits_and_then_begins() -> None:
    play = Play()
    first, second = play.enter("downloads a"), play.enter("removes a")
    assert play.begins(first)
    play.leave(first)
    assert play.begins(second)


def test_nothing_overtakes_what_it_conflicts_with_even_while_that_waits() -> None:
    play = Play()
    create, delete, other = play.enter("names-layers a"), play.enter("removes b"), play.enter("names-layers c")
    assert play.begins(create)
    play.leave(create)
    assert play.begins(delete)
    play.leave(delete)
    assert play.begins(other)


def test_what_conflicts_with_nothing_does_not_wait_behind_those_that_do() -> None:
    play = Play()
    first, waiting, free = play.enter("downloads a"), play.enter("removes a"), play.enter("downloads b")
    assert play.begins(first, free)
    play.leave(waiting)
    assert play.begins()


def test_who_gives_up_waiting_lets_those_behind_it_go() -> None:
    play = Play()
    first, waiting, behind = play.enter("downloads a"), play.enter("whole-store"), play.enter("downloads b")
    assert play.begins(first)
    play.leave(waiting)
    assert play.begins(behind)


def test_several_begin_at_once_where_they_do_not_conflict() -> None:
    play = Play()
    whole, one, same, other = (
        play.enter("whole-store"),
        play.enter("downloads a"),
        play.enter("downloads a"),
        play.enter("removes b"),
    )
    assert play.begins(whole)
    assert play.turns.waiting == 3
    play.leave(whole)
    assert play.begins(one, other)
    play.leave(one)
    assert play.begins(same)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_no_two_that_conflict_run_and_all_run_at_last(seed: int) -> None:
    rng, turns = Random(seed), Turns()
    running: list[Claim] = []
    entered: list[Claim] = []
    sorts = [sort.value.replace(" ", "-") for sort in Sort]
    for _ in range(200):
        if rng.random() < 0.5 or not running:
            stores = rng.choice(["s", "t", "s,t"])
            new = claim(f"{rng.choice(sorts)} {rng.choice('abc')} in {stores}")
            entered.append(new)
            running += [new] if turns.enter(new) else []
        else:
            running += turns.leave(running.pop(rng.randrange(len(running))))
        assert not any(conflict(a, b) for n, a in enumerate(running) for b in running[:n])
    while running:
        running += turns.leave(running.pop(0))
    assert turns.waiting == 0
