"""A model that is being changed in a store is loaded nowhere meanwhile."""

from __future__ import annotations

from corral.model import Replica
from tests.gateway.schedule.pool import Pool


def changes(pool: Pool, model: str) -> list[str]:
    return [what for _, what, _, name in pool.log if name == model]


def changing(pool: Pool) -> str | None:
    return pool.scheduler.snapshot(pool.now_s).replicas[0].changing


def freeze(pool: Pool, *models: str) -> None:
    pool.do(pool.scheduler.freeze(frozenset(f"{model}:latest" for model in models), pool.now_s))


def test_a_load_that_waits_for_others_to_leave_is_withdrawn_and_begun_again_after_the_thaw() -> None:
    pool = Pool([Replica("a", "h", 1, slots=1, max_loaded=1)], loaded={"a": "m"}, service_s=5.0)
    pool.keep_asking("m", 4.0, 40.0)
    pool.ask("n")
    while "finishes" not in (changing(pool) or ""):
        assert pool.now_s < 200.0
        pool.run(pool.now_s + 0.25)
    freeze(pool, "n")
    assert changing(pool) is None
    pool.run(pool.now_s + 100.0)
    assert changes(pool, "n") == []
    freeze(pool)
    pool.run(pool.now_s + 100.0)
    assert changes(pool, "n") == ["load", "send"]


def test_what_is_pinned_is_not_loaded_while_it_is_changed() -> None:
    pool = Pool([Replica("a", "h", 1, slots=1, pinned=frozenset({"n:latest"}))])
    freeze(pool, "n")
    pool.run(5.0)
    assert changes(pool, "n") == []
    freeze(pool)
    pool.run(15.0)
    assert changes(pool, "n") == ["load"]


def test_a_load_under_way_is_known() -> None:
    pool = Pool([Replica("a", "h", 1, slots=1)])
    pool.ask("n")
    pool.run(1.0)
    assert pool.scheduler.is_loading("a", "n:latest")
    assert not pool.scheduler.is_loading("a", "m:latest")
    pool.run(30.0)
    assert not pool.scheduler.is_loading("a", "n:latest")
