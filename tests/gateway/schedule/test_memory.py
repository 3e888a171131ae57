"""What is known of one replica's memory: readings beside the gateway's own changes, and how much fits."""

from __future__ import annotations

import pytest

from corral.gateway.schedule.memory import _FORGET_LIMIT_S, DEFAULT_MAX_LOADED, Memory, Swap
from corral.model import LoadedModel, Replica

GB = 10**9


def listed(*names: str, size_bytes: int = GB) -> list[LoadedModel]:
    """``m``, or ``m:20`` for one of 20 GB."""
    pairs = [name.partition(":") for name in names]
    return [
        LoadedModel(name, int(size) * GB if size else size_bytes, int(size) * GB if size else size_bytes, None)
        for name, _, size in pairs
    ]


def read(memory: Memory, at_s: float, *names: str, inflight: str = "") -> list[str]:
    return memory.read(listed(*names), inflight, at_s, at_s)


def load(memory: Memory, model: str, at_s: float, *, ok: bool = True, meanwhile: tuple[str, ...] | None = None) -> None:
    """A load that takes four seconds; ``meanwhile``: what a reading in the middle of it says."""
    memory.begin(Swap(model, "", [], 1, at_s))
    memory.loading(at_s)
    if meanwhile is not None:
        read(memory, at_s + 2.0, *meanwhile)
    memory.ended(at_s + 4.0, ok=ok)


# ---- readings


def test_before_the_first_reading_nothing_is_known() -> None:
    memory = Memory()
    assert not memory.is_known
    assert not memory.holds("m", "")
    read(memory, 1.0)
    assert memory.is_known


def test_what_is_listed_is_there_and_what_is_not_has_left() -> None:
    memory = Memory()
    assert read(memory, 1.0, "m", "n") == []
    assert read(memory, 2.0, "n", "o") == ["m"]
    assert set(memory.models) == {"n", "o"}
    assert memory.holds("n", "")
    assert not memory.holds("m", "")


def test_one_in_use_is_there_whatever_the_list_says() -> None:
    """Ollama lists it only when its load is over."""
    memory = Memory()
    read(memory, 1.0)
    memory.use("m", "", 1.5)
    assert read(memory, 2.0, inflight="m") == []
    assert memory.holds("m", "")
    assert read(memory, 3.0) == ["m"]


def test_somebody_elses_options_are_not_known_until_one_of_ours_was_sent() -> None:
    memory = Memory()
    read(memory, 1.0, "m")
    assert memory.holds("m", "")
    assert memory.holds("m", "num_ctx=1")
    memory.use("m", "num_ctx=1", 2.0)
    assert not memory.holds("m", "")
    assert memory.holds("m", "num_ctx=1")


def test_a_reading_from_before_a_change_says_nothing() -> None:
    memory = Memory()
    read(memory, 1.0, "m")
    load(memory, "n", 2.0)
    memory.unloaded("m", 7.0)
    assert read(memory, 5.0, "m") == []
    assert set(memory.models) == {"n"}
    assert read(memory, 8.0, "n") == []


def test_older_engines_list_what_is_still_being_loaded() -> None:
    memory = Memory()
    read(memory, 1.0)
    memory.begin(Swap("m", "", [], 1, 1.0))
    memory.loading(1.0)
    read(memory, 2.0, "m")
    assert not memory.holds("m", ""), "it is not there before its load has ended"
    memory.ended(5.0, ok=True)
    assert memory.holds("m", "")


def test_a_load_that_failed_leaves_nothing_but_what_is_read_then() -> None:
    memory = Memory()
    read(memory, 1.0)
    load(memory, "m", 2.0, ok=False)
    assert not memory.holds("m", "")
    read(memory, 7.0, "m")
    assert memory.holds("m", ""), "it came after all"


def test_what_comes_or_leaves_is_not_sent_to() -> None:
    memory = Memory()
    read(memory, 1.0, "m", "n")
    memory.begin(Swap("o", "", ["m"], 1, 1.0))
    assert [memory.holds(model, "") for model in "mno"] == [False, True, False]
    memory.begin(Swap("n", "num_ctx=1", ["n"], 2, 1.0))
    assert not memory.holds("n", "")
    assert not memory.holds("n", "num_ctx=1")


def test_old_readings_are_forgotten_but_not_what_is_in_use() -> None:
    memory = Memory()
    read(memory, 1.0, "m", "n")
    memory.forget({"m": 1})
    assert not memory.is_known
    assert set(memory.models) == {"m"}


# ---- loads that fail


def test_after_failures_a_load_is_not_tried_for_ever_longer_times() -> None:
    memory, now_s, pauses_s = Memory(), 0.0, []
    for _ in range(8):
        load(memory, "m", now_s, ok=False)
        now_s += 4.0
        began_s = now_s
        while memory.is_failed("m", now_s):
            now_s += 1.0
        pauses_s.append(now_s - began_s)
    assert pauses_s == sorted(pauses_s)
    assert (pauses_s[0], pauses_s[-1]) == (30.0, 600.0)
    load(memory, "m", now_s)
    read(memory, now_s + 5.0, "m")
    load(memory, "m", now_s + 10.0, ok=False)
    assert memory.is_failed("m", now_s + 43.0)
    assert not memory.is_failed("m", now_s + 45.0), "after one that went well they are short again"
    assert not memory.is_failed("n", now_s)


def test_failures_are_forgotten() -> None:
    memory = Memory()
    for number in range(100):
        load(memory, f"m{number}", 0.0, ok=False)
    memory.forget_limits(10.0)
    assert len(memory.failed) == 100
    memory.forget_limits(2 * _FORGET_LIMIT_S)
    assert not memory.failed


# ---- how much fits


