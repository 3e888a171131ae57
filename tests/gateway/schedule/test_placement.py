"""Which model lives where: histories of replicas that load, drain and let go, and what must never happen in them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest

from corral.gateway.schedule.forecast import Forecast
from corral.gateway.schedule.standing import Standing
from corral.model import GpuLoad, InstalledModel, OllamaSample
from tests.gateway.schedule.pool import GIB, Pool, replicas


def models(*names: str) -> frozenset[str]:
    return frozenset(f"{name}:latest" for name in names)


# ---- a model that is nowhere


def test_a_model_that_is_nowhere_is_loaded_by_the_gateway_and_then_sent_to() -> None:
    pool = Pool(replicas("ab"))
    pool.ask("m")
    pool.run(10.0)
    assert [(entry[0], entry[1]) for entry in pool.log] == [(0.0, "load"), (4.0, "send")]


def test_it_is_loaded_where_nothing_has_to_leave() -> None:
    pool = Pool(replicas("abc", max_loaded=1), loaded={"a": "n", "b": "o"})
    pool.ask("m")
    pool.run(10.0)
    assert pool.loads() == ["c m"]
    assert pool.count("unload") == 0


def test_it_is_loaded_where_what_leaves_is_idle() -> None:
    pool = Pool(replicas("ab", max_loaded=1), loaded={"a": "n", "b": "o"}, service_s=20.0)
    pool.ask("n")
    pool.run(1.0)
    pool.ask("m")
    pool.run(10.0)
    assert pool.loads() == ["b m"]


def test_what_leaves_is_missed_least() -> None:
    pool = Pool(replicas("a", max_loaded=2), loaded={"a": "no"})
    pool.keep_asking("n", 3.0, 100.0)
    pool.at(50.0, lambda: pool.ask("m"))
    pool.run(100.0)
    assert pool.loads() == ["a m"]
    assert set(pool.memory["a"]) == models("n", "m")


def test_different_models_are_loaded_side_by_side() -> None:
    pool = Pool(replicas("abc", max_loaded=1))
    for model in "mno":
        pool.ask(model)
    pool.run(4.5)
    assert sorted(Counter(load.split()[0] for load in pool.loads()).items()) == [("a", 1), ("b", 1), ("c", 1)]
    assert pool.count("send") == 3


def test_a_name_that_nobody_has_moves_nothing() -> None:
    """A client made it up: Ollama says so at once, and no model leaves for it."""
    pool = Pool(replicas("ab", max_loaded=1), loaded={"a": "m", "b": "n"})
    pool.ask("invented")
    pool.run(10.0)
    assert (pool.loads(), pool.count("unload"), pool.count("cold")) == ([], 0, 1)
    assert all(set(state.loaded or ()) <= models("m", "n") for state in pool.scheduler.snapshot(pool.now_s).replicas)


def test_a_stub_of_a_cloud_model_is_never_loaded() -> None:
    pool = Pool(replicas("a", max_loaded=1), loaded={"a": "m"})
    stub = InstalledModel("far:latest", "digest", remote=True)
    pool.do(pool.scheduler.sampled(OllamaSample("a", 0.0, None, (stub,), None), 0.0))
    pool.ask("far", 3)
    assert (pool.loads(), pool.count("cold")) == ([], 3)


# ---- further copies


def test_a_hot_model_is_copied_to_free_replicas_in_parallel() -> None:
    pool = Pool(replicas("abcd"), loaded={"a": "m"})
    pool.keep_asking("m", 0.3, 120.0)
    pool.run(120.0)
    assert sorted(set(pool.loads())) == ["b m", "c m", "d m"], "each of them once"
    assert len(pool.loads()) == 3
    late = [entry for entry in pool.log if entry[1] == "load" and entry[0] > 30.0]
    assert not late
    assert max(pool.waits_s["m:latest"][-50:]) < 1.0


def test_a_model_that_one_replica_serves_easily_is_not_copied_at_the_cost_of_another() -> None:
    pool = Pool(replicas("ab", max_loaded=1), loaded={"a": "m", "b": "n"})
    pool.keep_asking("m", 2.5, 120.0)
    pool.keep_asking("n", 10.0, 120.0)
    pool.run(120.0)
    assert pool.loads() == []


@pytest.mark.parametrize("every_s", [0.3, 0.6])
def test_the_only_copy_of_a_model_in_use_never_leaves_for_a_further_copy(every_s: float) -> None:
    pool = Pool(replicas("ab", max_loaded=1), loaded={"a": "m", "b": "n"})
    pool.keep_asking("m", every_s, 120.0)
    pool.keep_asking("n", 5.0, 120.0)
    pool.run(120.0)
    assert pool.loads() == []
    assert max(pool.waits_s["n:latest"]) == 0.0


def test_the_only_copy_of_a_model_that_nobody_uses_leaves_for_a_hot_one() -> None:
    pool = Pool(replicas("ab", max_loaded=1), loaded={"a": "m", "b": "n"})
    pool.at(40.0, lambda: pool.keep_asking("m", 0.6, 160.0))
    pool.run(160.0)
    assert pool.loads() == ["b m"]


def test_a_copy_that_is_coming_does_not_yet_replace_the_one_there_is() -> None:
    """Otherwise nobody would have it if that load fails."""
    homes, speeds = {"m": ["a", "b"]}, {"a": 1.0, "b": 1.0}
    coming = Standing(homes, speeds, {}, {}, {("a", "m"): "m"})
    assert not coming.is_elsewhere("m", "m", "a")
    there = Standing(homes, speeds, {}, {}, {("a", "m"): "m", ("b", "m"): "m"})
    assert there.is_elsewhere("m", "m", "a")


# ---- draining, and no thrash


def test_what_leaves_drains_first() -> None:
    pool = Pool(replicas("a", slots=4, max_loaded=1), loaded={"a": "n"}, service_s=30.0)
    pool.ask("n", 3)
    pool.ask("m")
    pool.at(5.0, lambda: pool.ask("n"))
    pool.run(200.0)
    steps = [(what, model) for _, what, _, model in pool.log]
    assert steps.index(("unload", "n")) < steps.index(("load", "m")) < steps.index(("send", "m"))
    unloaded_s = next(when_s for when_s, what, _, _ in pool.log if what == "unload")
    assert unloaded_s >= 30.0
    assert pool.count("cold") == 0
    assert pool.count("send") == 5, "those who came for the one that left have been served later"


@pytest.mark.parametrize("every_s", [0.2, 0.8, 1.0])
def test_two_models_on_a_replica_that_holds_one_are_each_served_for_a_while(every_s: float) -> None:
    """Also where more comes than can be served, so that everybody has waited for long."""
    pool = Pool(replicas("a", slots=2, max_loaded=1), service_s=0.6)
    pool.keep_asking("m", every_s, 300.0)
    pool.keep_asking("n", every_s, 300.0)
    pool.run(300.0)
    sends = pool.sends()
    assert len(pool.loads()) <= 0.4 * 300.0 / (pool.load_s + pool.unload_s), "most of the time goes to requests"
    assert min(sends["a m"], sends["a n"]) > 0.4 * max(sends["a m"], sends["a n"])
    assert pool.count("cold") == 0


def test_where_there_is_time_for_loads_nobody_waits_for_long() -> None:
    pool = Pool(replicas("a", slots=2, max_loaded=1), service_s=0.6)
    for model in "mn":
        pool.keep_asking(model, 3.0, 300.0)
    pool.run(300.0)
    assert max(max(waits_s) for waits_s in pool.waits_s.values()) < 15.0


@pytest.mark.parametrize("gap_s", [0.01, 0.2])
def test_two_clients_in_closed_loops_do_not_make_it_load_for_each_request(gap_s: float) -> None:
    """Each asks again a moment after its answer: in that moment nothing of it is in flight."""
    pool = Pool(replicas("a", max_loaded=1), service_s=1.0)

    def client(model: str) -> None:
        (ticket,) = pool.ask(model)

        def look() -> None:
            is_done = not ticket.queued and ticket.lease is None
            pool.at(pool.now_s + gap_s, (lambda: client(model)) if is_done else look)

        pool.at(pool.now_s + gap_s, look)

    client("m")
    client("n")
    pool.run(300.0)
    assert len(pool.loads()) <= 20
    assert pool.count("send") > 100


def test_a_change_that_nobody_waits_for_any_more_is_given_up() -> None:
    pool = Pool(replicas("a", max_loaded=1), loaded={"a": "n"}, service_s=20.0)
    pool.run(70.0)
    pool.ask("n")
    (impatient,) = pool.ask("m")
    pool.run(71.0)
    pool.scheduler.cancel(impatient)
    pool.run(100.0)
    pool.ask("n")
    assert (pool.loads(), pool.count("unload"), pool.sends()) == ([], 0, Counter({"a n": 2}))


def test_one_that_has_begun_is_finished() -> None:
    pool = Pool(replicas("a"))
    (impatient,) = pool.ask("m")
    pool.run(1.0)
    pool.scheduler.cancel(impatient)
    pool.run(10.0)
    assert set(pool.memory["a"]) == models("m"), "a client that hangs up does not abort what others may wait for"


# ---- what the operator wants


def test_pinned_models_come_by_themselves_and_never_leave() -> None:
    one, other = replicas("ab", max_loaded=1)
    pool = Pool([replace(one, pinned=models("p")), other], loaded={"b": "n"})
    pool.run(10.0)
    assert pool.loads() == ["a p"]
    for model in "mno":
        pool.ask(model)
    pool.run(200.0)
    assert set(pool.memory["a"]) == models("p")
    assert all(load == "a p" or load.startswith("b ") for load in pool.loads())
    assert pool.count("send") == 3
    pool.memory["a"].clear()
    pool.run(210.0)
    assert pool.loads()[-1] == "a p", "it comes back"


def test_a_pinned_stub_of_a_cloud_model_is_not_loaded() -> None:
    """It would never be listed as in memory, and be loaded again and again."""
    (one,) = replicas("a")
    pool = Pool([replace(one, pinned=models("far"))])
    stub = InstalledModel("far:latest", "digest", remote=True)
    pool.do(pool.scheduler.sampled(OllamaSample("a", 0.0, None, (stub,), None), 0.0))
    pool.run(20.0)
    assert pool.loads() == []


def test_a_replica_that_is_kept_off_a_model_never_loads_it() -> None:
    one, other = replicas("ab", max_loaded=1)
    pool = Pool([replace(one, kept_off=models("m")), other], loaded={"b": "n"})
    pool.keep_asking("m", 0.4, 60.0)
    pool.run(120.0)
    assert pool.loads() == ["b m"]


def test_without_placement_ollama_decides() -> None:
    pool = Pool(replicas("a"))
    pool.do(pool.scheduler.set_placement(False, 0.0))
    pool.ask("m")
    assert (pool.loads(), pool.count("cold")) == ([], 1)


def test_those_who_wait_for_a_load_are_sent_when_placement_ends() -> None:
    pool = Pool(replicas("ab", max_loaded=1), service_s=50.0, loaded={"a": "m", "b": "n"})
    pool.ask("m")
    pool.ask("n")
    pool.ask("o")
    pool.run(0.5)
    assert pool.count("cold") == 0
    pool.do(pool.scheduler.set_placement(False, pool.now_s))
    assert pool.count("cold") == 1


# ---- what goes wrong


def test_a_load_that_fails_is_tried_elsewhere_and_then_ollama_says_why() -> None:
    pool = Pool(replicas("ab"))
    pool.broken = {("a", "m"), ("b", "m")}
    pool.ask("m")
    pool.run(9.0)
    assert sorted(pool.loads()) == ["a m", "b m"], "once on each"
    assert pool.count("cold") == 1
    pool.ask("m", 3)
    pool.run(20.0)
    assert len(pool.loads()) == 2
    assert pool.count("cold") == 4, "so are those who come meanwhile"


def test_failed_loads_are_tried_again_after_ever_longer_pauses() -> None:
    pool = Pool(replicas("a"))
    pool.broken = {("a", "m")}
    pool.keep_asking("m", 5.0, 1_000.0)
    pool.run(1_000.0)
    at_s = [when_s for when_s, what, _, _ in pool.log if what == "load"]
    pauses_s = [later_s - sooner_s for sooner_s, later_s in pairwise(at_s)]
    assert 3 <= len(at_s) <= 8
    assert pauses_s == sorted(pauses_s)
    pool.broken = set()
    pool.keep_asking("m", 5.0, 2_000.0)
    pool.run(2_000.0)
    assert set(pool.memory["a"]) == models("m")


def test_another_client_that_loads_a_model_is_noticed() -> None:
    pool = Pool(replicas("ab"))
    pool.memory["b"]["m:latest"] = ""
    pool.run(1.5)
    pool.ask("m")
    assert (pool.loads(), pool.sends()) == ([], Counter({"b m": 1}))


def test_a_model_that_vanished_is_loaded_again() -> None:
    pool = Pool(replicas("a"), loaded={"a": "m"})
    pool.run(5.0)
    pool.memory["a"].clear()
    pool.run(6.5)
    pool.ask("m")
    pool.run(20.0)
    assert (pool.loads(), pool.count("cold"), pool.count("send")) == (["a m"], 0, 1)


def test_a_replica_that_is_removed_during_a_load_and_comes_back_is_not_stuck() -> None:
    pool = Pool(replicas("ab"), loaded={"a": "n"}, service_s=30.0)
    pool.ask("n")
    pool.do(pool.scheduler.set_enabled("b", False, 0.0))
    pool.ask("m")
    pool.run(1.0)
    assert pool.loads() == ["a m"]
    both = list(pool.replicas.values())
    pool.do(pool.scheduler.set_replicas(both[1:], pool.now_s))
    pool.run(6.0)
    pool.do(pool.scheduler.set_replicas(both, pool.now_s))
    pool.changes.pending.clear()
    pool.run(8.0)
    pool.ask("o")
    pool.run(20.0)
    assert pool.loads()[-1] == "a o"


def test_nothing_is_asked_of_an_address_that_is_no_longer_a_replicas() -> None:
    """What drained there ends later; another replica has its name by then."""
    pool = Pool(replicas("a", max_loaded=1), loaded={"a": "n"}, service_s=100.0)
    pool.ask("n")
    pool.ask("m")
    pool.run(70.0)
    assert pool.scheduler.snapshot(pool.now_s).replicas[0].changing is not None
    moved = replace(pool.replicas["a"], port=99)
    pool.do(pool.scheduler.set_replicas([moved], pool.now_s))
    pool.run(110.0)
    assert (pool.loads(), pool.count("unload")) == ([], 0)


# ---- the same model with other options


def test_two_clients_with_different_options_get_a_replica_each() -> None:
    pool = Pool(replicas("ab", slots=2), service_s=0.5)
    for second in range(120):
        pool.at(float(second), partial(pool.ask, "m", 1, "num_ctx=4096" if second % 2 else ""))
    pool.run(130.0)
    assert sorted(pool.loads()) in (["a m", "b m num_ctx=4096"], ["a m num_ctx=4096", "b m"])
    assert pool.count("cold") == 0
    assert pool.count("send") == 120


@pytest.mark.parametrize("every_s", [0.5, 0.8])
def test_two_clients_with_different_options_do_not_make_one_replica_thrash(every_s: float) -> None:
    pool = Pool(replicas("a", slots=2), service_s=0.6)
    pool.keep_asking("m", every_s, 300.0)
    pool.keep_asking("m", every_s, 300.0, "num_ctx=4096")
    pool.run(300.0)
    assert len(pool.loads()) <= 0.4 * 300.0 / (pool.load_s + pool.unload_s)


def test_lanes_of_one_model_take_turns_where_placement_is_off() -> None:
    """They share its slots: whoever's request ends must not keep them for its own lane."""
    pool = Pool(replicas("a"), service_s=1.0)
    pool.do(pool.scheduler.set_placement(False, 0.0))
    pool.ask("m", 2)
    pool.ask("m", 2, "num_ctx=4096")
    pool.ask("m", 2)
    pool.run(20.0)
    assert pool.waits_s == {"m:latest": [0.0, 1.0, 4.0, 5.0], "m:latest num_ctx=4096": [2.0, 3.0]}


