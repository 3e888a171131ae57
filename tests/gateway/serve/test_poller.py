"""The poller against replicas on real sockets that stall, lie, die and come back."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from random import Random

import pytest

from corral.gateway.serve.part import PAGE_WAIT_S
from corral.gateway.serve.poller import Poller
from corral.gateway.serve.views import ReplicaPages
from corral.gateway.serve.watch import KICK_GAP_S, SETTLES_S
from corral.model import OllamaSample, ProbeResult, Replica
from corral.probes.ollama import OllamaProbe, probe_session
from tests.probes.fake_ollama import LOADED, TAG, FakeOllama, document, fake_ollama, held, page

UP, DEAD, SLOW = ProbeResult.ANSWERED, ProbeResult.REFUSED, ProbeResult.TIMED_OUT
RARELY_S = 600.0
"""An interval so long that a test sees only the first round and what it asks for."""
PATIENCE_S = 15.0


class RecordingFeed:
    """Keeps all it is told and wakes who waits for it."""

    def __init__(self) -> None:
        self.results: dict[str, list[ProbeResult]] = {}
        self.result_times_s: dict[str, list[float]] = {}
        self.samples: list[OllamaSample] = []
        self.seconds: list[tuple[str, str, float, bool]] = []
        self.broken = False
        self._told = asyncio.Event()

    def probed(self, replica_id: str, result: ProbeResult) -> None:
        if self.broken:
            raise RuntimeError("the feed is broken")
        self.results.setdefault(replica_id, []).append(result)
        self.result_times_s.setdefault(replica_id, []).append(time.monotonic())
        self._told.set()

    def sampled(self, sample: OllamaSample) -> None:
        self.samples.append(sample)
        self._told.set()

    def probe_seconds(self, replica_id: str, part: str, seconds: float, ok: bool) -> None:
        self.seconds.append((replica_id, part, seconds, ok))
        self._told.set()

    def count(self, replica_id: str, result: ProbeResult | None = None) -> int:
        return sum(result in (None, seen) for seen in self.results.get(replica_id, []))

    def read(self, replica_id: str, part: str, ok: bool = True) -> int:
        return sum(line[:2] == (replica_id, part) and line[3] is ok for line in self.seconds)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._told.clear()
                await self._told.wait()


@asynccontextmanager
async def polling(feed: RecordingFeed, replicas: Iterable[Replica], interval_s: float) -> AsyncIterator[Poller]:
    async with probe_session() as session:
        poller = Poller(
            lambda replica: OllamaProbe(session, replica), feed, time.monotonic, Random(1), interval_s=interval_s
        )
        poller.set_replicas(replicas)
        try:
            yield poller
        finally:
            await poller.close()


@pytest.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    async with fake_ollama() as fake:
        yield fake


@pytest.fixture
async def other() -> AsyncIterator[FakeOllama]:
    async with fake_ollama() as fake:
        yield fake


@pytest.fixture
def feed() -> RecordingFeed:
    return RecordingFeed()


def all_read(feed: RecordingFeed, replica_id: str = "a") -> Callable[[], bool]:
    return lambda: bool(feed.read(replica_id, "tags") and feed.read(replica_id, "ps"))


async def test_a_new_replica_is_known_in_full_at_once(ollama: FakeOllama, feed: RecordingFeed) -> None:
    began_s = time.monotonic()
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        pages = poller.pages("a")
    assert feed.results == {"a": [UP]}
    assert {sample.version for sample in feed.samples} == {"0.32.15"}
    assert [[model.name for model in sample.installed] for sample in feed.samples if sample.installed] == [
        ["llama3.1:8b"]
    ]
    assert [[model.name for model in sample.loaded] for sample in feed.samples if sample.loaded] == [["llama3.1:8b"]]
    assert all(began_s <= sample.taken_at_s <= time.monotonic() for sample in feed.samples)
    assert (pages.version, len(pages.tags or ()), len(pages.ps or ())) == ("0.32.15", 1, 1)
    assert sorted((part, ok) for _, part, _, ok in feed.seconds) == [("ps", True), ("tags", True), ("version", True)]


async def test_memory_that_changed_is_read_at_once_and_nothing_else(ollama: FakeOllama, feed: RecordingFeed) -> None:
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        poller.read_memory("a")
        poller.read_memory("nobody")
        await feed.until(lambda: feed.read("a", "ps") == 2)
        assert (feed.read("a", "tags"), feed.count("a")) == (1, 1)


async def test_a_model_is_spelled_as_the_replica_spells_it(ollama: FakeOllama, feed: RecordingFeed) -> None:
    ollama.answers["/api/tags"] = document({"models": [TAG | {"name": "hf.co/Some/Model:Q4_K_M"}]})
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        assert poller.spelled("a", "hf.co/some/model:q4_k_m") == "hf.co/Some/Model:Q4_K_M"
        assert poller.spelled("a", "other:latest") == "other:latest"
        assert poller.spelled("nobody", "other:latest") == "other:latest"


async def test_a_stalled_ps_neither_delays_liveness_nor_piles_up(ollama: FakeOllama, feed: RecordingFeed) -> None:
    ollama.answers["/api/ps"] = held(asyncio.Event(), page(b""))
    async with polling(feed, [ollama.replica()], 0.2):
        await feed.until(lambda: feed.count("a") >= 8)
    assert set(feed.results["a"]) == {UP}
    assert ollama.most_at_once["/api/ps"] == 1
    assert all(sample.loaded is None for sample in feed.samples)


async def quick_enough(measured: Callable[[], Awaitable[float]], limit_s: float) -> bool:
    """Whether it took less than the limit; tried again once, because a busy machine is late for everything."""
    return await measured() < limit_s or await measured() < limit_s


async def test_a_replica_that_never_answers_does_not_slow_the_others() -> None:
    async def ten_probes() -> float:
        feed = RecordingFeed()
        async with fake_ollama() as ollama, fake_ollama() as other:
            other.answers["/api/version"] = held(asyncio.Event(), page(b""))
            async with polling(feed, [other.replica("stuck"), ollama.replica("good")], 0.2):
                began_s = time.monotonic()
                await feed.until(lambda: feed.count("good") >= 10)
                took_s = time.monotonic() - began_s
        assert set(feed.results["good"]) == {UP}
        assert set(feed.results["stuck"]) == {SLOW}
        return took_s

    assert await quick_enough(ten_probes, 10 * 0.2 + 1.0)


async def test_a_replica_that_freezes_after_a_good_probe_has_failed_three_within_three_seconds() -> None:
    async def three_failures() -> float:
        feed = RecordingFeed()
        async with fake_ollama() as ollama, polling(feed, [ollama.replica()], 1.0):
            await feed.until(lambda: feed.count("a") >= 1)
            ollama.answers["/api/version"] = held(asyncio.Event(), page(b""))
            frozen_s = time.monotonic()
            await feed.until(lambda: feed.count("a", SLOW) >= 3)
            return time.monotonic() - frozen_s

    assert await quick_enough(three_failures, 3.0)


async def test_doubt_ends_after_three_failed_probes_and_the_usual_beat_goes_on(
    ollama: FakeOllama, feed: RecordingFeed
) -> None:
    async with polling(feed, [ollama.replica()], 0.5):
        await feed.until(lambda: feed.count("a", UP) >= 1)
        await ollama.stop()
        await feed.until(lambda: feed.count("a", DEAD) >= 6)
    times_s = [seen for seen, result in zip(feed.result_times_s["a"], feed.results["a"], strict=True) if result is DEAD]
    assert times_s[5] - times_s[2] >= 3 * 0.9 * 0.5 - 0.1


async def test_a_dead_replica_is_probed_on_and_read_anew_when_it_is_back() -> None:
    async def back_again() -> float:
        feed = RecordingFeed()
        async with fake_ollama() as ollama, polling(feed, [ollama.replica()], 0.3) as poller:
            await feed.until(all_read(feed))
            await ollama.stop()
            await feed.until(lambda: feed.count("a", DEAD) >= 3)
            tags_before = ollama.asked["/api/tags"]
            assert len(poller.pages("a").tags or ()) == 1, "the last reading stands"
            ollama.answers["/api/tags"] = document({"models": []})
            answered = feed.count("a", UP)
            await ollama.start()
            back_s = time.monotonic()
            await feed.until(lambda: poller.pages("a").tags == () and feed.count("a", UP) >= answered + 2)
            took_s = time.monotonic() - back_s
            assert ollama.asked["/api/tags"] > tags_before
            assert () in [sample.installed for sample in feed.samples]
            return took_s

    assert await quick_enough(back_again, 5 * 0.3)


async def test_a_failed_reading_leaves_the_last_one_standing_and_is_logged_once(
    ollama: FakeOllama, feed: RecordingFeed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with polling(feed, [ollama.replica()], 0.1) as poller:
        await feed.until(all_read(feed))
        good = poller.pages("a").ps
        ollama.answers["/api/ps"] = page(b"<html>")
        await feed.until(lambda: feed.read("a", "ps", ok=False) >= 3)
        assert poller.pages("a").ps == good
        ollama.answers["/api/ps"] = document({"models": []})
        await feed.until(lambda: poller.pages("a").ps == ())
        await feed.until(lambda: feed.count("a") > 5)
    told = [sample.loaded for sample in feed.samples if sample.loaded is not None]
    assert len(told) == feed.read("a", "ps")
    assert [record.getMessage() for record in caplog.records if "part=ps" in record.getMessage()] == [
        'probe_failed replica=a part=ps reason="nonsense answer"',
        "probe_recovered replica=a part=ps",
    ]


async def test_tags_are_read_in_every_fifth_round_only(ollama: FakeOllama, feed: RecordingFeed) -> None:
    async with polling(feed, [ollama.replica()], 0.1):
        await feed.until(lambda: feed.count("a") >= 11)
    assert ollama.asked["/api/tags"] in (2, 3), "at the start, and after rounds 5 and 10"
    assert ollama.asked["/api/ps"] >= 9


async def test_a_changed_version_is_told_once(ollama: FakeOllama, feed: RecordingFeed) -> None:
    def versions() -> list[str | None]:
        return [sample.version for sample in feed.samples if sample.loaded is None and sample.installed is None]

    async with polling(feed, [ollama.replica()], 0.1):
        await feed.until(lambda: feed.count("a") >= 3)
        ollama.answers["/api/version"] = document({"version": "0.33.0-rc2"})
        await feed.until(lambda: len(versions()) >= 2)
        seen = feed.count("a")
        await feed.until(lambda: feed.count("a") >= seen + 3)
    assert versions() == ["0.32.15", "0.33.0-rc2"]


async def test_a_kick_probes_at_once_and_many_kicks_probe_little(ollama: FakeOllama, feed: RecordingFeed) -> None:
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        await ollama.stop()
        began_s = time.monotonic()
        for _ in range(1000):
            poller.kick("a")
        await feed.until(lambda: feed.count("a", DEAD) >= 1)
        assert time.monotonic() - began_s < 1.0
        until_s = time.monotonic() + 4 * KICK_GAP_S
        while time.monotonic() < until_s:
            poller.kick()
            await asyncio.sleep(0)
        assert 2 <= feed.count("a", DEAD) <= 6


async def test_a_kick_during_a_probe_makes_one_more_of_them(ollama: FakeOllama, feed: RecordingFeed) -> None:
    gate = asyncio.Event()
    ollama.answers["/api/version"] = held(gate, document({"version": "1.0.0"}))
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await _until(lambda: ollama.now["/api/version"] == 1)
        poller.kick("a")
        poller.kick("a")
        poller.kick("unknown")
        gate.set()
        await feed.until(lambda: feed.count("a") >= 2)
        await asyncio.sleep(3 * KICK_GAP_S)  # that no third one comes can only be seen by waiting
    assert feed.results["a"] == [UP, UP]


async def test_a_kick_does_not_shift_the_beat(ollama: FakeOllama, feed: RecordingFeed) -> None:
    async with polling(feed, [ollama.replica()], 0.4) as poller:
        while ollama.asked["/api/ps"] < 4:
            poller.kick()
            seen = feed.count("a")
            await feed.until(lambda seen=seen: feed.count("a") > seen)  # type: ignore[misc]
    assert feed.count("a") > 2 * ollama.asked["/api/ps"]


async def test_a_refresh_waits_for_a_reading_that_began_after_it(ollama: FakeOllama, feed: RecordingFeed) -> None:
    gate = asyncio.Event()
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        ollama.answers["/api/tags"] = held(gate, document({"models": [TAG]}))
        before = asyncio.create_task(poller.refresh(tags=True, ps=False, deadline_s=PATIENCE_S))
        await _until(lambda: ollama.now["/api/tags"] == 1)
        ollama.answers["/api/tags"] = document({"models": [TAG, TAG | {"name": "new"}]})
        after = [asyncio.create_task(poller.refresh(tags=True, ps=False, deadline_s=PATIENCE_S)) for _ in range(50)]
        await asyncio.sleep(0)
        gate.set()
        await before
        await asyncio.wait(after)
        assert [entry.spelled for entry in poller.pages("a").tags or ()] == ["llama3.1:8b", "new"]
    assert ollama.asked["/api/tags"] == 3, "the first, the one under way, and one shared by fifty"
    assert ollama.asked["/api/ps"] == 1


async def test_a_refresh_reads_all_replicas_side_by_side_and_feeds_the_samples(feed: RecordingFeed) -> None:
    async with AsyncExitStack() as stack:
        ollamas = [await stack.enter_async_context(fake_ollama()) for _ in range(4)]
        replicas = [ollama.replica(str(number)) for number, ollama in enumerate(ollamas)]
        poller = await stack.enter_async_context(polling(feed, replicas, RARELY_S))
        await feed.until(lambda: all(all_read(feed, replica.id)() for replica in replicas))
        gate = asyncio.Event()
        for ollama in ollamas:
            ollama.answers["/api/ps"] = held(gate, document({"models": []}))
        refresh = asyncio.create_task(poller.refresh(tags=True, ps=True, deadline_s=PATIENCE_S))
        await _until(lambda: all(ollama.now["/api/ps"] for ollama in ollamas))
        gate.set()
        await refresh
        assert [poller.pages(replica.id).ps for replica in replicas] == [(), (), (), ()]
        assert [feed.read(replica.id, "tags") for replica in replicas] == [2, 2, 2, 2]


async def test_a_refresh_ends_at_its_deadline_and_the_late_page_is_kept(
    ollama: FakeOllama, feed: RecordingFeed
) -> None:
    gate = asyncio.Event()
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        ollama.answers["/api/ps"] = held(gate, document({"models": []}))
        began_s = time.monotonic()
        await poller.refresh(tags=False, ps=True, deadline_s=0.1)
        assert time.monotonic() - began_s < 2.0
        assert len(poller.pages("a").ps or ()) == 1
        gate.set()
        await feed.until(lambda: poller.pages("a").ps == ())


async def test_a_refresh_does_not_wait_for_a_replica_that_is_down(
    ollama: FakeOllama, other: FakeOllama, feed: RecordingFeed
) -> None:
    other.answers = dict.fromkeys(other.answers, held(asyncio.Event(), page(b"")))
    async with polling(feed, [ollama.replica("good"), other.replica("stuck")], 1.0) as poller:
        await feed.until(lambda: feed.count("stuck", SLOW) >= 1 and all_read(feed, "good")())
        began_s = time.monotonic()
        await poller.refresh(tags=True, ps=True, deadline_s=PATIENCE_S)
        assert time.monotonic() - began_s < 3.0
    assert other.asked["/api/tags"] == 0


async def test_a_cancelled_refresh_takes_nothing_from_those_who_share_it(
    ollama: FakeOllama, feed: RecordingFeed
) -> None:
    gate = asyncio.Event()
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        ollama.answers["/api/tags"] = held(gate, document({"models": []}))
        leaver, stayer = (
            asyncio.create_task(poller.refresh(tags=True, ps=False, deadline_s=PATIENCE_S)) for _ in range(2)
        )
        await _until(lambda: ollama.now["/api/tags"] == 1)
        leaver.cancel()
        gate.set()
        await stayer
        assert poller.pages("a").tags == ()


async def test_a_refresh_of_nobody_returns(feed: RecordingFeed) -> None:
    async with polling(feed, [], RARELY_S) as poller:
        await poller.refresh(tags=True, ps=True, deadline_s=PATIENCE_S)


# -- pages that catch up with what the gateway itself caused


def settled(replica_id: str) -> bool:
    return False


async def test_memory_is_read_for_a_page_only_where_something_was_begun_or_ended(feed: RecordingFeed) -> None:
    async with AsyncExitStack() as stack:
        ollamas = [await stack.enter_async_context(fake_ollama()) for _ in range(3)]
        replicas = [ollama.replica(str(number)) for number, ollama in enumerate(ollamas)]
        poller = await stack.enter_async_context(polling(feed, replicas, RARELY_S))
        await feed.until(lambda: all(all_read(feed, replica.id)() for replica in replicas))
        await poller.catch_up_ps("012", settled)
        assert [ollama.asked["/api/ps"] for ollama in ollamas] == [1, 1, 1]
        for ollama in ollamas:
            ollama.answers["/api/ps"] = document({"models": []})
        poller.recent.touched.add("1")
        await poller.catch_up_ps("012", lambda replica_id: replica_id == "2")
        assert [ollama.asked["/api/ps"] for ollama in ollamas] == [1, 2, 2]
        assert [len(poller.pages(replica.id).ps or ()) for replica in replicas] == [1, 0, 0]
        assert poller.recent.touched == set()
        assert [ollama.asked["/api/tags"] for ollama in ollamas] == [1, 1, 1]


async def test_pages_that_catch_up_share_the_reading_that_began_after_the_change(
    ollama: FakeOllama, feed: RecordingFeed
) -> None:
    gate = asyncio.Event()
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        ollama.answers["/api/ps"] = held(gate, document({"models": []}))
        poller.recent.touched.add("a")
        first = asyncio.create_task(poller.catch_up_ps("a", settled))
        await _until(lambda: ollama.now["/api/ps"] == 1)
        rest = [asyncio.create_task(poller.catch_up_ps("a", settled)) for _ in range(50)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.wait([first, *rest])
        assert poller.pages("a").ps == ()
    assert ollama.asked["/api/ps"] <= 3, "the first, this one, and one for those that came so soon after the change"


async def test_a_change_during_a_reading_is_caught_up_with_by_the_next(ollama: FakeOllama, feed: RecordingFeed) -> None:
    gate = asyncio.Event()
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        ollama.answers["/api/ps"] = held(gate, document({"models": [LOADED]}))
        poller.read_memory("a")
        await _until(lambda: ollama.now["/api/ps"] == 1)
        poller.recent.touched.add("a")
        page = asyncio.create_task(poller.catch_up_ps("a", settled))
        await asyncio.sleep(0)
        ollama.answers["/api/ps"] = document({"models": []})
        gate.set()
        await page
        assert poller.pages("a").ps == ()


async def test_soon_after_a_change_a_page_asks_once_more(ollama: FakeOllama, feed: RecordingFeed) -> None:
    """An Ollama agrees to let go of a model before it does."""
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        poller.recent.touched.add("a")
        await poller.catch_up_ps("a", settled)
        ollama.answers["/api/ps"] = document({"models": []})
        await poller.catch_up_ps("a", settled)
        assert poller.pages("a").ps == ()
        await asyncio.sleep(SETTLES_S)
        asked = ollama.asked["/api/ps"]
        await poller.catch_up_ps("a", settled)
        assert ollama.asked["/api/ps"] == asked


async def test_a_reading_that_failed_leaves_a_page_behind(ollama: FakeOllama, feed: RecordingFeed) -> None:
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        ollama.answers["/api/ps"] = page(b"<html>")
        poller.recent.touched.add("a")
        await poller.catch_up_ps("a", settled)
        await asyncio.sleep(SETTLES_S)
        ollama.answers["/api/ps"] = document({"models": []})
        await poller.catch_up_ps("a", settled)
        assert poller.pages("a").ps == ()


async def test_a_replica_that_is_known_to_be_slow_costs_a_page_nothing(
    ollama: FakeOllama, other: FakeOllama, feed: RecordingFeed
) -> None:
    async with polling(feed, [ollama.replica("good"), other.replica("slow")], RARELY_S) as poller:
        await feed.until(lambda: all_read(feed, "good")() and all_read(feed, "slow")())
        other.answers["/api/ps"] = held(asyncio.Event(), page(b""))
        poller.recent.touched.add("slow")
        await poller.catch_up_ps(("good", "slow"), settled)
        began_s = time.monotonic()
        for _ in range(100):
            poller.recent.touched.update(("good", "slow"))
            await poller.catch_up_ps(("good", "slow"), settled)
        assert time.monotonic() - began_s < 100 * PAGE_WAIT_S / 4, "none of them waited for the slow one"
        assert feed.read("good", "ps") > 50


async def test_a_page_waits_for_the_first_list_and_for_no_other(ollama: FakeOllama, feed: RecordingFeed) -> None:
    gate = asyncio.Event()
    ollama.answers["/api/tags"] = held(gate, document({"models": [TAG]}))
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await _until(lambda: ollama.now["/api/tags"] == 1)
        first = asyncio.create_task(poller.catch_up_tags("a"))
        await asyncio.sleep(0)
        gate.set()
        await first
        assert len(poller.union("a").tags()) > 100
        asked = ollama.asked["/api/tags"]
        await poller.catch_up_tags("a")
        assert ollama.asked["/api/tags"] == asked
        await poller.catch_up_tags("a", anew=True)
        assert ollama.asked["/api/tags"] == asked + 1


# -- lists of a store that was changed


async def test_what_one_replica_lists_after_a_change_the_others_of_its_store_list_too(
    ollama: FakeOllama, other: FakeOllama, feed: RecordingFeed
) -> None:
    replicas = [ollama.replica("a"), other.replica("b"), replace(other.replica("c"), port=ollama.port, store="own")]
    async with polling(feed, replicas, RARELY_S) as poller:
        await feed.until(lambda: all(all_read(feed, replica.id)() for replica in replicas))
        poller.adopt_tags("a", (), time.monotonic())
        poller.adopt_tags("nobody", (), time.monotonic())
        assert [len(poller.pages(replica_id).tags or ()) for replica_id in "abc"] == [0, 0, 1]
        assert [sample.replica_id for sample in feed.samples if sample.installed == ()] == ["a", "b"]


async def test_a_list_that_is_older_than_what_is_known_is_not_adopted(ollama: FakeOllama, feed: RecordingFeed) -> None:
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        before_s = time.monotonic()
        await feed.until(all_read(feed))
        poller.adopt_tags("a", (), before_s)
        assert len(poller.pages("a").tags or ()) == 1


async def test_a_list_that_was_being_read_while_the_store_changed_is_read_again(
    ollama: FakeOllama, feed: RecordingFeed
) -> None:
    gate = asyncio.Event()
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        ollama.answers["/api/tags"] = held(gate, document({"models": [TAG]}))
        reading = asyncio.create_task(poller.refresh(tags=True, ps=False, deadline_s=PATIENCE_S))
        await _until(lambda: ollama.now["/api/tags"] == 1)
        poller.adopt_tags("a", (), time.monotonic())
        ollama.answers["/api/tags"] = document({"models": [TAG | {"name": "new"}]})
        gate.set()
        await reading
        assert [entry.spelled for entry in poller.pages("a").tags or ()] in ([], ["new"])
        await _until(lambda: [entry.spelled for entry in poller.pages("a").tags or ()] == ["new"])
    spelled = [[model.name for model in sample.installed] for sample in feed.samples if sample.installed is not None]
    assert spelled == [["llama3.1:8b"], [], ["new:latest"]]


async def test_replicas_that_do_not_share_the_store_they_are_said_to_are_told_of_once(
    ollama: FakeOllama, other: FakeOllama, feed: RecordingFeed, caplog: pytest.LogCaptureFixture
) -> None:
    other.answers["/api/tags"] = document({"models": [TAG | {"name": "another"}]})
    replicas = [ollama.replica("a"), other.replica("b")]
    advice = "a and b are said to share the store 'shared' but list different models: "
    advice += "give them `store:` names of their own"
    async with polling(feed, replicas, RARELY_S) as poller:
        await feed.until(lambda: all_read(feed, "a")() and all_read(feed, "b")())
        for replica_id in "abababab":
            await poller.catch_up_tags(replica_id, anew=True)
        assert poller.advice == (advice,)
        assert [record.getMessage() for record in caplog.records] == [f'advice text="{advice}"']
        poller.adopt_tags("a", (), time.monotonic())
        assert len(poller.pages("b").tags or ()) == 1, "it is not its list"
        poller.set_replicas([replicas[0], replace(replicas[1], store="own")])
        assert not poller.advice


async def test_a_removed_replica_feeds_nothing_more_and_releases_who_waits(
    ollama: FakeOllama, other: FakeOllama, feed: RecordingFeed
) -> None:
    gate = asyncio.Event()
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        told = len(feed.seconds)
        ollama.answers = dict.fromkeys(ollama.answers, held(gate, document({"version": "9.9.9", "models": []})))
        poller.kick("a")
        refresh = asyncio.create_task(poller.refresh(tags=True, ps=True, deadline_s=PATIENCE_S))
        await _until(lambda: sum(ollama.now.values()) == 3)
        gate.set()
        poller.set_replicas([other.replica("b")])
        async with asyncio.timeout(PATIENCE_S / 2):
            await refresh
        await feed.until(all_read(feed, "b"))
        assert [line for line in feed.seconds[told:] if line[0] == "a"] == []
        assert poller.pages("a") == ReplicaPages("a")


async def test_an_answer_that_came_with_the_removal_is_not_fed(ollama: FakeOllama, feed: RecordingFeed) -> None:
    """Removal at every step of the loop after a probe began: nothing is told after it."""
    for turns in range(40):
        async with polling(feed, [ollama.replica()], RARELY_S) as poller:
            for _ in range(turns):
                await asyncio.sleep(0)
            poller.set_replicas([])
            told = len(feed.seconds) + len(feed.samples) + feed.count("a")
            await poller.close()
            assert len(feed.seconds) + len(feed.samples) + feed.count("a") == told


async def test_a_reload_keeps_the_watch_of_an_unmoved_replica_and_restarts_a_moved_one(
    ollama: FakeOllama, other: FakeOllama, feed: RecordingFeed
) -> None:
    async with polling(feed, [ollama.replica()], RARELY_S) as poller:
        await feed.until(all_read(feed))
        poller.set_replicas([replace(ollama.replica(), weight=2.0, slots=8)])
        assert poller.pages("a").tags is not None
        assert feed.count("a") == 1
        other.answers["/api/version"] = document({"version": "0.24.0"})
        poller.set_replicas([other.replica("a")])
        assert poller.pages("a") == ReplicaPages("a"), "another address is another Ollama"
        await feed.until(lambda: poller.pages("a").version == "0.24.0")


async def test_a_feed_that_raises_ends_no_loop_and_is_logged_once(
    ollama: FakeOllama, feed: RecordingFeed, caplog: pytest.LogCaptureFixture
) -> None:
    async with polling(feed, [ollama.replica()], 0.1):
        await feed.until(all_read(feed))
        feed.broken = True
        seen = feed.read("a", "version")
        await feed.until(lambda: feed.read("a", "version") >= seen + 3)
        feed.broken = False
        seen = feed.count("a")
        await feed.until(lambda: feed.count("a") > seen)
    crashes = [record for record in caplog.records if record.getMessage() == "probe_crashed replica=a part=version"]
    assert len(crashes) == 1
    assert crashes[0].exc_info is not None


async def test_close_ends_every_task_and_may_be_called_again(ollama: FakeOllama, feed: RecordingFeed) -> None:
    before = asyncio.all_tasks()
    ollama.answers["/api/ps"] = held(asyncio.Event(), page(b""))
    async with polling(feed, [ollama.replica()], 0.1) as poller:
        await feed.until(lambda: feed.count("a") >= 3)
        await poller.close()
        await poller.close()
        watching = [task for task in asyncio.all_tasks() - before if task.get_name().startswith("watch")]
        assert watching == []
    gc.collect()  # a future or task that was lost would warn here


async def test_jitter_only_ever_shortens_the_interval(ollama: FakeOllama, feed: RecordingFeed) -> None:
    async with polling(feed, [ollama.replica()], 0.3):
        await feed.until(lambda: feed.count("a") >= 8)
    times_s = feed.result_times_s["a"]
    assert 7 * 0.9 * 0.3 - 0.1 <= times_s[7] - times_s[0] <= 7 * 0.3 + 1.5


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)