def test_how_many_fit_is_configured_or_as_ollama_does_it() -> None:
    memory = Memory()
    assert memory.most_models(2, 1) == 2
    assert memory.most_models(None, 0) == DEFAULT_MAX_LOADED
    assert memory.most_models(None, 2) == 2 * DEFAULT_MAX_LOADED


@pytest.mark.parametrize("is_seen_during_the_load", [True, False])
def test_a_model_that_ollama_evicted_for_a_load_teaches_how_many_fit(is_seen_during_the_load: bool) -> None:
    memory = Memory()
    read(memory, 1.0, "m", "n")
    load(memory, "o", 2.0, meanwhile=("n",) if is_seen_during_the_load else None)
    read(memory, 7.0, "n", "o")
    assert memory.most_models(None, 1) == 2
    assert memory.most_models(5, 1) == 5, "what is configured stands"
    memory.forget_limits(7.0 + _FORGET_LIMIT_S + 1.0)
    assert memory.most_models(None, 1) == DEFAULT_MAX_LOADED, "it is tried again later"


def test_a_large_model_that_was_evicted_teaches_how_many_bytes_do_not_fit() -> None:
    memory = Memory()
    read(memory, 1.0, "m:20")
    load(memory, "n:2", 2.0)
    read(memory, 7.0, "n:2")
    assert memory.bytes_seen_too_many == 22 * GB, "together; not what is there now"
    assert memory.most_models(None, 1) == DEFAULT_MAX_LOADED
    memory.forget_limits(7.0 + _FORGET_LIMIT_S + 1.0)
    assert memory.bytes_seen_too_many is None


def test_a_model_that_left_without_a_load_teaches_nothing() -> None:
    """Nobody used it, or another client let go of it."""
    memory = Memory()
    read(memory, 1.0, "m", "n", "o")
    load(memory, "p", 2.0)
    read(memory, 7.0, "m", "n", "o", "p")
    assert read(memory, 300.0, "p") == ["m", "n", "o"]
    assert memory.most_models(None, 1) == DEFAULT_MAX_LOADED
    assert memory.bytes_seen_too_many is None


def test_what_the_gateway_let_go_of_teaches_nothing() -> None:
    memory = Memory()
    read(memory, 1.0, "m", "n")
    memory.begin(Swap("o", "", ["m"], 1, 2.0))
    memory.unloaded("m", 3.0)
    load(memory, "o", 3.0)
    read(memory, 8.0, "n", "o")
    assert memory.most_models(None, 1) == DEFAULT_MAX_LOADED


# ---- changes


def test_a_change_must_still_suit_the_operator() -> None:
    swap = Swap("m", "", ["n"], 1, 0.0)
    replica = Replica("a", "h", 1)
    assert swap.suits(replica)
    assert not swap.suits(Replica("a", "h", 1, kept_off=frozenset("m")))
    assert not swap.suits(Replica("a", "h", 1, pinned=frozenset("n")))
    assert Swap("n", "num_ctx=1", ["n"], 1, 0.0).suits(Replica("a", "h", 1, pinned=frozenset("n")))


def test_what_a_model_has_done_since_it_came_is_counted() -> None:
    memory = Memory()
    load(memory, "m", 0.0)
    memory.served("m", 2.5, 8.0)
    memory.served("m", 1.5, 9.0)
    memory.served("nowhere", 1.5, 9.0)
    assert (memory.models["m"].served_s, memory.models["m"].used_s, memory.models["m"].since_s) == (4.0, 9.0, 4.0)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"leaving": ["n"]}, "finishes n to load m, for 3 s"),
        ({"leaving": ["n"], "is_unloading": True}, "lets n go for m, for 3 s"),
        ({"leaving": [], "is_loading": True}, "loads m, for 3 s"),
    ],
)
def test_a_change_says_what_it_is_at(state: dict[str, object], words: str) -> None:
    swap = Swap("m", "", [], 1, 10.0)
    for name, value in state.items():
        setattr(swap, name, value)
    assert swap.words(13.2) == words


def test_a_load_that_goes_well_and_is_never_listed_is_not_tried_again_and_again() -> None:
    memory = Memory()
    read(memory, 0.0, "n")
    load(memory, "m", 1.0)
    read(memory, 6.0, "n")
    assert memory.is_failed("m", 6.0)
    load(memory, "m", 100.0)
    assert memory.holds("m", "")
    read(memory, 105.0, "n", "m")
    assert not memory.is_failed("m", 105.0)


# ---- what Ollama threw out although it is wanted


def overdue(memory: Memory, at_s: float, *names: str, inflight: str, waiting: str) -> list[str]:
    return memory.read(listed(*names), inflight, at_s, at_s, waiting)


def test_one_that_was_there_and_lets_all_its_requests_wait_has_left() -> None:
    memory = Memory()
    read(memory, 1.0, "m")
    assert overdue(memory, 2.0, inflight="m", waiting="") == [], "its requests were just sent"
    assert overdue(memory, 3.0, inflight="m", waiting="m") == ["m"]
    assert not memory.holds("m", "")


def test_one_that_was_never_there_is_still_on_its_way_however_long_its_requests_wait() -> None:
    memory = Memory()
    read(memory, 1.0)
    memory.use("m", "", 1.0)
    assert overdue(memory, 9.0, inflight="m", waiting="m") == []


def test_how_much_fits_is_learned_also_where_what_had_to_leave_is_still_asked_for() -> None:
    memory = Memory()
    read(memory, 1.0, "m:8")
    load(memory, "n", 2.0)
    overdue(memory, 7.0, "n:9", inflight="m", waiting="")
    assert memory.bytes_seen_too_many is None, "a request for it was just sent: it may be there"
    overdue(memory, 8.0, "n:9", inflight="m", waiting="m")
    assert memory.bytes_seen_too_many == 17 * GB
