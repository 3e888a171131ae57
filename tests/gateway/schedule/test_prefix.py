"""What replicas have in their caches: against a model that keeps whole prompts, what fits, and what is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from corral.gateway.schedule import prefix as module
from corral.gateway.schedule.prefix import Prefixes


def chain(text: str) -> tuple[int, ...]:
    """Chained hashes of a prompt whose blocks are letters."""
    return tuple(hash(text[: at + 1]) for at in range(len(text)))


def common(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


words = st.text("ab", min_size=1, max_size=8)
places = st.tuples(st.sampled_from("rs"), st.sampled_from("mn"))


@given(st.lists(st.tuples(places, words)), places, words)
def test_the_longest_beginning_that_was_sent_is_found(
    sent: list[tuple[tuple[str, str], str]], place: tuple[str, str], asked: str
) -> None:
    prefixes = Prefixes()
    for (replica, key), word in sent:
        prefixes.sent(replica, key, chain(word))
    expected = max((common(word, asked) for there, word in sent if there == place), default=0)
    assert prefixes.hit_blocks(*place, chain(asked)) == expected


def test_a_prompt_without_blocks_hits_nothing() -> None:
    prefixes = Prefixes()
    prefixes.sent("r", "m", ())
    assert prefixes.hit_blocks("r", "m", ()) == 0
    assert prefixes.keys_of("r") == []


def missed(prefixes: Prefixes, times: int) -> None:
    """What was thought to be cached was not, so often."""
    for _ in range(times):
        prefixes.measured("r", "m", 100.0, 0.0)


def test_what_is_longest_unused_goes_first_and_from_its_end() -> None:
    prefixes = Prefixes()
    prefixes.sent("r", "m", chain("x"))
    missed(prefixes, 200)
    room = module._LEAST_BLOCKS
    old, new = "o" * room, "n" * (room // 2)
    prefixes.sent("r", "m", chain(old))
    prefixes.sent("r", "m", chain(new))
    assert prefixes.hit_blocks("r", "m", chain(new)) == len(new)
    assert prefixes.hit_blocks("r", "m", chain(old)) == room - len(new), "a beginning of it is left"
    prefixes.sent("r", "m", chain("l" * 2 * room))
    assert prefixes.hit_blocks("r", "m", chain("l" * 2 * room)) == room, "of one that is too long, too"
    assert prefixes.hit_blocks("r", "m", chain(old)) == 0


def test_how_much_fits_is_learned_from_hits_and_misses() -> None:
    prefixes, long = Prefixes(), "y" * 3 * module._FIRST_BLOCKS
    prefixes.sent("r", "m", chain(long))
    assert prefixes.hit_blocks("r", "m", chain(long)) == module._FIRST_BLOCKS
    for _ in range(200):
        prefixes.measured("r", "m", 100.0, 90.0)
    prefixes.sent("r", "m", chain(long))
    assert prefixes.hit_blocks("r", "m", chain(long)) == len(long)
    missed(prefixes, 1000)
    prefixes.sent("r", "m", chain(long))
    assert prefixes.hit_blocks("r", "m", chain(long)) == module._LEAST_BLOCKS
    prefixes.measured("r", "m", 0.0, 0.0)
    prefixes.measured("nowhere", "m", 1.0, 1.0)


def test_a_model_that_left_and_a_replica_that_is_gone_have_no_caches() -> None:
    prefixes = Prefixes()
    for key in "mn":
        prefixes.sent("r", key, chain("abc"))
    prefixes.left("r", "m")
    prefixes.left("nowhere", "m")
    assert [prefixes.hit_blocks("r", key, chain("abc")) for key in "mn"] == [0, 3]
    prefixes.forget("r")
    assert prefixes.hit_blocks("r", "n", chain("abc")) == 0


def test_keys_are_forgotten_before_they_are_too_many() -> None:
    prefixes = Prefixes()
    prefixes.sent("r", "m", chain("abc"))
    for number in range(1000):
        prefixes.sent("r", f"m num_ctx={number}", chain("abc"))
        prefixes.sent("r", "m", chain("abc"))
    assert len(prefixes.keys_of("r")) <= module._MOST_KEYS
    assert prefixes.hit_blocks("r", "m", chain("abc")) == 3, "the one in use stays"
