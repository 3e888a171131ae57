"""Every rival follows its own rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from corral.laboratory.boxes import BoxSpec, make_box
from corral.laboratory.rivals import RIVALS
from corral.laboratory.types import Arrival, Router, Sight

BOX = make_box(BoxSpec("unequal-4"))
MODEL = BOX.models[0].name
ASK = Arrival(0, 0.0, MODEL, 1000, 100)


def sights(*inflight: int, loaded: Sequence[int] = (0, 1, 2, 3), slots: int = 4) -> list[Sight]:
    """Of the four replicas; ``loaded``: those that hold the model."""
    return [
        Sight(r.id, r.weight, slots, busy, busy, frozenset({MODEL} if n in loaded else ()))
        for n, (r, busy) in enumerate(zip(BOX.replicas, inflight, strict=False))
    ]


def rival(name: str, seed: int = 0) -> Router:
    return RIVALS[name](BOX, seed)


def choices(name: str, seen: Sequence[Sight], times: int = 200) -> Counter[str | None]:
    router = rival(name)
    return Counter(router.choose(replace(ASK, number=n), seen, 0.0) for n in range(times))


@pytest.mark.parametrize("name", list(RIVALS))
def test_a_rival_names_itself_says_its_rule_and_is_the_same_for_a_seed(name: str) -> None:
    assert rival(name).name == name
    assert RIVALS[name].__doc__
    seen = sights(1, 1, 1, 1)
    first, again = rival(name, 5), rival(name, 5)
    asks = [replace(ASK, number=n) for n in range(50)]
    assert [first.choose(a, seen, 0.0) for a in asks] == [again.choose(a, seen, 0.0) for a in asks]


@pytest.mark.parametrize("name", list(RIVALS))
def test_a_rival_takes_the_only_replica_that_is_up(name: str) -> None:
    assert rival(name).choose(ASK, sights(0, 3, 0, 0)[1:2], 0.0) == "gpu1"


@pytest.mark.parametrize("name", sorted(set(RIVALS) - {"bounded-hash", "shortest-delay", "round-robin"}))
def test_a_tie_favours_no_place_in_the_list(name: str) -> None:
    seen = [replace(sight, weight=1.0) for sight in sights(0, 0, 0, 0)]
    chosen = Counter(rival(name, seed).choose(ASK, seen, 0.0) for seed in range(200))
    assert set(chosen) == {"gpu0", "gpu1", "gpu2", "gpu3"}
    assert min(chosen.values()) > 20


def test_round_robin_goes_round_whatever_the_load() -> None:
    router, seen = rival("round-robin"), sights(9, 0, 0, 0)
    assert [router.choose(ASK, seen, 0.0) for _ in range(5)] == ["gpu0", "gpu1", "gpu2", "gpu3", "gpu0"]


def test_random_draws_all_alike_whatever_the_load() -> None:
    assert min(choices("random", sights(9, 0, 0, 0), 400).values()) > 60


def test_least_connections_knows_no_weights() -> None:
    assert choices("least-conn", sights(2, 2, 1, 2)) == {"gpu2": 200}


def test_weighted_least_connections_divides_by_the_weight_and_draws_ties_by_it() -> None:
    assert choices("weighted-least-conn", sights(3, 2, 2, 2)) == {"gpu0": 200}
    idle = choices("weighted-least-conn", sights(0, 0, 0, 0), 1800)
    assert idle["gpu0"] / idle["gpu3"] == pytest.approx(4, rel=0.3)


def test_shortest_delay_counts_the_request_itself() -> None:
    assert choices("shortest-delay", sights(0, 0, 0, 0)) == {"gpu0": 200}
    assert choices("shortest-delay", sights(1, 0, 0, 0)) == {"gpu1": 200}


def test_power_of_two_never_takes_the_busiest_and_not_always_the_least_busy() -> None:
    chosen = choices("power-of-two", sights(0, 1, 2, 3), 600)
    assert "gpu3" not in chosen
    assert chosen["gpu0"] == pytest.approx(300, abs=60)
    assert chosen["gpu1"] == pytest.approx(200, abs=60)


def test_peak_ewma_jumps_to_a_slow_answer_at_once_and_forgets_it_slowly() -> None:
    router, two = rival("peak-ewma"), sights(1, 1)

    def answered(replica_id: str, at_s: float, took_s: float) -> None:
        seen = [sight for sight in two if sight.id == replica_id]
        router.choose(ASK, seen, at_s - took_s)
        router.began(ASK, replica_id, at_s)

    answered("gpu0", 1.0, 0.5)
    answered("gpu1", 1.0, 1.0)
    assert router.choose(ASK, two, 1.0) == "gpu0"
    answered("gpu0", 2.0, 5.0)
    assert router.choose(ASK, two, 2.0) == "gpu1"
    assert router.choose(ASK, [two[0], replace(two[1], inflight=60)], 2.0) == "gpu0"
    answered("gpu1", 60.0, 0.9)
    assert router.choose(ASK, two, 60.0) == "gpu0"


def test_peak_ewma_avoids_a_busy_replica_that_never_answered() -> None:
    router = rival("peak-ewma")
    router.choose(ASK, sights(0, 0)[:1], 0.0)
    router.began(ASK, "gpu0", 9.0)
    assert router.choose(ASK, sights(3, 1), 9.0) == "gpu0"
    assert router.choose(ASK, sights(3, 0), 9.0) == "gpu1"


def test_least_connections_with_residency_takes_the_loaded_then_the_free_then_the_least_used() -> None:
    assert choices("least-conn-loaded", sights(3, 2, 0, 0, loaded=(0, 1))) == {"gpu1": 200}
    assert set(choices("least-conn-loaded", sights(4, 4, 3, 0, loaded=(0, 1)))) == {"gpu2", "gpu3"}
    assert choices("least-conn-loaded", sights(6, 5, 4, 7, loaded=(0, 1))) == {"gpu2": 200}


def test_bounded_hash_keeps_a_prefix_in_its_place_until_that_is_too_busy() -> None:
    router = rival("bounded-hash")
    asks = [replace(ASK, number=n, blocks=(0, n % 40, n)) for n in range(400)]
    homes = {a.blocks[1]: router.choose(a, sights(2, 2, 2, 2), 0.0) for a in asks}
    assert all(router.choose(a, sights(2, 2, 2, 2), 0.0) == homes[a.blocks[1]] for a in asks)
    assert len(set(homes.values())) == 4
    home = homes[7]
    busy = [replace(s, inflight=8 if s.id == home else 2) for s in sights(2, 2, 2, 2)]
    assert router.choose(asks[7], busy, 0.0) not in (None, home)


def test_bounded_hash_moves_only_the_prefixes_of_a_replica_that_went_away() -> None:
    router, asks = rival("bounded-hash"), [replace(ASK, number=n) for n in range(200)]
    before = [router.choose(a, sights(0, 0, 0, 0), 0.0) for a in asks]
    after = [router.choose(a, sights(0, 0, 0), 0.0) for a in asks]
    assert all(b == a for b, a in zip(before, after, strict=True) if b != "gpu3")


def test_lmetric_weighs_fresh_prompt_against_the_batch() -> None:
    router = rival("lmetric")
    turn = replace(ASK, prompt_tokens=2048, blocks=(0, 1, 2, 3))
    home = router.choose(turn, sights(0, 0, 0, 0), 0.0)
    assert home is not None
    router.began(turn, home, 1.0)
    router.ended(turn, home, 2.0, ok=True)
    again = replace(turn, number=1, prompt_tokens=2560, blocks=(0, 1, 2, 3, 9))
    busy = [replace(s, inflight=3 if s.id == home else 0) for s in sights(0, 0, 0, 0)]
    assert router.choose(again, busy, 3.0) == home
    router.began(again, home, 4.0)
    another = replace(turn, number=2, prompt_tokens=2560, blocks=(0, 1, 2, 3, 10))
    busier = [replace(s, inflight=6 if s.id == home else 0) for s in busy]
    assert router.choose(another, busier, 5.0) != home


def test_lmetric_counts_prompts_that_wait_and_stays_where_the_model_is_or_has_room() -> None:
    router, others = rival("lmetric"), frozenset({"other", "another"})
    full = [replace(s, loaded=s.loaded or others) for s in sights(0, 0, 0, 0, loaded=(2,))]
    assert router.choose(ASK, full, 0.0) == "gpu2"
    roomy = [replace(full[0], loaded=frozenset()), *full[1:]]
    assert router.choose(replace(ASK, number=1), roomy, 0.0) == "gpu0"
    assert router.choose(ASK, [replace(sight, loaded=others) for sight in full], 0.0) is not None


def test_cache_aware_follows_more_than_half_of_a_prompt_whatever_the_load_until_that_differs_by_32() -> None:
    router = rival("sglang-cache-aware")
    turn = replace(ASK, prompt_tokens=2048, blocks=(0, 1, 2, 3))
    home = router.choose(turn, sights(0, 0, 0, 0), 0.0)
    busy = [replace(s, inflight=32 if s.id == home else 0) for s in sights(0, 0, 0, 0)]
    assert router.choose(replace(turn, number=1, prompt_tokens=2560, blocks=(0, 1, 2, 3, 9)), busy, 1.0) == home
    half = replace(turn, number=2, prompt_tokens=4096, blocks=(0, 1, 2, 3, 10, 11, 12, 13))
    assert router.choose(half, busy, 2.0) != home
    uneven = [replace(s, inflight=33 if s.id == home else 0) for s in busy]
    assert router.choose(replace(turn, number=3), uneven, 3.0) != home
    crowd = [replace(s, inflight=400 if s.id == home else 366) for s in busy]
    assert router.choose(replace(turn, number=4), crowd, 4.0) is not None


def test_cache_aware_gives_what_it_does_not_know_to_the_least_used_then_to_the_smallest_tree() -> None:
    assert choices("sglang-cache-aware", sights(2, 1, 3, 2)) == {"gpu1": 200}
    router = rival("sglang-cache-aware")
    first = [
        router.choose(replace(ASK, number=n, blocks=(10 * n, 10 * n + 1)), sights(0, 0, 0, 0), 0.0) for n in range(4)
    ]
    assert sorted(map(str, first)) == ["gpu0", "gpu1", "gpu2", "gpu3"]


def test_haproxy_holds_what_no_replica_has_a_connection_for() -> None:
    router = rival("haproxy-maxconn")
    assert router.choose(ASK, sights(4, 4, 4, 4), 0.0) is None
    assert router.choose(ASK, sights(4, 4, 4, 3, loaded=(0,)), 0.0) == "gpu3"
    assert router.choose(ASK, sights(1, 0, 0, 0), 0.0) != "gpu0"
    assert router.choose(ASK, sights(2, 2, 1, 1), 0.0) == "gpu0"
