"""What a runner remembers of earlier prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.emulator.prefix import PrefixCache, common_prefix, tokens_in


def run(cache: PrefixCache[bytes], prompt: bytes, answer: bytes = b"") -> int:
    """One request; the tokens that needed no prefill."""
    slot, cached = cache.begin(prompt)
    cache.end(slot, prompt + answer)
    return cached


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_the_common_prefix_is_exact(start: bytes, left: bytes, right: bytes) -> None:
    found = common_prefix(start + left, start + right)
    expected = next(
        (place for place, (one, two) in enumerate(zip(start + left, start + right, strict=False)) if one != two),
        len(start) + min(len(left), len(right)),
    )
    assert found == expected


def test_a_conversation_that_goes_on_prefills_only_what_is_new() -> None:
    cache = PrefixCache(1, common_prefix)
    first = b"system and question " * 50
    assert run(cache, first, b" answer " * 10) == 0
    longer = first + b" answer " * 10 + b"next question"
    assert tokens_in(longer) - run(cache, longer) <= 5


def test_the_same_prompt_again_still_evaluates_its_last_token() -> None:
    cache = PrefixCache(1, common_prefix)
    run(cache, b"x" * 400)
    assert run(cache, b"x" * 400) == 99


def test_two_slots_keep_two_conversations() -> None:
    cache = PrefixCache(2, common_prefix)
    run(cache, b"a" * 400)
    run(cache, b"b" * 400)
    assert (run(cache, b"a" * 800), run(cache, b"b" * 800)) == (100, 100)


@pytest.mark.parametrize(("host_bytes", "kept"), [(0, 0), (10_000, 99)])
def test_only_the_host_cache_keeps_more_conversations_than_slots(host_bytes: int, kept: int) -> None:
    cache = PrefixCache(1, common_prefix, host_bytes)
    run(cache, b"a" * 400)
    run(cache, b"b" * 400)
    assert run(cache, b"a" * 400) == kept


def test_the_host_cache_forgets_the_least_recently_used() -> None:
    cache = PrefixCache(1, common_prefix, host_bytes=1300)
    for letter in (b"a", b"b", b"c", b"d", b"e"):
        run(cache, letter * 400)
    assert run(cache, b"a" * 400) == 0
    assert run(cache, b"d" * 400) == 99


def test_a_busy_slot_is_not_given_twice() -> None:
    cache = PrefixCache(2, common_prefix)
    assert {cache.begin(b"same prompt")[0], cache.begin(b"same prompt")[0]} == {0, 1}
    with pytest.raises(LookupError):
        cache.begin(b"same prompt")


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=30), st.integers(1, 4), st.integers(0, 200))
def test_never_more_is_cached_than_the_prompt_has(prompts: list[bytes], slots: int, host_bytes: int) -> None:
    cache = PrefixCache(slots, common_prefix, host_bytes)
    for prompt in prompts:
        assert 0 <= run(cache, prompt, b"answer") < tokens_in(prompt)