# ---- how much fits


def test_memory_that_others_fill_is_no_room() -> None:
    pool = Pool(replicas("ab"), loaded={"a": "n", "b": "o"})
    pool.do(pool.scheduler.gpu_loaded("a", GpuLoad(memory_bytes=24 * GIB, foreign_bytes=10 * GIB), 0.0))
    pool.do(pool.scheduler.gpu_loaded("b", GpuLoad(memory_bytes=24 * GIB, foreign_bytes=0), 0.0))
    size = InstalledModel("m:latest", "m", size_bytes=6 * GIB)
    for id in "ab":
        rest = tuple(InstalledModel(f"{model}:latest", model) for model in "no")
        pool.do(pool.scheduler.sampled(OllamaSample(id, 0.0, None, (size, *rest), None), 0.0))
    pool.ask("m")
    pool.run(10.0)
    assert (pool.loads(), pool.count("unload")) == (["b m"], 0)


# ---- what clients make up


def test_a_client_that_asks_with_ever_other_options_costs_the_placer_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is weighed are the models that somebody holds, however many keys were asked for."""
    looks = Counter[str]()
    request_s = Forecast.request_s

    def counted(self: Forecast, key: str, slots: int) -> float:
        looks[key] += 1
        return request_s(self, key, slots)

    monkeypatch.setattr(Forecast, "request_s", counted)
    pool = Pool(replicas("a", max_loaded=1), service_s=0.1)
    for number in range(100):
        pool.ask("m", 1, f"num_ctx={number + 1}")
    pool.run(1.0)
    assert looks.total() < 1_000


def test_who_waits_for_a_load_that_is_under_way_is_not_refused_for_waiting_too_long() -> None:
    pool = Pool(replicas("a"), load_s=700.0)
    pool.ask("m")
    pool.run(720.0)
    assert [(entry[0], entry[1]) for entry in pool.log] == [(0.0, "load"), (700.0, "send")]


def test_whoever_asks_for_a_model_whose_loads_failed_is_not_sent_where_it_is_just_let_go_of() -> None:
    pool = Pool(replicas("a", max_loaded=1), unload_s=2.0)
    pool.broken.add(("a", "m"))
    pool.ask("m")
    pool.run(4.5)
    pool.memory["a"]["m:latest"] = ""  # Ollama itself could load it
    pool.run(6.0)
    pool.ask("n")
    pool.run(7.0)
    assert pool.log[-1][1:] == ("unload", "a", "m")
    pool.ask("m")  # the pool itself asserts that it is not sent before that is over
    pool.run(60.0)
    assert pool.count("cold") == 2
    assert pool.count("refuse") == 0


def test_a_load_that_waits_for_the_place_of_a_model_always_in_use_gets_it() -> None:
    """Ollama makes room only when a model rests; requests that keep coming would have the load wait for ever."""
    pool = Pool(replicas("a", slots=4), loaded={"a": "n"}, load_s=120.0)
    pool.keep_asking("n", 0.5, 200.0)
    pool.run(5.0)
    pool.ask("m")
    pool.run(60.0)
    asked_s = next(when for when, what, _, model in pool.log if (what, model) == ("load", "m"))
    sent_s = [when for when, what, _, model in pool.log if (what, model) == ("send", "n")]
    assert asked_s + 5.0 < max(sent_s) < 50.0, "for a while they go on, then they wait"
    pool.run(200.0)
    assert pool.sends()["a m"] == 1
    later_s = [when for when, what, _, model in pool.log if (what, model) == ("send", "n") and when > 60.0]
    assert min(later_s) == pytest.approx(asked_s + 120.0, abs=0.5), "there was room for both: they go on"


def test_what_a_load_took_that_had_to_wait_for_its_place_is_not_how_long_loads_take() -> None:
    pool = Pool(replicas("a", slots=4), loaded={"a": "n"}, load_s=120.0)
    pool.keep_asking("n", 0.5, 200.0)
    pool.ask("m")
    before_s = pool.scheduler._forecast.costs.load_s("m:latest", "m:latest")
    pool.run(200.0)
    assert pool.sends()["a m"] == 1
    assert pool.scheduler._forecast.costs.load_s("m:latest", "m:latest") == before_s
